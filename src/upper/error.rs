//! What can go wrong with an upper.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Exit, Io, Report};
use crate::sys::users::User;
use crate::{build, fs, serve, zfs};

/// An error of an upper.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What the system refused to do to a path.
    #[error(transparent)]
    Io(#[from] Io),
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
    #[error(
        "{} is being written to{}",
        path.display(),
        users.first().map(|user| format!(" by {user}")).unwrap_or_default()
    )]
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
    #[error(
        "rolled back to {snapshot}, which does not belong to what was mounted on {}",
        mountpoint.display()
    )]
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
    #[error(
        "{} was written before Linux 6.16, and {} cannot be given what overlayfs's index has \
         for it",
        path.display(),
        name.display()
    )]
    Index {
        /// The upper's directory.
        path: PathBuf,
        /// The name of the file in it.
        name: PathBuf,
    },
    /// It is mounted.
    #[error(
        "{} is in use{}",
        path.display(),
        mountpoint
            .as_ref()
            .map(|m| format!(" by what is mounted on {}", m.display()))
            .unwrap_or_default()
    )]
    InUse {
        /// The upper's directory.
        path: PathBuf,
        /// Where; `None` when it is in another mount namespace.
        mountpoint: Option<PathBuf>,
    },
    /// The kernel would not mount the overlay.
    #[error(
        "overlayfs cannot use {}{}",
        path.display(),
        if said.is_empty() { String::new() } else { format!(" ({said})") }
    )]
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
    pub(super) fn io<E: Into<io::Error>>(
        doing: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        move |source| Io::at(doing, path)(source).into()
    }
}

impl Report for Error {
    fn exit(&self) -> Exit {
        match self {
            Error::Serve(e) => e.exit(),
            Error::Fs(e) => e.exit(),
            Error::Zfs(e) => e.exit(),
            Error::Build(e) => e.exit(),
            Error::LeftUnmounted { source, .. } => source.exit(),
            Error::NoUpper { .. } => Exit::NotFound,
            Error::InUse { .. }
            | Error::Mounted { .. }
            | Error::NewerSnapshots { .. }
            | Error::Busy { .. } => Exit::Busy,
            Error::Io(e) => e.exit(),
            _ => Exit::Failure,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Serve(e) => return e.hint(),
            Error::Fs(e) | Error::Build(build::Error::Fs(e)) => return e.hint(),
            Error::Build(build::Error::Source { hint, .. }) => return hint.clone(),
            Error::NotAllowed => {
                "run it as root, or in a user namespace of your own (`unshare -rm`)"
            }
            Error::NoUpper { .. } => {
                "name the directory that was given to `mount --upper`, or what is mounted over it"
            }
            Error::Busy { .. } => {
                "unmount it first, or keep it on ZFS, where a snapshot is taken of it"
            }
            Error::Zfs(e) => return e.hint(),
            Error::Unfit {
                property: property @ ("xattr" | "acltype"),
                dataset,
                ..
            } => {
                let value = if *property == "xattr" {
                    "sa"
                } else {
                    "posixacl"
                };
                return Some(format!("`zfs set {property}={value} {dataset}`"));
            }
            Error::NoSnapshots { .. } => {
                "copy the directory while it is not mounted, or begin with `--upper zfs:DATASET` \
                 next time"
            }
            Error::Mounted { remount: true, .. } => {
                "unmount it, or have --force unmount it and mount it again"
            }
            Error::Mounted { .. } => "unmount it",
            Error::NewerSnapshots {
                clone: Some(clone), ..
            } => {
                return Some(format!(
                    "{clone} was cloned from one of them: `zfs promote {clone}` takes it along"
                ));
            }
            Error::NewerSnapshots { .. } => "--destroy-newer destroys them",
            Error::LeftUnmounted { .. } | Error::NotRemounted { .. } => {
                "`lxcri-fs mount` mounts it with the image that it belongs to"
            }
            Error::Unfit { .. } => {
                "this cannot be changed: have `lxcri-fs mount` make another dataset"
            }
            Error::Occupied { .. } => {
                "take an empty directory, or one that is not there yet; an upper that was copied \
                 is whole with its lxcri-fs.json"
            }
            Error::Index { .. } => {
                "`lxcri-fs commit` makes an image with all that was written, and a new upper over \
                 that goes on from there"
            }
            Error::Unusable { .. } => {
                "use a directory on a local file system, such as ext4, XFS, btrfs, tmpfs, or ZFS \
                 2.2 or later"
            }
            Error::Foreign { .. } => {
                "mount it with what it belongs to, or take another directory; `lxcri-fs commit` \
                 makes an image of both"
            }
            Error::InUse { .. } => {
                "each mount needs an upper of its own; `lxcri-fs ps` shows who has this one"
            }
            Error::Refused { source, .. } if source.raw_os_error() == Some(libc::ESTALE) => {
                "its work directory belongs to another upper: if it was copied here, remove `work` \
                 and mount again"
            }
            Error::Refused { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "mounting an overlay needs root, or a user namespace of one's own (`unshare -rm`)"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
