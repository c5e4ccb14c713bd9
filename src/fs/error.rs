//! What can go wrong in the file system, and the one mapping to errno.

use std::path::PathBuf;

use rustix::io::Errno;

/// An error of the file system.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading an image failed, or it is damaged.
    #[error("image {}", image.display())]
    Image {
        /// The image's path.
        image: PathBuf,
        /// What is wrong with it.
        source: bfc::Error,
    },
    /// Several images cannot be mounted as one.
    #[error("image {}", image.display())]
    Stack {
        /// The image that does not fit those before it.
        image: PathBuf,
        /// Why.
        source: super::StackError,
    },
    /// No such inode, or no such name.
    #[error("no such file or directory")]
    NotFound,
    /// The operation does not fit the type of the inode.
    #[error("inode {ino}: {reason}")]
    Kind {
        /// Inode number.
        ino: u32,
        /// What it is not.
        reason: &'static str,
        /// The errno that says so.
        errno: Errno,
    },
    /// `--subdir` names nothing in the image.
    #[error("{} is not a directory of the image", path.display())]
    Subdir {
        /// The path as given.
        path: PathBuf,
    },
    /// Content that does not fit the cache could not be decoded into a temporary file.
    #[error("decoding {size} bytes into a temporary file")]
    Temporary {
        /// How long the content is, bytes.
        size: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// Content that does not fit the cache is longer than what its temporary files may take together.
    #[error("{size} bytes in one piece, of which none can be read before all are decoded; temporary files may take {limit} bytes")]
    SpoolFull {
        /// How long the content is, bytes.
        size: u64,
        /// What all files may take, bytes.
        limit: u64,
    },
    /// Decoding failed before, for another reader that asked for the same content at the same time.
    #[error("{0}")]
    Shared(std::sync::Arc<Error>),
}

/// A result with this module's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The errno for a caller of the file system. Damage is EIO, whatever its kind.
    pub fn errno(&self) -> Errno {
        match self {
            Error::NotFound => Errno::NOENT,
            Error::Kind { errno, .. } => *errno,
            Error::Image { source: bfc::Error::KeyNeeded | bfc::Error::WrongKey, .. } => Errno::KEYREJECTED,
            Error::Image { .. } | Error::Stack { .. } | Error::Subdir { .. } | Error::Temporary { .. } | Error::SpoolFull { .. } => {
                Errno::IO
            }
            Error::Shared(error) => error.errno(),
        }
    }
}
