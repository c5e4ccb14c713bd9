//! The operating system: what the standard library and rustix do not have, or not as it is needed
//! here.
//!
//! What is unsafe outside the format crate is in this module. Nothing here knows of images.

pub mod descriptors;
pub mod extents;
pub mod files;
pub mod idmap;
pub mod kernel;
pub mod lock;
pub(crate) mod memory;
pub(crate) mod mount_attr;
pub mod mountinfo;
pub(crate) mod namespace;
pub(crate) mod replace;
pub(crate) mod tmpfs;
pub mod users;

use crate::error::Io;

/// A result with what the system refused.
pub type Result<T, E = Io> = std::result::Result<T, E>;
