//! Errors of making EROFS metadata.

use crate::error::{Exit, Report};

/// Why no EROFS metadata can be made of an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The section is damaged.
    #[error("laying out the image's contents")]
    Section(#[from] bfc::Error),
    /// The tree is damaged.
    #[error(transparent)]
    Tree(#[from] crate::fs::Error),
    /// The decoded contents are longer than the address space.
    #[error("the image's contents take more than 16 TiB, which is EROFS's limit")]
    Contents,
    /// The metadata would be longer than [`super::MAX_METADATA`].
    #[error("the image's EROFS metadata would take more than 1 GiB")]
    Metadata,
    /// EROFS has no way to say something about an inode.
    #[error("EROFS cannot express inode {ino}: {reason}")]
    Inexpressible {
        /// Number of the inode in the image.
        ino: u32,
        /// What it cannot say.
        reason: &'static str,
    },
}

/// A result with this module's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Whether the image is sound, and exceeds what EROFS can express: FUSE can serve it.
    pub fn exceeds(&self) -> bool {
        !matches!(self, Self::Section(_) | Self::Tree(_))
    }
}

impl Report for Error {
    fn exit(&self) -> Exit {
        match self {
            Self::Section(error) => error.exit(),
            Self::Tree(error) => error.exit(),
            _ => Exit::Failure,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Section(error) => error.hint(),
            Self::Tree(error) => error.hint(),
            _ => Some("`--engine fuse` has no such limit".to_owned()),
        }
    }
}
