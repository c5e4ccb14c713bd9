//! The read-only file system of an image, free of FUSE types.

mod cache;
mod error;
mod rootfs;
mod v1;

pub use error::{Error, Result};
pub use rootfs::{Options, ROOT, Rootfs, Source, Statfs};
pub use v1::tree_of_index;
