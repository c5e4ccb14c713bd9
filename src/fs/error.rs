//! What can go wrong in the file system, and the one mapping to errno.

use std::path::PathBuf;

use rustix::io::Errno;

use crate::error::{Exit, Report};

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
    /// Content that does not fit the cache is longer than what its temporary files may take
    /// together.
    #[error(
        "{size} bytes in one piece, of which none can be read before all are decoded; temporary \
         files may take {limit} bytes"
    )]
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
    /// Whether it is the image's fault.
    pub fn is_damage(&self) -> bool {
        self.exit() == Exit::Damaged
    }

    /// The errno for a caller of the file system. Damage is EIO, whatever its kind.
    pub fn errno(&self) -> Errno {
        match self {
            Error::NotFound => Errno::NOENT,
            Error::Kind { errno, .. } => *errno,
            Error::Image {
                source: bfc::Error::KeyNeeded | bfc::Error::WrongKey,
                ..
            } => Errno::KEYREJECTED,
            Error::Image { .. }
            | Error::Stack { .. }
            | Error::Subdir { .. }
            | Error::Temporary { .. }
            | Error::SpoolFull { .. } => Errno::IO,
            Error::Shared(error) => error.errno(),
        }
    }
}

impl Report for Error {
    fn exit(&self) -> Exit {
        match self {
            Error::Image { source, .. } => source.exit(),
            Error::NotFound | Error::Subdir { .. } => Exit::NotFound,
            Error::Shared(error) => error.exit(),
            _ => Exit::Failure,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Error::Image { source, .. } => source.hint(),
            Error::Subdir { .. } => {
                Some("`lxcri-fs ls IMAGE` shows what is in the image".to_owned())
            }
            Error::Shared(error) => error.hint(),
            _ => None,
        }
    }
}

impl Report for bfc::Error {
    fn exit(&self) -> Exit {
        match self {
            Self::KeyNeeded | Self::WrongKey | Self::KeyFile(_) => Exit::Key,
            Self::Read { .. }
            | Self::Write { .. }
            | Self::Unsupported(_)
            | Self::Outdated
            | Self::Digest { .. } => Exit::Failure,
            _ => Exit::Damaged,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::KeyNeeded => "give --password-file, --key-file, or LXCRI_FS_PASSWORD",
            Self::WrongKey => "check the password; a key file holds the 32 raw bytes",
            Self::NoFooter { .. } | Self::CutOff { .. } => {
                "the image was cut off while it was copied or written: fetch or build it again"
            }
            Self::HeaderCrc | Self::IndexCrc | Self::Index { .. } | Self::Section { .. } => {
                "`lxcri-fs verify` tells what can still be read; fetch or build the image again"
            }
            Self::NotBfc(_) => {
                "`lxcri-fs build` makes an image of a directory, an archive or an OCI image"
            }
            Self::Unsupported(_) => "a newer version of lxcri-fs may know it",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
