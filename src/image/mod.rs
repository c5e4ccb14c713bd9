//! What is done to images: they are opened, built, pulled, continued with layers, put into a store,
//! mounted. Each is a request that gives an outcome, and tells [`Events`] on its way.
//!
//! What reads an image only, or writes one file of it, is where the subject is:
//! [`crate::fs::verify`], [`crate::fs::extract()`], [`crate::build::export`],
//! [`crate::registry::push`].

mod build;
mod error;
mod events;
mod file;
mod layered;
mod mount;
mod pull;
pub mod secret;
mod sources;

pub use build::{Build, Made};
pub use error::{Error, Result};
pub use events::Events;
pub use file::{open, open_file};
pub use layered::Layered;
pub use mount::Mount;
pub use pull::{Pull, Pulled};
pub use sources::{Sources, is_remote, total};
