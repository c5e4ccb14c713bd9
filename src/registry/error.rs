//! Errors of registries.

use std::time::Duration;

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use reqwest::{StatusCode, Url};

use crate::error::{Exit, Io, Report};
use crate::{build, trust};

/// Longest part of a registry's message that is shown, in characters.
const MAX_MESSAGE: usize = 300;

/// An error of pulling or pushing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An invalid reference.
    #[error("{text:?} is not a reference: {reason}")]
    Reference {
        /// As it was given.
        text: String,
        /// What is wrong.
        reason: String,
    },
    /// A request got no response.
    #[error("requesting {url}")]
    Transport {
        /// The URL without its query.
        url: String,
        /// Why there was no response.
        source: reqwest::Error,
    },
    /// The registry sends its response too slowly.
    #[error("{url} sends less than 1 KiB per second")]
    Slow {
        /// The URL without its query.
        url: String,
    },
    /// The registry refused.
    #[error("{url}: {status}{}", colon(message))]
    Status {
        /// The URL without its query.
        url: String,
        /// HTTP status.
        status: StatusCode,
        /// The registry's message.
        message: String,
        /// How long to wait before another try, if it says that.
        retry_after: Option<Duration>,
    },
    /// The registry requires a login, or denies access.
    #[error("{registry} denies access: {reason}")]
    Denied {
        /// The registry.
        registry: String,
        /// The registry's message.
        reason: String,
    },
    /// The registry does not accept a name and a password.
    #[error("{registry} does not accept this name and password: {reason}")]
    Login {
        /// The registry, or the repository of one.
        registry: String,
        /// The registry's message.
        reason: String,
    },
    /// An invalid user name.
    #[error("{0:?} is not a user name: it is empty, or has a colon")]
    UserName(String),
    /// There are no credentials to remove.
    #[error("not logged in to {registry}: {} has no credentials for it", file.display())]
    NotLoggedIn {
        /// The registry, or the repository of one.
        registry: String,
        /// The file that `logout` changes.
        file: PathBuf,
        /// Another file that has credentials for it.
        other: Option<PathBuf>,
    },
    /// An invalid name of a registry.
    #[error("{text:?} is not the name of a registry: {reason}")]
    Registry {
        /// As it was given.
        text: String,
        /// What is wrong.
        reason: String,
    },
    /// The registry's response violates the protocol.
    #[error("{url}: {reason}")]
    Protocol {
        /// The URL without its query.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// A file with credentials, or a credential helper, cannot be used.
    #[error("credentials of {from}: {reason}")]
    Credentials {
        /// File or helper.
        from: String,
        /// What is wrong.
        reason: String,
    },
    /// A malformed registries.conf.
    #[error("{}{}: {reason}", path.display(), at_line(*line))]
    RegistriesConf {
        /// The file.
        path: PathBuf,
        /// The line in it, from 1.
        line: Option<usize>,
        /// What is wrong.
        reason: String,
    },
    /// registries.conf blocks the registry, or a part of it.
    #[error("{name} is blocked by {}", file.display())]
    Blocked {
        /// The image's name.
        name: String,
        /// The file that says so.
        file: PathBuf,
    },
    /// A certificate of `certs.d`.
    #[error("certificate {}: {reason}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The HTTP client could not be created.
    #[error("preparing connections to {registry}")]
    Client {
        /// The registry.
        registry: String,
        /// Why.
        source: reqwest::Error,
    },
    /// A system call on a path failed.
    #[error(transparent)]
    Io(#[from] Io),
    /// The work was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The image is not accepted.
    #[error(transparent)]
    Trust(#[from] trust::Error),
    /// What was fetched is wrong, or the image cannot be read.
    #[error(transparent)]
    Build(#[from] build::Error),
}

fn at_line(line: Option<usize>) -> String {
    line.map(|line| format!(", line {line}"))
        .unwrap_or_default()
}

fn colon(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}

impl Error {
    /// An error for a request without a response.
    pub(super) fn transport(url: &Url, error: reqwest::Error) -> Self {
        Error::Transport {
            url: shown(url),
            source: error.without_url(),
        }
    }

    /// An error for a response that violates the protocol.
    pub(super) fn protocol(url: &Url, reason: impl Into<String>) -> Self {
        Error::Protocol {
            url: shown(url),
            reason: reason.into(),
        }
    }

    /// The error of this module that made a build fail, if any.
    pub fn of_build(error: &build::Error) -> Option<&Self> {
        match error {
            build::Error::Remote { source, .. } => source.downcast_ref(),
            _ => None,
        }
    }

    /// Whether a retry may succeed later, so that what was fetched is worth keeping.
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
            Error::Reference { .. } | Error::Registry { .. } | Error::UserName(_) => Exit::Usage,
            Error::Denied { .. } | Error::Login { .. } | Error::Credentials { .. } => Exit::Key,
            Error::NotLoggedIn { .. } => Exit::NotFound,
            Error::Status { status, .. } if *status == StatusCode::NOT_FOUND => Exit::NotFound,
            Error::Io(e) => e.exit(),
            Error::Build(e) => e.exit(),
            Error::Trust(e) => e.exit(),
            _ => Exit::Failure,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Error::Denied { registry, .. } => Some(format!(
                "check the image's name, and log in with `lxcri-fs login {registry}`"
            )),
            Error::NotLoggedIn { other, .. } => other.as_ref().map(|path| {
                format!(
                    "{} has some, which the program that wrote it removes; `--authfile` names a \
                     file to change",
                    path.display()
                )
            }),
            Error::Registry { .. } => {
                Some("write registry.example.org, localhost:5000 or docker.io".into())
            }
            Error::Transport { source, .. } if is_certificate(source) => Some(
                "put the registry's CA into /etc/containers/certs.d/HOST[:PORT]/ca.crt, or set \
                 `insecure = true` for it in the configuration, or give --tls-verify=false"
                    .into(),
            ),
            Error::Transport { source, .. } if source.is_connect() => Some(
                "check the registry's name, and whether a proxy is needed; for a registry that \
                 speaks plain HTTP, set `insecure = true` in the configuration, or give \
                 --tls-verify=false"
                    .into(),
            ),
            Error::RegistriesConf { .. } => Some(
                "containers-registries.conf(5) describes the file, which podman and skopeo read too"
                    .into(),
            ),
            Error::Slow { .. } => Some(
                "repeat the command: it continues with what was fetched, which is kept for some \
                 days"
                    .into(),
            ),
            Error::Client { .. } => Some(
                "install the package ca-certificates, or put the registry's CA into certs.d".into(),
            ),
            Error::Reference { .. } => Some(
                "write nginx, nginx:1.27, or registry.example.org:5000/team/app@sha256:…".into(),
            ),
            Error::Io(error) => error.hint(),
            Error::Build(error) => error.hint(),
            Error::Trust(error) => error.hint(),
            _ => None,
        }
    }
}

/// Whether a connection failed because of the server's certificate.
pub(super) fn is_certificate(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if matches!(
            error.downcast_ref(),
            Some(rustls::Error::InvalidCertificate(_))
        ) {
            return true;
        }
        // The `source` of an I/O error skips the error that it wraps, which `get_ref` returns.
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        cause = inner
            .map(|e| e as &(dyn StdError + 'static))
            .or_else(|| error.source());
    }
    false
}

/// A URL without parts that may be secret.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    let _ = url.set_password(None);
    let _ = url.set_username("");
    url.into()
}

/// Untrusted text, shortened and without control characters.
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
