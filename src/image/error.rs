//! What can go wrong with what is done to images.

use std::path::Path;

use crate::error::{Exit, Io, Report};
use crate::{build, fs, registry, serve, store, upper, zfs};

/// An error of what is done to images.
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
    /// What the system refused to do to a path.
    #[error(transparent)]
    Io(#[from] Io),
}

/// A result with this module's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// For `map_err`: an error while doing something to a path.
    pub(super) fn io<E: Into<std::io::Error>>(
        doing: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        move |source| Io::at(doing, path)(source).into()
    }

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
            Error::Secret { .. } => return None,
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
        self.inner().map_or(Exit::Key, Report::exit)
    }

    fn hint(&self) -> Option<String> {
        match self.inner() {
            Some(inner) => inner.hint(),
            None => Some("a password is one line of text, a key file 32 raw bytes".to_owned()),
        }
    }
}
