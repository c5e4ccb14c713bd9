//! What is done to images: they are opened, built, pulled, pushed, checked, continued with layers,
//! put into a store, mounted. Each is a request that gives an outcome, and tells [`Events`] on its
//! way.
//!
//! What reads an image only is where the subject is: [`crate::fs::extract()`],
//! [`crate::build::export`].

mod build;
mod commit;
mod error;
mod events;
mod file;
mod in_place;
mod layered;
mod mount;
mod pull;
mod push;
pub mod secret;
mod sources;
mod verify;

pub use build::{Build, Made};
pub use commit::{Commit, open_lower};
pub use error::{Error, Result};
pub use events::{Events, Step};
pub use file::{open, open_file};
pub use in_place::InPlace;
pub use layered::Layered;
pub use mount::Mount;
pub use pull::{Pull, Pulled};
pub use push::{Layers, Push};
pub use sources::{Sources, is_remote, total};
pub use verify::{Verified, verify};
