//! The read-only file system of an image, free of FUSE types, and how layers become one tree.

mod cache;
mod error;
mod extract;
pub mod merge;
mod rootfs;
mod spool;
mod v1;
mod verify;

pub use error::{Error, Result};
pub use extract::{ExtractOptions, Extracted, Failure, extract, open_target};
pub use rootfs::{Decoded, EachEntry, EachInode, Options, ROOT, Rootfs, Source, Statfs};
pub use spool::{Spool, TempDir};
pub use v1::tree_of_index;
pub use verify::{Damage, Verified, verify};
