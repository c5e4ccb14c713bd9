//! What can go wrong in building.

use std::io;
use std::path::{Path, PathBuf};

use crate::fs;
use crate::layer::{self, merge, tar};

/// An error of building or exporting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file operation.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was being done, such as "opening".
        doing: &'static str,
        /// To which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A layer is wrong.
    #[error("layer {name}")]
    Layer {
        /// The layer, as its source names it.
        name: String,
        /// What is wrong.
        source: layer::Error,
    },
    /// A layer's change cannot be made.
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
        /// What the decompressor said.
        source: io::Error,
    },
    /// A blob is not what its descriptor says.
    #[error("{name}: {reason}")]
    Mismatch {
        /// The blob or layer.
        name: String,
        /// What differs.
        reason: Mismatch,
    },
    /// A document of the source does not parse, or is not there.
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
    /// Something could not be fetched.
    #[error("fetching {name}")]
    Remote {
        /// What.
        name: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An archive around an image is no tar.
    #[error("archive {}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        source: tar::Error,
    },
    /// An image that is a source, or is exported.
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
    #[error("it has {found} bytes, its descriptor says {wanted}")]
    Size {
        /// Length that was found.
        found: u64,
        /// Length of the descriptor.
        wanted: u64,
    },
    /// Another digest.
    #[error("its digest is {found}, its descriptor says {wanted}")]
    Digest {
        /// Digest that was found.
        found: String,
        /// Digest of the descriptor.
        wanted: String,
    },
    /// Another diff_id.
    #[error("unpacked, its digest is {found}, the image's configuration says {wanted}")]
    DiffId {
        /// Digest that was found.
        found: String,
        /// diff_id of the configuration.
        wanted: String,
    },
}

impl Error {
    /// For `map_err`: an I/O error while doing something to a path.
    pub fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Error::Io { doing, path: path.to_owned(), source }
    }

    /// A document that is wrong.
    pub fn document(document: impl Into<String>, reason: impl ToString) -> Self {
        Error::Document { document: document.into(), reason: reason.to_string() }
    }
}

/// A result with this module's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
