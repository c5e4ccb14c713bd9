//! Layer tars: a parser that takes block by block, and a writer of the canonical form.
//!
//! The parser neither reads nor keeps file contents, so the same one serves building (blocks from a
//! stream, contents to a sink) and replay (blocks from a skeleton, contents already stored).

mod acl;
mod error;
mod header;
mod parser;
mod pax;
mod sparse;
mod writer;
mod xattrs;

pub use error::{Error, Reason};
pub use parser::{EntryKind, Parser, Step, TarEntry};
pub use sparse::{Expand, SparseMap};
pub use writer::{Body, Writer};

/// Length of a tar block, bytes: headers are one each, and everything is padded to whole ones.
pub const BLOCK: usize = 512;
/// A tar block.
pub type Block = [u8; BLOCK];

/// How many bytes of padding follow `size` bytes of data.
pub fn padding(size: u64) -> usize {
    #[allow(clippy::cast_possible_truncation)] // below a block
    let over = (size % BLOCK as u64) as usize;
    if over == 0 { 0 } else { BLOCK - over }
}
