//! What can be wrong with an image, and with reading it.

use std::io;

/// An error of this crate. Each says what was being done, and to which offset or path of the image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes could not be read.
    #[error("reading {len} bytes at offset {offset} of the image")]
    Read {
        /// Where the read began.
        offset: u64,
        /// How many bytes were wanted.
        len: u64,
        /// What the source said.
        source: io::Error,
    },
    /// The bytes could not be written.
    #[error("writing the image at offset {offset}")]
    Write {
        /// Where the write began.
        offset: u64,
        /// What the sink said.
        source: io::Error,
    },
    /// What an image is made from could not be read.
    #[error("reading what is to be written")]
    Input(#[source] io::Error),
    /// The file does not start as a BFC file does.
    #[error("not a BFC image: {0}")]
    NotBfc(&'static str),
    /// The header's checksum fits neither flavour.
    #[error("the header is damaged: its checksum is wrong")]
    HeaderCrc,
    /// There is no footer where the image ends.
    #[error(
        "no valid footer at the end of the image, which is {end} bytes long: it is cut off, \
         damaged or was never finished"
    )]
    NoFooter {
        /// Where it should end.
        end: u64,
    },
    /// The file ends before the image does.
    #[error("the image is cut off: it is {committed} bytes long, and the file has {found}")]
    CutOff {
        /// How long the header says that the image is.
        committed: u64,
        /// How long the file is.
        found: u64,
    },
    /// The footer names an index outside the file.
    #[error(
        "the footer claims an index of {size} bytes at offset {offset}, outside the file of {len} \
         bytes"
    )]
    IndexBounds {
        /// Claimed offset.
        offset: u64,
        /// Claimed size.
        size: u64,
        /// The file's length.
        len: u64,
    },
    /// The index's checksum is wrong.
    #[error("the index is damaged: its checksum is wrong")]
    IndexCrc,
    /// The index cannot be parsed.
    #[error("the index is damaged: {reason}, in entry {entry}")]
    Index {
        /// The entry's number, from 0.
        entry: u32,
        /// What is wrong.
        reason: &'static str,
    },
    /// The rootfs section, or its locator, is damaged.
    #[error("the rootfs section is damaged: {reason} (offset {offset} of the section)")]
    Section {
        /// Offset in the section.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// The rootfs section is of before version 1.0, which nothing reads any more.
    #[error(
        "the image was made before version 1.0 of the rootfs section, which this version does not \
         read: build it again"
    )]
    Outdated,
    /// The image uses something that this version does not know.
    #[error("the image needs {0}, which this version does not support")]
    Unsupported(String),
    /// Content is damaged: a checksum, a tag or a length does not fit.
    #[error("content at offset {offset} is damaged: {reason}")]
    Content {
        /// Offset of the content in the image.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// Content is encrypted and no key was given.
    #[error("the image is encrypted and no password or key was given")]
    KeyNeeded,
    /// The key does not open the image.
    #[error("the password or key is wrong")]
    WrongKey,
    /// The key file is not a key.
    #[error("a key file holds exactly 32 bytes, not {0}")]
    KeyFile(u64),
    /// The image is another one than was asked for.
    #[error("the image's root digest is {found}, not {wanted}")]
    Digest {
        /// Hexadecimal digest that the image has.
        found: String,
        /// Hexadecimal digest that was asked for.
        wanted: String,
    },
    /// Something exceeds what the format, or this crate, can hold.
    #[error("too large: {0}")]
    TooLarge(&'static str),
}

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
