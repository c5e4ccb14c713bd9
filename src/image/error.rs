//! Errors of the operations on images.

use std::path::PathBuf;

use crate::error::{Exit, Io, Report};
use crate::{build, fs, registry, serve, store, upper, zfs};

/// An error of an operation on images.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An image cannot be opened or read.
    #[error(transparent)]
    Fs(#[from] fs::Error),
    /// Building.
    #[error(transparent)]
    Build(#[from] build::Error),
    /// Pulling.
    #[error(transparent)]
    Registry(registry::Error),
    /// Mounting.
    #[error(transparent)]
    Serve(#[from] serve::Error),
    /// Mounting under an upper.
    #[error(transparent)]
    Upper(#[from] upper::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The dataset that an image is in.
    #[error(transparent)]
    Zfs(#[from] zfs::Error),
    /// A password or key that cannot be used.
    #[error("{what}")]
    Secret {
        /// What is wrong.
        what: String,
        /// Why.
        source: Option<bfc::Error>,
    },
    /// Another layer would turn it into another image, which its uppers would not fit.
    #[error(
        "{} would become another image, which uppers written over it would no longer fit: {}",
        image.display(),
        uppers.join(", ")
    )]
    WouldNotFit {
        /// The image.
        image: PathBuf,
        /// The uppers.
        uppers: Vec<String>,
    },
    /// There are several images, so there is no single one to append to.
    #[error("the upper was written over several images, so there is no single image to append to")]
    Several,
    /// The upper was written over a subdirectory, but a layer belongs to a whole root file system.
    #[error("what was written over a subdirectory of an image cannot become a layer of that image")]
    Subdirectory,
    /// An upper that cannot be moved to another image.
    #[error("{} {why}: it cannot be moved to another image", path.display())]
    NotRebased {
        /// The upper's directory.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A directory given as a source is not a layer, but has one in it.
    #[error("{} is the directory of an upper, not a layer", .0.display())]
    IsUpper(PathBuf),
    /// Two sources are standard input.
    #[error("only one source can be standard input")]
    StdinTwice,
    /// A system call on a path failed.
    #[error(transparent)]
    Io(#[from] Io),
}

/// A result with this module's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    fn inner(&self) -> Option<&dyn Report> {
        Some(match self {
            Error::Fs(e) => e,
            Error::Build(e) => e,
            Error::Registry(e) => e,
            Error::Serve(e) => e,
            Error::Upper(e) => e,
            Error::Store(e) => e,
            Error::Zfs(e) => e,
            Error::Io(e) => e,
            Error::Secret { .. }
            | Error::WouldNotFit { .. }
            | Error::Several
            | Error::Subdirectory
            | Error::NotRebased { .. }
            | Error::IsUpper(_)
            | Error::StdinTwice => return None,
        })
    }
}

impl From<registry::Error> for Error {
    fn from(error: registry::Error) -> Self {
        match error {
            registry::Error::Build(error) => Error::Build(error),
            error => Error::Registry(error),
        }
    }
}

impl Report for Error {
    fn exit(&self) -> Exit {
        match self {
            Error::Secret { .. } => Exit::Key,
            Error::WouldNotFit { .. } => Exit::Busy,
            Error::Several | Error::IsUpper(_) | Error::StdinTwice => Exit::Usage,
            other => other.inner().map_or(Exit::Failure, Report::exit),
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Secret { .. } => "a password is one line of text; a key file holds 32 raw bytes",
            Error::WouldNotFit { .. } => {
                "make a new image with -t; `append --force` and `commit --in-place --force` change \
                 this one anyway"
            }
            Error::Several => "make a new image with -o or -t",
            Error::Subdirectory => {
                "`lxcri-fs build dir:DIR -o FILE`, with the directory it is mounted on, makes an \
                 image of everything the mount shows"
            }
            Error::NotRebased { .. } => {
                "`lxcri-fs commit` makes one image of what it shows, over which a new upper begins"
            }
            Error::IsUpper(_) => {
                "`lxcri-fs commit` makes a layer of what was written over an image; the directory \
                 `upper` in this one has the files"
            }
            Error::StdinTwice => "write the others to files",
            other => return other.inner().and_then(Report::hint),
        };
        Some(hint.to_owned())
    }
}
