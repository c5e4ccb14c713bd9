//! EROFS metadata for an image: the kernel's EROFS holds names, attributes and directories, and
//! reads the contents of files from the *decoded devices*, which a worker serves.
//!
//! Pure, but for the probe of the kernel: a tree goes in, bytes come out. What is refused here
//! ([`Error::exceeds`]) is served by FUSE.

mod check;
mod error;
pub mod format;
mod layout;
mod metadata;
mod probe;
mod read;

pub use check::{Damage, check};
pub use error::{Error, Result};
pub use layout::{DEVICES, Found, LARGE, Layout, MAX_METADATA, Piece, Pieces, Place};
pub use metadata::{Inodes, VERSION, numbers, write};
pub use probe::{Unavailable, probe};
pub use read::{Block, Data, Entry, Metadata, Node};
