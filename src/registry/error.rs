//! What can go wrong with registries.

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};

use reqwest::{StatusCode, Url};

use crate::build;
use crate::error::{Exit, Io, Report};

/// Longest message of a registry that is passed on, characters.
const MAX_MESSAGE: usize = 300;

/// An error of pulling or pushing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not the name of an image.
    #[error("{text:?} is no reference: {reason}")]
    Reference {
        /// As it was given.
        text: String,
        /// What is wrong.
        reason: String,
    },
    /// A request got no answer.
    #[error("asking {url}")]
    Transport {
        /// What was asked, without its query.
        url: String,
        /// Why there was none.
        source: reqwest::Error,
    },
    /// The registry answers, and so slowly that nobody can wait for it.
    #[error("{url} sends less than a kibibyte a second")]
    Slow {
        /// What was asked, without its query.
        url: String,
    },
    /// The registry refused.
    #[error("{url}: {status}{}", colon(message))]
    Status {
        /// What was asked, without its query.
        url: String,
        /// HTTP status.
        status: StatusCode,
        /// What the registry said.
        message: String,
    },
    /// The registry wants to know who asks, or does not let them.
    #[error("{registry} refuses: {reason}")]
    Denied {
        /// The registry.
        registry: String,
        /// What it said.
        reason: String,
    },
    /// The registry breaks the protocol.
    #[error("{url}: {reason}")]
    Protocol {
        /// What was asked, without its query.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// A file with credentials, or a helper that has them.
    #[error("credentials of {from}: {reason}")]
    Credentials {
        /// File or helper.
        from: String,
        /// What is wrong.
        reason: String,
    },
    /// A certificate of `certs.d`.
    #[error("certificate {}: {reason}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The HTTP client cannot be made.
    #[error("preparing connections to {registry}")]
    Client {
        /// The registry.
        registry: String,
        /// Why.
        source: reqwest::Error,
    },
    /// What the system refused to do to a path.
    #[error(transparent)]
    Io(#[from] Io),
    /// The work was given up.
    #[error("given up")]
    Cancelled,
    /// What was fetched is wrong, or the image cannot be read.
    #[error(transparent)]
    Build(#[from] build::Error),
}

fn colon(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}

impl Error {
    /// For `map_err`: an I/O error while doing something to a path.
    pub fn io<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Io::at(doing, path)(source).into()
    }

    /// A request that got no answer.
    pub(super) fn transport(url: &Url, error: reqwest::Error) -> Self {
        Error::Transport {
            url: shown(url),
            source: error.without_url(),
        }
    }

    /// An answer that breaks the protocol.
    pub(super) fn protocol(url: &Url, reason: impl Into<String>) -> Self {
        Error::Protocol {
            url: shown(url),
            reason: reason.into(),
        }
    }

    /// The error of this module that a build failed with, if it did.
    pub fn of_build(error: &build::Error) -> Option<&Self> {
        match error {
            build::Error::Remote { source, .. } => source.downcast_ref(),
            _ => None,
        }
    }

    /// Whether the same work may succeed later: what was fetched so far is then worth keeping.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Transport { .. } | Error::Slow { .. } | Error::Cancelled => true,
            Error::Status { status, .. } => super::retry::is_transient(*status),
            Error::Build(error) => Self::of_build(error).is_some_and(Self::is_transient),
            _ => false,
        }
    }
}

impl Report for Error {
    fn exit(&self) -> Exit {
        match self {
            Error::Reference { .. } => Exit::Usage,
            Error::Denied { .. } | Error::Credentials { .. } => Exit::Key,
            Error::Status { status, .. } if *status == StatusCode::NOT_FOUND => Exit::NotFound,
            Error::Io(e) => e.exit(),
            Error::Build(e) => e.exit(),
            _ => Exit::Failure,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Error::Denied { registry, .. } => Some(format!(
                "log in with `podman login {registry}` or `docker login {registry}`; and is the \
                 name right?"
            )),
            Error::Transport { source, .. } if is_certificate(source) => Some(
                "put its CA into /etc/containers/certs.d/HOST[:PORT]/ca.crt, or say `insecure = \
                 true` of it in the configuration"
                    .into(),
            ),
            Error::Transport { source, .. } if source.is_connect() => Some(
                "is its name right, and is a proxy needed? of one that speaks plain HTTP say \
                 `insecure = true` in the configuration"
                    .into(),
            ),
            Error::Slow { .. } => Some(
                "what was fetched is kept for some days: the same command goes on from there"
                    .into(),
            ),
            Error::Client { .. } => Some(
                "install the package ca-certificates, or put the registry's CA into certs.d".into(),
            ),
            Error::Reference { .. } => Some(
                "such as nginx, nginx:1.27, or registry.example.org:5000/team/app@sha256:…".into(),
            ),
            Error::Io(error) => error.hint(),
            Error::Build(error) => error.hint(),
            _ => None,
        }
    }
}

fn is_certificate(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if matches!(
            error.downcast_ref(),
            Some(rustls::Error::InvalidCertificate(_))
        ) {
            return true;
        }
        // The source of an I/O error is not what is in it, but what is behind that.
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        cause = inner
            .map(|e| e as &(dyn StdError + 'static))
            .or_else(|| error.source());
    }
    false
}

/// A URL without what may be secret in it.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    let _ = url.set_password(None);
    let _ = url.set_username("");
    url.into()
}

/// What a stranger said, short and unable to drive a terminal.
pub(super) fn harmless(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_MESSAGE)
        .collect::<String>()
        .trim()
        .to_owned()
}

/// A result with this module's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
