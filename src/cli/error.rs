//! How commands fail: with a cause, a hint, and an exit code.

use std::path::PathBuf;

pub use crate::error::Exit;
use crate::error::{Io, Report};
use crate::{build, fs, image, registry, runtime, serve, store, upper, zfs};

/// Shown by `--help`.
pub(super) const EXIT_CODES: &str = "Exit codes: 0 success, 1 failure, 2 wrong usage, 3 an image \
                                     is damaged or no image, 4 a password, key or login is missing \
                                     or wrong, 5 something named does not exist, 6 something is in \
                                     use, 7 containers are behind (`containers --outdated`), 8 a \
                                     policy or a verifier does not accept an image.";

/// A failed command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An image cannot be opened or read.
    #[error(transparent)]
    Fs(#[from] fs::Error),
    /// Building or exporting.
    #[error(transparent)]
    Build(#[from] build::Error),
    /// Pulling, building or changing images.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// Mounting, serving or unmounting.
    #[error(transparent)]
    Serve(#[from] serve::Error),
    /// Uppers.
    #[error(transparent)]
    Upper(#[from] upper::Error),
    /// Datasets and snapshots.
    #[error(transparent)]
    Zfs(#[from] zfs::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Containers.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// A system call on a path failed.
    #[error(transparent)]
    Io(#[from] Io),
    /// An error at a path in an image.
    #[error("{}: {source}", path.display())]
    InImage {
        /// The path.
        path: PathBuf,
        /// What is wrong.
        source: fs::Error,
    },
    /// Writing to standard output.
    #[error("writing the output")]
    Output(#[source] std::io::Error),
    /// Anything else, with its exit code.
    #[error("{message}")]
    Other {
        /// What went wrong.
        message: String,
        /// What to try.
        hint: Option<String>,
        /// Exit code.
        exit: Exit,
    },
}

impl From<registry::Error> for Error {
    fn from(error: registry::Error) -> Self {
        Error::Image(error.into())
    }
}

impl Error {
    /// The error of another module, if this wraps one.
    fn inner(&self) -> Option<&dyn Report> {
        Some(match self {
            Error::Fs(e) | Error::InImage { source: e, .. } => e,
            Error::Build(e) => e,
            Error::Image(e) => e,
            Error::Serve(e) => e,
            Error::Upper(e) => e,
            Error::Zfs(e) => e,
            Error::Store(e) => e,
            Error::Runtime(e) => e,
            Error::Io(e) => e,
            Error::Other { .. } | Error::Output(_) => return None,
        })
    }
}

impl Report for Error {
    fn exit(&self) -> Exit {
        match self {
            Error::Other { exit, .. } => *exit,
            other => other.inner().map_or(Exit::Failure, Report::exit),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Error::Other { hint, .. } => hint.clone(),
            other => other.inner().and_then(Report::hint),
        }
    }
}
