//! Where a container writes: upper directories over images, how they are mounted, and what can be
//! done with what was written.
//!
//! On disk an upper is what overlayfs makes of it, whichever [`engine`] is used: `upper/` with what
//! was written, 0/0 character devices as whiteouts and `trusted.overlay.*` attributes, and `work/`,
//! which is overlayfs's own. Beside them, a [`record`] of the image that it belongs to.

pub mod dataset;
pub mod engine;
mod error;
pub mod in_use;
mod index;
mod lower;
pub mod over_image;
mod overlay;
pub mod record;
pub mod snapshots;
pub mod upper_dir;
pub mod written;
mod xattrs;

pub use error::{Error, Result};
pub use over_image::{Request, mount, mount_under};
pub use record::UpperRecord;
pub use upper_dir::{Upper, UpperDir};
