//! BFC, a format that stores many files in one file, and the rootfs section that makes it a
//! complete root file system.
//!
//! This crate handles bytes only: no FUSE, no OCI, no ZFS. FORMAT.md beside it is the
//! specification. Any byte of an image may be hostile: every length and offset is checked before it
//! is used, and memory depends on the actual size, not on claimed sizes.

#![forbid(unsafe_code)]
#![warn(unreachable_pub)]

pub mod aead;
pub mod container;
pub mod content;
pub mod crc;
mod error;
pub mod format;
pub mod key;
mod objects;
pub mod rootfs;
pub mod source;
#[cfg(shuttle)]
#[doc(hidden)]
#[allow(missing_docs)]
pub mod sync;
#[cfg(not(shuttle))]
mod sync;
pub mod writer;

pub use container::{Container, Index};
pub use error::{Error, Result};
pub use key::{Key, Secret};
pub use source::ReadAt;
