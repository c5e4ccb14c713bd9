//! Errors of the file system, and their mapping to errno.

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
    /// Decoded content could not be written out.
    #[error("writing what was decoded")]
    Output(#[source] std::io::Error),
    /// Several images cannot be mounted as one.
    #[error("image {}", image.display())]
    Stack {
        /// The image that does not fit those before it.
        image: PathBuf,
        /// Why.
        source: super::StackError,
    },
    /// There is no such inode or name.
    #[error("no such file or directory")]
    NotFound,
    /// The operation does not fit the type of the inode.
    #[error("inode {ino}: {reason}")]
    Kind {
        /// Inode number.
        ino: u32,
        /// What the inode is not, such as "not a directory".
        reason: &'static str,
        /// The errno for the caller.
        errno: Errno,
    },
    /// `--subdir` names nothing in the image.
    #[error("{} is not a directory of the image", path.display())]
    Subdir {
        /// The path as it was given.
        path: PathBuf,
    },
    /// Content that does not fit the cache could not be decoded into a temporary file.
    #[error("decoding {size} bytes into a temporary file")]
    Temporary {
        /// How long the content is, bytes.
        size: u64,
        /// The system's error.
        source: std::io::Error,
    },
    /// Content that does not fit the cache is longer than the limit for temporary files.
    #[error(
        "the content is one piece of {size} bytes, which must be decoded as a whole, and temporary \
         files may take {limit} bytes only"
    )]
    SpoolFull {
        /// How long the content is, bytes.
        size: u64,
        /// The limit for all temporary files together, bytes.
        limit: u64,
    },
    /// Decoding failed for another reader, which asked for the same content at the same time.
    #[error("{0}")]
    Shared(std::sync::Arc<Error>),
}

/// A result with this module's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Whether the cause is a damaged image.
    pub fn is_damage(&self) -> bool {
        self.exit() == Exit::Damaged
    }

    /// The errno for programs that use the mount. Every kind of damage is EIO.
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
            | Error::Output(_)
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
            Self::WrongKey => "check the password or the key file, which holds 32 raw bytes",
            Self::NoFooter { .. } | Self::CutOff { .. } => {
                "copying or writing the image was interrupted: copy, pull or build it again"
            }
            Self::HeaderCrc | Self::IndexCrc | Self::Index { .. } | Self::Section { .. } => {
                "copy, pull or build the image again"
            }
            Self::NotBfc(_) => {
                "`lxcri-fs build` makes an image from a directory, an archive or an OCI image"
            }
            Self::Unsupported(_) => "a newer version of lxcri-fs may support it",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
