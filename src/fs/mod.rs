//! The read-only file system of an image, free of FUSE types.

mod cache;
pub mod create;
mod error;
mod extract;
mod image;
mod options;
pub mod paths;
mod rootfs;
mod sparse_file;
mod spool;
mod stack;
mod v1;
mod verify;
mod walk;

pub use cache::CacheCounts;
pub use error::{Error, Result};
pub use extract::{ExtractOptions, Extracted, Failure, extract, open_target};
pub use image::ImageFile;
pub use options::ImageOptions;
pub use rootfs::{Decoded, EachEntry, EachInode, NamedInode, ROOT, Rootfs, Seek, Statfs, Zeros};
pub use spool::{Spool, TempDir};
pub use stack::{MAX_IMAGES, StackError};
pub use v1::tree_of_index;
pub use verify::{Damage, Verified, verify};
pub use walk::{Order, Step, Visit, Walk};
