//! What can go wrong with an upper.

use std::io;
use std::path::{Path, PathBuf};

use crate::serve::users::User;
use crate::{build, fs, serve, zfs};

/// An error of an upper.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on a path failed.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was being done, such as "making the directory".
        doing: &'static str,
        /// To which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The image's mount.
    #[error(transparent)]
    Serve(#[from] serve::Error),
    /// What is written cannot be read.
    #[error(transparent)]
    Build(#[from] build::Error),
    /// The image.
    #[error(transparent)]
    Fs(#[from] fs::Error),
    /// The dataset.
    #[error(transparent)]
    Zfs(#[from] zfs::Error),
    /// The dataset has a property that an upper cannot have.
    #[error("{dataset} cannot be an upper: it {reason}")]
    Unfit {
        /// The dataset.
        dataset: zfs::Dataset,
        /// The property.
        property: &'static str,
        /// What follows from it.
        reason: &'static str,
    },
    /// This process has no right to mount.
    #[error("an upper or mapped ids need the right to mount, which this user does not have")]
    NotAllowed,
    /// There is no upper.
    #[error("{} {reason}", path.display())]
    NoUpper {
        /// Where it should be.
        path: PathBuf,
        /// What there is instead.
        reason: &'static str,
    },
    /// An upper that is in use.
    #[error("{} is being written to{}", path.display(), users.first().map(|user| format!(" by {user}")).unwrap_or_default())]
    Busy {
        /// The upper's directory, or where it is mounted.
        path: PathBuf,
        /// By whom; empty when that could not be found out.
        users: Vec<User>,
    },
    /// It is in a directory, which has no snapshots.
    #[error("{} is not a ZFS dataset, and has no snapshots", path.display())]
    NoSnapshots {
        /// The upper's directory.
        path: PathBuf,
    },
    /// The dataset cannot be rolled back while it is mounted.
    #[error("what is written to {dataset} is mounted {place}")]
    Mounted {
        /// The dataset.
        dataset: zfs::Dataset,
        /// Where.
        place: String,
        /// Whether it could be unmounted and mounted again.
        remount: bool,
    },
    /// Snapshots that were taken since would be lost.
    #[error("{snapshot} has younger snapshots: {}", younger.join(", "))]
    NewerSnapshots {
        /// Where to go back to.
        snapshot: zfs::Snapshot,
        /// Their names.
        younger: Vec<String>,
        /// A dataset that was cloned from one of them.
        clone: Option<zfs::Dataset>,
    },
    /// The dataset went back to where it belonged to something else.
    #[error("rolled back to {snapshot}, which does not belong to what was mounted on {}", mountpoint.display())]
    NotRemounted {
        /// The snapshot.
        snapshot: zfs::Snapshot,
        /// Where it was mounted.
        mountpoint: PathBuf,
    },
    /// What was unmounted for a rollback could not be mounted again.
    #[error("nothing is mounted on {} any more", mountpoint.display())]
    LeftUnmounted {
        /// Where it was mounted.
        mountpoint: PathBuf,
        /// What failed.
        source: Box<Error>,
    },
    /// Nothing can be written there in overlayfs's way.
    #[error("{} cannot be an upper: {reason}", path.display())]
    Unusable {
        /// The upper's directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// It belongs to something else than what is to be mounted with it.
    #[error("{} belongs to {recorded}, not to {wanted}", path.display())]
    Foreign {
        /// The upper's directory.
        path: PathBuf,
        /// What it was mounted with before.
        recorded: String,
        /// What it is to be mounted with.
        wanted: String,
    },
    /// There is something in a directory that is to become an upper.
    #[error("{} {reason}", path.display())]
    Occupied {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// It was written with an index, there can be none here, and it cannot be completed.
    #[error("{} was written before Linux 6.16, and {} cannot be given what overlayfs's index has for it", path.display(), name.display())]
    Index {
        /// The upper's directory.
        path: PathBuf,
        /// The name of the file in it.
        name: PathBuf,
    },
    /// It is mounted.
    #[error("{} is in use{}", path.display(), mountpoint.as_ref().map(|m| format!(" by what is mounted on {}", m.display())).unwrap_or_default())]
    InUse {
        /// The upper's directory.
        path: PathBuf,
        /// Where; `None` when it is in another mount namespace.
        mountpoint: Option<PathBuf>,
    },
    /// The kernel would not mount the overlay.
    #[error("overlayfs cannot use {}{}", path.display(), if said.is_empty() { String::new() } else { format!(" ({said})") })]
    Refused {
        /// The upper's directory.
        path: PathBuf,
        /// What the kernel had to say about it.
        said: String,
        /// Its error.
        source: io::Error,
    },
    /// The record beside the upper cannot be understood.
    #[error("{} is no record of an upper", path.display())]
    Record {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// A result with this module's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// For `map_err`: an error while doing something to a path.
    pub(super) fn io<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Error::Io { doing, path: path.to_owned(), source: source.into() }
    }
}
