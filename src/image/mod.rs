//! Operations on images: open, build, pull, push, verify, add layers, put into a store, mount. Each
//! is a request with a result, and reports [`Events`] meanwhile.
//!
//! Operations that only read an image are elsewhere: [`crate::fs::extract()`],
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
mod rebase;
pub mod secret;
mod skopeo;
mod sources;
mod verify;

pub use build::{Build, Made};
pub use commit::{Commit, open_lower};
pub use error::{Error, Result};
pub use events::{Events, Stage};
pub use file::{open, open_file};
pub use in_place::{ContainerAndImage, InPlace, refuse_to_replace};
pub use layered::Layered;
pub use mount::Mount;
pub use pull::{Pull, Pulled, ask_again};
pub use push::{Layers, Push};
pub use rebase::{Judged, Rebase};
pub use sources::{Sources, is_file, is_remote, total};
pub use verify::{Verified, verify};
