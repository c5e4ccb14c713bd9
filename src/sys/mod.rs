//! The operating system: what the standard library and rustix lack, or do in another way than is
//! needed here.
//!
//! All unsafe code outside the format crate is in this module. Nothing here knows about images.

pub mod descriptors;
pub mod directory;
pub mod erofs;
pub mod extents;
pub mod files;
pub(crate) mod handle;
pub mod idmap;
pub mod kernel;
pub mod lock;
pub(crate) mod memory;
pub mod mount_attr;
pub mod mountinfo;
pub(crate) mod namespace;
pub mod ramfs;
pub(crate) mod remove_tree;
pub(crate) mod replace;
pub(crate) mod tmpfs;
pub(crate) mod tree_copy;
pub mod users;

use crate::error::Io;

/// A result with the error of a system call.
pub type Result<T, E = Io> = std::result::Result<T, E>;
