//! What can go wrong in a store.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Exit, Io, Report};
use crate::{fs, serve, upper, zfs};

/// An error of the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What the system refused to do to a path.
    #[error(transparent)]
    Io(#[from] Io),
    /// The configuration is wrong.
    #[error(
        "{}{}: {reason}",
        path.display(),
        line.map(|n| format!(", line {n}")).unwrap_or_default()
    )]
    Config {
        /// The file.
        path: PathBuf,
        /// Where in it, from 1.
        line: Option<usize>,
        /// What is wrong.
        reason: String,
    },
    /// Something that does not say where a store is.
    #[error("{text:?} is not a store: {reason}")]
    Location {
        /// As it was given.
        text: String,
        /// What is wrong.
        reason: String,
    },
    /// Something that is no reference.
    #[error("{text:?} is not the name of an image: {reason}")]
    Reference {
        /// As it was given.
        text: String,
        /// What is wrong.
        reason: String,
    },
    /// A name that cannot be a directory's or dataset's.
    #[error("the name {name:?} cannot be used: {reason}")]
    Name {
        /// As it was given.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// There is no such thing in the store.
    #[error("there is no {kind} {name} in the store {store}")]
    NotFound {
        /// `image` or `container`.
        kind: &'static str,
        /// As it was asked for.
        name: String,
        /// The store.
        store: String,
    },
    /// There is one already.
    #[error("there is a {kind} {name} already in the store {store}")]
    Exists {
        /// `image` or `container`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The store.
        store: String,
    },
    /// A digest's beginning that several images have.
    #[error("{text} may be any of {}", names.join(", "))]
    Ambiguous {
        /// As it was given.
        text: String,
        /// The images.
        names: Vec<String>,
    },
    /// It cannot be removed as long as it is used.
    #[error("{kind} {name} is in use: {}", users.join(", "))]
    InUse {
        /// `image` or `container`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// By what, such as "mounted on /mnt".
        users: Vec<String>,
    },
    /// What is in a store never changes.
    #[error("{} is not changed: {why}", path.display())]
    Kept {
        /// As it was named.
        path: PathBuf,
        /// How it is known to be one of a store's.
        why: String,
    },
    /// An image's facts do not parse.
    #[error("{}: {reason}", path.display())]
    Facts {
        /// The file that says them.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An image cannot be read.
    #[error(transparent)]
    Fs(#[from] fs::Error),
    /// What concerns datasets and snapshots.
    #[error(transparent)]
    Zfs(#[from] zfs::Error),
    /// What a container wrote.
    #[error(transparent)]
    Upper(#[from] Box<upper::Error>),
    /// What is mounted could not be found out.
    #[error(transparent)]
    Serve(#[from] serve::Error),
}

impl From<upper::Error> for Error {
    fn from(error: upper::Error) -> Self {
        match error {
            upper::Error::Zfs(error) => Error::Zfs(error),
            error => Error::Upper(Box::new(error)),
        }
    }
}

impl Error {
    /// Whether something cannot be reached: it is on a dataset that is not mounted, and nothing is
    /// known of it.
    pub fn is_out_of_reach(&self) -> bool {
        matches!(self, Error::Zfs(error) if error.is_out_of_reach())
    }

    /// Whether something was read, and is not what it has to be. Everything else may be well as
    /// soon as it can be read.
    pub fn is_wrong(&self) -> bool {
        match self {
            Error::Facts { .. } => true,
            Error::Io(e) => e.kind() == io::ErrorKind::NotFound,
            Error::Fs(fs::Error::Image { source, .. }) => {
                !matches!(source, bfc::Error::Read { .. } | bfc::Error::Unsupported(_))
            }
            _ => false,
        }
    }

    /// For `map_err`: an I/O error while doing something to a path.
    pub fn io<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Io::at(doing, path)(source).into()
    }
}

/// A result with this module's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Report for Error {
    fn exit(&self) -> Exit {
        match self {
            Error::NotFound { .. } => Exit::NotFound,
            Error::Io(e) => e.exit(),
            Error::InUse { .. } | Error::Kept { .. } => Exit::Busy,
            Error::Fs(e) => e.exit(),
            Error::Serve(e) => e.exit(),
            Error::Zfs(e) => e.exit(),
            Error::Facts { .. } => Exit::Damaged,
            Error::Location { .. }
            | Error::Reference { .. }
            | Error::Name { .. }
            | Error::Ambiguous { .. } => Exit::Usage,
            _ => Exit::Failure,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Fs(e) => return e.hint(),
            Error::Serve(e) => return e.hint(),
            Error::Zfs(e) => return e.hint(),
            Error::NotFound { kind: "image", .. } => {
                "`lxcri-fs list` shows what there is; what is a file may be written ./FILE"
            }
            Error::Location { .. } => "such as dir:/var/lib/lxcri-fs or zfs:tank/containers",
            Error::Reference { .. } => {
                "such as nginx:1.27, or registry.example.org/team/app:v2; what is a file may be \
                 written ./FILE"
            }
            Error::Config { .. } => "docs/CONFIGURATION.md describes every setting",
            Error::Ambiguous { .. } => "give more digits",
            Error::Kept { .. } => {
                "-t NEW puts another image into the store, and leaves this one as it is; -o NEW \
                 makes a file of it"
            }
            Error::InUse {
                kind: "container", ..
            } => {
                "`zfs rename` moves a dataset elsewhere, `zfs destroy` removes it; what is mounted \
                 can be unmounted"
            }
            Error::Facts { .. } => "`lxcri-fs doctor` tells more",
            Error::Io(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                "the store of the machine is root's; another is given by --store or LXCRI_FS_STORE"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
