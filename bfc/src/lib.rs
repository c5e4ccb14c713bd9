//! BFC, a format that stores many files in one file, and the rootfs section that makes it a
//! complete root file system.
//!
//! Build an image of one file, list its root directory, and read the file:
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//!
//! use bfc::Container;
//! use bfc::content::Decoder;
//! use bfc::format::S_IFREG;
//! use bfc::rootfs::format::ROOT;
//! use bfc::rootfs::{Attr, Kind, Node, Section, Tree};
//! use bfc::writer::{ContentSink, Documents, ImageWriter, WriteOptions};
//!
//! let file = tempfile::tempfile()?;
//! let mut writer = ImageWriter::create(file.try_clone()?, WriteOptions::default())?;
//! let text = b"Hello\n";
//! let size = text.len() as u64;
//! let content = writer.add(b"hello", size, &mut &text[..])?;
//! let mut tree = Tree::default();
//! let id = tree.add(Node {
//!     attr: Attr { mode: S_IFREG | 0o644, ..Attr::default() },
//!     kind: Kind::File { size, content },
//! });
//! tree.link(Tree::ROOT, b"hello", id);
//! writer.end_layer()?;
//! writer.finish(tree, Documents::default())?;
//!
//! let container = Container::open(Arc::new(file))?;
//! let locator = container.locator()?.ok_or("the image has no root file system")?;
//! let section = Section::open(container.source().clone(), &locator)?;
//! let root = section.inode(ROOT)?.ok_or("the root is missing")?;
//! let mut names = Vec::new();
//! for index in 0..root.size {
//!     let dentry = section.dentry(&root, index)?.ok_or("an entry is missing")?;
//!     names.push(section.name(&dentry)?.into_owned());
//! }
//! assert_eq!(names, [b"hello"]);
//!
//! let dentry = section.lookup(&root, b"hello")?.ok_or("the file is missing")?;
//! let content = section.content(section.follow(&dentry)?.data)?;
//! let path = section.content_path(&content)?;
//! let decoder = Decoder {
//!     source: &**container.source(),
//!     len: container.len(),
//!     flavour: container.flavour(),
//!     key: None,
//!     check_hash: true,
//! };
//! let mut bytes = vec![0; usize::try_from(content.size)?];
//! decoder.whole(&content, &path, &mut bytes)?;
//! assert_eq!(bytes, text);
//! # Ok(())
//! # }
//! ```
//!
//! A content that is longer than a frame (64 KiB by default) is stored in several frames, which
//! [`content::Decoder::frames`] decodes.
//!
//! | module | what it is for |
//! |---|---|
//! | [`container`] | open a file: its header, footer, v1 index and rootfs section |
//! | [`rootfs`] | the rootfs section: inodes, names, attributes; and how a section is built |
//! | [`content`] | decode the contents of files, and check them |
//! | [`writer`] | write an image, or append layers to one |
//! | [`format`](mod@format) | the structures of v1 as they are on disk |
//! | [`source`] | where the bytes of an image come from: a file, memory, or your own [`ReadAt`] |
//! | [`key`], [`aead`], [`crc`] | passwords and keys, encryption, checksums |
//!
//! This crate handles bytes only: no FUSE, no OCI, no ZFS. FORMAT.md beside it is the
//! specification. Any byte of an image may be hostile: the crate checks every length and offset
//! before it uses it, and allocates memory for actual sizes only, not for claimed ones.

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
