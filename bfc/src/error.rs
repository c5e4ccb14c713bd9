//! Errors of images, and of reading and writing them.

use std::io;

/// An error of this crate. Each names the operation, and the offset or the part of the image.
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
        /// The source's error.
        source: io::Error,
    },
    /// The bytes could not be written.
    #[error("writing the image at offset {offset}")]
    Write {
        /// Where the write began.
        offset: u64,
        /// The output's error.
        source: io::Error,
    },
    /// Input of a new image could not be read.
    #[error("reading input for the image")]
    Input(#[source] io::Error),
    /// The file does not begin like a BFC file.
    #[error("not a BFC image: {0}")]
    NotBfc(&'static str),
    /// The header's checksum is wrong in both flavours.
    #[error("the header is damaged: its checksum is wrong")]
    HeaderCrc,
    /// There is no valid footer at the end of the image.
    #[error(
        "no valid footer at the end of the image, which is {end} bytes long: it was cut off, \
         damaged or never finished"
    )]
    NoFooter {
        /// Where it should end.
        end: u64,
    },
    /// The file ends before the image does.
    #[error("the image is cut off: it is {committed} bytes long, but the file has {found}")]
    CutOff {
        /// Length of the image according to its header.
        committed: u64,
        /// Length of the file.
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
    /// What is reserved in the footer has a value.
    #[error("the footer at offset {offset} is damaged: reserved bytes are not zero")]
    Footer {
        /// Offset of the footer in the image.
        offset: u64,
    },
    /// The rootfs section, or its locator, is damaged.
    #[error("the rootfs section is damaged: {reason} (offset {offset} of the section)")]
    Section {
        /// Offset in the section.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// The rootfs section is older than version 1.0, and can no longer be read.
    #[error(
        "the image was made before version 1.0 of the rootfs section, which this version does not \
         read: build it again"
    )]
    Outdated,
    /// The image uses a feature that this version does not support.
    #[error("the image needs {0}, which this version does not support")]
    Unsupported(String),
    /// Content is damaged: a checksum, an authentication tag or a length is wrong.
    #[error("content at offset {offset} is damaged: {reason}")]
    Content {
        /// Offset of the content in the image.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// Content is encrypted and no key was given.
    #[error("the image is encrypted, and no password or key was given")]
    KeyNeeded,
    /// The key does not decrypt the image.
    #[error("the password or key is wrong")]
    WrongKey,
    /// The key file has a wrong length.
    #[error("a key file holds exactly 32 bytes, not {0}")]
    KeyFile(u64),
    /// The image is not the requested one.
    #[error("the image's root digest is {found}, not {wanted}")]
    Digest {
        /// Hexadecimal digest that the image has.
        found: String,
        /// Hexadecimal digest that was requested.
        wanted: String,
    },
    /// Something exceeds a limit of the format or of this crate.
    #[error("too large: {0}")]
    TooLarge(&'static str),
}

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
