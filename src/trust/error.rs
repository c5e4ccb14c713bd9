//! Errors of trust.

use std::path::PathBuf;

use crate::error::{Exit, Io, Report};

/// An image is not accepted, or it cannot be decided.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The policy refuses the image.
    #[error("{reference} is refused by the rule {rule:?} of {}: {reason}", policy.display())]
    Refused {
        /// The image.
        reference: String,
        /// The scope of the rule.
        rule: String,
        /// The policy.
        policy: PathBuf,
        /// Why.
        reason: String,
    },
    /// A verifier refuses the image.
    #[error("{reference} is refused by {}: {reason}", program.display())]
    Verifier {
        /// The image.
        reference: String,
        /// The program.
        program: PathBuf,
        /// What it printed, or how it ended.
        reason: String,
    },
    /// A malformed policy.
    #[error("{}: {reason}", path.display())]
    Policy {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// More verifiers than can be asked.
    #[error("{} has more than {limit} verifiers", path.display())]
    TooMany {
        /// The directory.
        path: PathBuf,
        /// How many there may be.
        limit: usize,
    },
    /// The signatures of an image could not be fetched.
    #[error("fetching the signatures of {digest}")]
    Fetch {
        /// The manifest.
        digest: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A system call on a path failed.
    #[error(transparent)]
    Io(#[from] Io),
}

impl Report for Error {
    fn exit(&self) -> Exit {
        match self {
            Error::Refused { .. } | Error::Verifier { .. } => Exit::Untrusted,
            Error::Io(error) => error.exit(),
            _ => Exit::Failure,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Error::Refused { .. } | Error::Policy { .. } => {
                Some("containers-policy.json(5) and docs/REGISTRY.md describe the policy".into())
            }
            Error::Io(error) => error.hint(),
            _ => None,
        }
    }
}

/// A result with this module's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
