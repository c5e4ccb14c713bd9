//! Uppers: directories over images that take what containers write. Mounts them, and reads what was
//! written.
//!
//! On disk, an upper has overlayfs's own form: `upper/` with what was written, where whiteouts are
//! 0/0 character devices and marks are `trusted.overlay.*` attributes, and overlayfs's `work/`.
//! Beside them is a [`record`] of the image that it belongs to.

mod copy;
pub mod dataset;
mod directory_snapshots;
mod error;
pub mod in_use;
mod index;
mod lower;
pub mod over_image;
mod overlay;
pub mod rebase;
pub mod record;
pub mod snapshots;
pub mod upper_dir;
pub mod written;
mod xattrs;

pub use error::{Error, Result};
pub use over_image::{Request, mount, mount_detached, mount_under};
pub use record::UpperRecord;
pub use upper_dir::{Upper, UpperDir};
