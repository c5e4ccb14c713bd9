//! Errors of uppers.

use std::io;
use std::path::PathBuf;

use crate::error::{Exit, Io, Report};
use crate::sys::users::User;
use crate::{build, fs, serve, zfs};

/// An error of an upper.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on a path failed.
    #[error(transparent)]
    Io(#[from] Io),
    /// The image's mount.
    #[error(transparent)]
    Serve(#[from] serve::Error),
    /// What was written cannot be read.
    #[error(transparent)]
    Build(#[from] build::Error),
    /// The image.
    #[error(transparent)]
    Fs(#[from] fs::Error),
    /// The dataset.
    #[error(transparent)]
    Zfs(#[from] zfs::Error),
    /// The dataset has a property that makes it unusable as an upper.
    #[error("{dataset} cannot be an upper: it {reason}")]
    Unfit {
        /// The dataset.
        dataset: zfs::Dataset,
        /// The property.
        property: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// This process does not have the right to mount.
    #[error(
        "mounting with an upper or mapped ids takes the right to mount, which this user does \
             not have"
    )]
    NotAllowed,
    /// There is no upper.
    #[error("{} {reason}", path.display())]
    NoUpper {
        /// Where it was expected.
        path: PathBuf,
        /// What there is instead.
        reason: &'static str,
    },
    /// The upper is in use.
    #[error(
        "{} is being written to{}",
        path.display(),
        users.first().map(|user| format!(" by {user}")).unwrap_or_default()
    )]
    Busy {
        /// The upper's directory, or where it is mounted.
        path: PathBuf,
        /// The processes that use it; empty if unknown.
        users: Vec<User>,
    },
    /// The upper's file system has no snapshots.
    #[error(
        "{} is on a file system that cannot share blocks between files, so it has no snapshots",
        path.display()
    )]
    NoSnapshots {
        /// The upper's directory.
        path: PathBuf,
    },
    /// The upper is in a directory, but only a dataset can be cloned into another.
    #[error("{} is not a ZFS dataset", path.display())]
    NotOnZfs {
        /// The upper's directory.
        path: PathBuf,
    },
    /// There is no such snapshot.
    #[error("{} has no snapshot {name}", path.display())]
    NoSnapshot {
        /// The upper's directory.
        path: PathBuf,
        /// The snapshot's name.
        name: String,
    },
    /// There is a snapshot of this name.
    #[error("{} has a snapshot {name} already", path.display())]
    SnapshotExists {
        /// The upper's directory.
        path: PathBuf,
        /// The snapshot's name.
        name: String,
    },
    /// A snapshot cannot have this name.
    #[error("{name:?} cannot be the name of a snapshot")]
    SnapshotName {
        /// The name.
        name: String,
    },
    /// The upper cannot be rolled back while it is mounted.
    #[error("{upper} is in use as the upper of a mount {place}")]
    Mounted {
        /// The dataset or directory.
        upper: String,
        /// Where.
        place: String,
        /// Whether `--force` could unmount it and mount it again.
        remount: bool,
    },
    /// A rollback would lose newer snapshots.
    #[error("there are newer snapshots than {snapshot}: {}", younger.join(", "))]
    NewerSnapshots {
        /// The snapshot to roll back to.
        snapshot: zfs::Snapshot,
        /// Their names.
        younger: Vec<String>,
        /// A dataset that was cloned from one of them.
        clone: Option<zfs::Dataset>,
    },
    /// The upper was rolled back to a state that belongs to another image.
    #[error(
        "rolled back to {snapshot}, which does not belong to what was mounted on {}",
        mountpoint.display()
    )]
    NotRemounted {
        /// The snapshot.
        snapshot: String,
        /// Where it was mounted.
        mountpoint: PathBuf,
    },
    /// A mount that was unmounted for a rollback could not be mounted again.
    #[error("nothing is mounted on {} any more", mountpoint.display())]
    LeftUnmounted {
        /// Where it was mounted.
        mountpoint: PathBuf,
        /// What failed.
        source: Box<Error>,
    },
    /// overlayfs cannot use the directory as an upper.
    #[error("{} cannot be an upper: {reason}", path.display())]
    Unusable {
        /// The upper's directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The upper belongs to another image or other ids.
    #[error("{} belongs to {recorded}, not to {wanted}", path.display())]
    Foreign {
        /// The upper's directory.
        path: PathBuf,
        /// What it belongs to.
        recorded: String,
        /// What it was to be mounted with.
        wanted: String,
    },
    /// The directory cannot become an upper because it is not empty.
    #[error("{} {reason}", path.display())]
    Occupied {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The upper was written with overlayfs's index, which this kernel cannot use, and cannot be
    /// completed without it.
    #[error(
        "{} was written before Linux 6.16, and what overlayfs's index holds for {} cannot be \
         restored",
        path.display(),
        name.display()
    )]
    Index {
        /// The upper's directory.
        path: PathBuf,
        /// The name of the file in it.
        name: PathBuf,
    },
    /// The upper is mounted already.
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
        /// Where; `None` if it is mounted in another mount namespace.
        mountpoint: Option<PathBuf>,
    },
    /// The kernel refused to mount the overlay.
    #[error(
        "overlayfs cannot use {}{}",
        path.display(),
        if said.is_empty() { String::new() } else { format!(" ({said})") }
    )]
    Refused {
        /// The upper's directory.
        path: PathBuf,
        /// The kernel's messages.
        said: String,
        /// Its error.
        source: io::Error,
    },
    /// There is no update to go back to before.
    #[error("{} has not been updated, or what was there before is gone", path.display())]
    NoUpdate {
        /// The upper's directory.
        path: PathBuf,
    },
    /// The file system has not enough room for a new upper beside the old one.
    #[error(
        "{} has {free} bytes of free space, but what is carried over takes {needed}",
        path.display()
    )]
    NoRoom {
        /// The upper's directory.
        path: PathBuf,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The record beside the upper is malformed.
    #[error("{} is not a valid record of an upper", path.display())]
    Record {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// A result with this module's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Report for Error {
    fn exit(&self) -> Exit {
        match self {
            Error::Serve(e) => e.exit(),
            Error::Fs(e) => e.exit(),
            Error::Zfs(e) => e.exit(),
            Error::Build(e) => e.exit(),
            Error::LeftUnmounted { source, .. } => source.exit(),
            Error::NoUpper { .. } | Error::NoSnapshot { .. } | Error::NoUpdate { .. } => {
                Exit::NotFound
            }
            Error::SnapshotName { .. } => Exit::Usage,
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
                "run the command as root, or in a user namespace of your own (`unshare -rm`)"
            }
            Error::NoUpper { .. } => {
                "name the directory that `mount --upper` was given, or the directory that it is \
                 mounted on"
            }
            Error::Busy { .. } => {
                "stop its container, or unmount it; on ZFS it can stay in use, because a snapshot \
                 is read"
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
                "btrfs, XFS and ZFS can; `lxcri-fs clone NAME NEW` copies a container"
            }
            Error::Mounted { remount: true, .. } => {
                "unmount it first; --force unmounts it and mounts it again"
            }
            Error::Mounted { .. } => "unmount it",
            Error::NotOnZfs { .. } => "`lxcri-fs clone NAME NEW` makes a container of another",
            Error::NoSnapshot { .. } => "`lxcri-fs snapshots UPPER` lists them",
            Error::SnapshotExists { .. } => "`lxcri-fs snapshot --delete UPPER@NAME` deletes it",
            Error::NoUpdate { .. } => {
                "`lxcri-fs containers` says which containers can go back; a snapshot is named as \
                 in `lxcri-fs rollback web1@before`"
            }
            Error::NoRoom { .. } => {
                "free space there; on btrfs, XFS and ZFS, files that are carried over share their \
                 blocks with the old ones"
            }
            Error::SnapshotName { .. } => "letters, digits, and - _ . : make a name",
            Error::NewerSnapshots {
                clone: Some(clone), ..
            } => {
                return Some(format!(
                    "{clone} was cloned from one of them: `zfs promote {clone}` moves that \
                     snapshot to the clone"
                ));
            }
            Error::NewerSnapshots { .. } => "--destroy-newer destroys them",
            Error::LeftUnmounted { .. } | Error::NotRemounted { .. } => {
                "mount it with the image that it belongs to: `lxcri-fs mount IMAGE DIR --upper \
                 UPPER`"
            }
            Error::Unfit { .. } => {
                "this property cannot be changed: name a new dataset, which `lxcri-fs mount` \
                 creates"
            }
            Error::Occupied { .. } => {
                "name an empty directory, or one that does not exist; a copied upper needs its \
                 lxcri-fs.json"
            }
            Error::Index { .. } => {
                "`lxcri-fs commit` makes an image with everything that was written; continue with \
                 a new upper over that image"
            }
            Error::Unusable { .. } => {
                "use a directory on a local file system, such as ext4, XFS, btrfs, tmpfs, or ZFS \
                 2.2 or later"
            }
            Error::Foreign { .. } => {
                "mount it with what it belongs to, or name another upper; \
                                      `lxcri-fs commit` makes a new image from it and the image \
                                      that it belongs to"
            }
            Error::InUse { .. } => {
                "each mount needs an upper of its own; `lxcri-fs ps` shows which mount uses this \
                 one"
            }
            Error::Refused { source, .. } if source.raw_os_error() == Some(libc::ESTALE) => {
                "its work directory belongs to another upper: if the upper was copied, remove its \
                 `work`, and mount it again"
            }
            Error::Refused { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "mounting an overlay takes root, or a user namespace of your own (`unshare -rm`)"
            }
            Error::Io(e) => return e.hint(),
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
