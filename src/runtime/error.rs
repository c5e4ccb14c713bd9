//! Errors of containers and hooks.

use crate::error::{Exit, Io, Report};
use crate::{fs, image, serve, store, upper};

/// An error of the runtime side.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An image cannot be opened or read.
    #[error(transparent)]
    Fs(#[from] fs::Error),
    /// Mounting or unmounting.
    #[error(transparent)]
    Serve(#[from] serve::Error),
    /// Mounting an image under an upper.
    #[error(transparent)]
    Upper(#[from] upper::Error),
    /// The image's file, or its password or key.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A system call on a path failed.
    #[error(transparent)]
    Io(#[from] Io),
    /// A JSON document cannot be used.
    #[error("{name}")]
    Document {
        /// What it is, such as "the image's configuration".
        name: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The container runs.
    #[error("{name} is running")]
    Running {
        /// The container's name.
        name: String,
        /// How to stop it.
        stop: String,
        /// What uses it.
        source: serve::Error,
    },
    /// Whoever asked for it refused what it would be.
    #[error("{what}")]
    Refused {
        /// Why.
        what: String,
        /// What to try.
        hint: Option<String>,
    },
    /// The image cannot become the container that was requested.
    #[error("{what}")]
    Unfit {
        /// What does not fit.
        what: String,
        /// What to try.
        hint: Option<String>,
    },
}

/// A result with this module's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Makes a closure for `map_err` that adds which document is wrong.
    pub(crate) fn document(name: impl Into<String>) -> impl FnOnce(serde_json::Error) -> Self {
        move |source| Error::Document {
            name: name.into(),
            source,
        }
    }

    pub(crate) fn unfit(what: impl Into<String>) -> Self {
        Error::Unfit {
            what: what.into(),
            hint: None,
        }
    }
}

impl Report for Error {
    fn exit(&self) -> Exit {
        match self {
            Error::Fs(e) => e.exit(),
            Error::Serve(e) => e.exit(),
            Error::Upper(e) => e.exit(),
            Error::Store(e) => e.exit(),
            Error::Image(e) => e.exit(),
            Error::Io(e) => e.exit(),
            Error::Running { .. } => Exit::Busy,
            _ => Exit::Failure,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Error::Fs(e) => e.hint(),
            Error::Serve(serve::Error::Busy { .. }) => Some("stop the container first".to_owned()),
            Error::Serve(e) => e.hint(),
            Error::Upper(e) => e.hint(),
            Error::Store(e) => e.hint(),
            Error::Image(e) => e.hint(),
            Error::Io(e) => e.hint(),
            Error::Unfit { hint, .. } | Error::Refused { hint, .. } => hint.clone(),
            Error::Running { stop, .. } => Some(stop.clone()),
            _ => None,
        }
    }
}
