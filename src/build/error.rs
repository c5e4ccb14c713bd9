//! Errors of building and exporting.

use std::io;
use std::path::PathBuf;

use crate::erofs;
use crate::error::{Exit, Io, Report};
use crate::fs;
use crate::layer::{self, merge, tar};

/// An error of building or exporting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on a path failed.
    #[error(transparent)]
    Io(#[from] Io),
    /// A layer is wrong.
    #[error("layer {name}")]
    Layer {
        /// The layer, as its source names it.
        name: String,
        /// What is wrong.
        source: layer::Error,
    },
    /// A layer cannot be applied.
    #[error("merging layer {name}")]
    Merge {
        /// The layer, as its source names it.
        name: String,
        /// Which change.
        source: merge::Error,
    },
    /// A compressed layer cannot be decompressed.
    #[error("decompressing {name}")]
    Decompress {
        /// The blob or layer.
        name: String,
        /// The decompressor's error.
        source: io::Error,
    },
    /// EROFS metadata of an image cannot be made.
    #[error(transparent)]
    Erofs(#[from] erofs::Error),
    /// A blob is not what its descriptor says.
    #[error("{name}: {reason}")]
    Mismatch {
        /// The blob or layer.
        name: String,
        /// What differs.
        reason: Mismatch,
    },
    /// A document of the source does not parse, or is missing.
    #[error("{document}: {reason}")]
    Document {
        /// Which one.
        document: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A source that cannot be used.
    #[error("{name}: {reason}")]
    Source {
        /// As it was given.
        name: String,
        /// What is wrong.
        reason: String,
        /// What to try.
        hint: Option<String>,
    },
    /// A source has no such image.
    #[error("{name}: {reason}")]
    NoImage {
        /// As it was given.
        name: String,
        /// What it lacks.
        reason: String,
        /// What to try.
        hint: Option<String>,
    },
    /// There is no file or directory of this name.
    #[error("{name}: there is no such file or directory")]
    NoSource {
        /// As it was given.
        name: String,
        /// What to try.
        hint: Option<String>,
    },
    /// Something could not be fetched.
    #[error("fetching {name}")]
    Remote {
        /// What.
        name: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
        /// The exit code of that.
        exit: Exit,
        /// What to try.
        hint: Option<String>,
    },
    /// The archive of an image is not a valid tar.
    #[error("archive {}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        source: tar::Error,
    },
    /// The image that is a source or is exported cannot be read.
    #[error(transparent)]
    Fs(#[from] fs::Error),
    /// Writing the image.
    #[error("writing {}", path.display())]
    Image {
        /// The image.
        path: PathBuf,
        /// What went wrong.
        source: bfc::Error,
    },
}

/// How a blob differs from its descriptor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Another length.
    #[error("it has {found} bytes, but its descriptor says {wanted}")]
    Size {
        /// Length that was found.
        found: u64,
        /// Length of the descriptor.
        wanted: u64,
    },
    /// Another digest.
    #[error("its digest is {found}, but its descriptor says {wanted}")]
    Digest {
        /// Digest that was found.
        found: String,
        /// Digest of the descriptor.
        wanted: String,
    },
    /// Another diff_id.
    #[error("its digest when unpacked is {found}, but the image's configuration says {wanted}")]
    DiffId {
        /// Digest that was found.
        found: String,
        /// diff_id of the configuration.
        wanted: String,
    },
}

impl Error {
    /// An error for something that could not be fetched.
    pub fn remote(name: impl Into<String>, why: impl Report + Send + Sync + 'static) -> Self {
        let (exit, hint) = (why.exit(), why.hint());
        Error::Remote {
            name: name.into(),
            source: Box::new(why),
            exit,
            hint,
        }
    }

    /// An error for a wrong document.
    pub fn document(document: impl Into<String>, reason: impl ToString) -> Self {
        Error::Document {
            document: document.into(),
            reason: reason.to_string(),
        }
    }
}

/// A result with this module's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Report for Error {
    fn exit(&self) -> Exit {
        match self {
            Error::Io(e) => e.exit(),
            Error::Fs(e) => e.exit(),
            Error::Erofs(e) => e.exit(),
            Error::Remote { exit, .. } => *exit,
            Error::NoSource { .. } | Error::NoImage { .. } => Exit::NotFound,
            Error::Layer {
                source: layer::Error::Tar(_) | layer::Error::Entry(_) | layer::Error::Skeleton(_),
                ..
            }
            | Error::Merge { .. }
            | Error::Decompress { .. }
            | Error::Mismatch { .. }
            | Error::Document { .. }
            | Error::Archive { .. } => Exit::Damaged,
            _ => Exit::Failure,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Error::Io(e) => e.hint(),
            Error::Fs(e) => e.hint(),
            Error::Erofs(e) => e.hint(),
            Error::Source { hint, .. }
            | Error::NoSource { hint, .. }
            | Error::NoImage { hint, .. }
            | Error::Remote { hint, .. } => hint.clone(),
            _ => None,
        }
    }
}
