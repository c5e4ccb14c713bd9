//! Errors of the commands zfs and zpool, which are told apart by what these print.

use std::io;
use std::path::PathBuf;

use crate::error::{Exit, Report};

/// An error of `zfs` or `zpool`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that ZFS does not allow.
    #[error("`{name}` cannot be the name of a dataset or snapshot: {why}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A property that cannot be set.
    #[error("`{name}` cannot be set: {why}")]
    Property {
        /// The name of the property.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The command is not installed.
    #[error("running {command}: the command is not installed")]
    NotInstalled {
        /// `zfs` or `zpool`.
        command: &'static str,
    },
    /// The command cannot be run.
    #[error("running {command}")]
    Run {
        /// `zfs` or `zpool`.
        command: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The command failed.
    #[error("zfs cannot {doing} {name}: {message}")]
    Command {
        /// Its subcommand, such as `snapshot`.
        doing: &'static str,
        /// The dataset or snapshot.
        name: String,
        /// Why it failed, as far as its output shows.
        cause: Cause,
        /// The reason, as the command printed it.
        message: String,
    },
    /// The dataset is not mounted, though it could be.
    #[error("{dataset} is not mounted")]
    NotMounted {
        /// The dataset.
        dataset: String,
    },
    /// The dataset has properties that keep it from being mounted.
    #[error("{dataset} has no directory: {why}")]
    NoDirectory {
        /// The dataset.
        dataset: String,
        /// Why.
        why: &'static str,
        /// What to do about it.
        hint: String,
    },
    /// The key of an encrypted dataset is not loaded.
    #[error("{dataset} is locked: its key is not loaded")]
    Locked {
        /// The dataset.
        dataset: String,
        /// The dataset that has the key.
        root: String,
    },
    /// Something else is mounted over the dataset's directory.
    #[error("{dataset} cannot be reached: {by} is mounted over it on {}", path.display())]
    Hidden {
        /// The dataset.
        dataset: String,
        /// Its directory.
        path: PathBuf,
        /// What is mounted there.
        by: String,
    },
    /// The command printed something unexpected.
    #[error("{command} printed something unexpected: {output:?}")]
    Output {
        /// The command.
        command: &'static str,
        /// What it printed.
        output: String,
    },
}

/// A result with this module's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a command failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// The dataset, its parent, its pool or the snapshot does not exist.
    NotFound,
    /// It exists already.
    Exists,
    /// It is in use.
    Busy,
    /// It is mounted already.
    Mounted,
    /// It is not mounted.
    NotMounted,
    /// The pool, a quota or a reservation leaves no room.
    NoSpace,
    /// The caller may not do this.
    Permission,
    /// The kernel module is not loaded.
    NotLoaded,
    /// Clones depend on it.
    HasClones,
    /// It has children or snapshots.
    HasChildren,
    /// The key of an encrypted dataset is not loaded.
    Locked,
    /// Younger snapshots are in the way of a rollback.
    NewerSnapshots,
    /// Any other cause; the message states it.
    Other,
}

impl Cause {
    /// Finds the cause from the first line that a command printed in the C locale.
    fn of(reason: &str) -> Self {
        let reason = reason.to_ascii_lowercase();
        let has = |text: &str| reason.contains(text);
        if has("does not exist") || has("no such pool") || has("could not find any snapshots") {
            Cause::NotFound
        } else if has("already exists") {
            Cause::Exists
        } else if has("already mounted") {
            Cause::Mounted
        } else if has("not currently mounted") {
            Cause::NotMounted
        } else if has("is busy") {
            Cause::Busy
        } else if has("out of space") || has("quota exceeded") || has("no space left") {
            Cause::NoSpace
        } else if has("permission denied")
            || has("insufficient privileges")
            || has("operation not permitted")
        {
            Cause::Permission
        } else if has("modules are not loaded")
            || has("modules cannot be auto-loaded")
            || has("/dev/zfs")
        {
            Cause::NotLoaded
        } else if has("has dependent clones") {
            Cause::HasClones
        } else if has("has children") {
            Cause::HasChildren
        } else if has("key not loaded") || has("key must be loaded") || has("keys must be loaded") {
            Cause::Locked
        } else if has("more recent snapshots") {
            Cause::NewerSnapshots
        } else {
            Cause::Other
        }
    }
}

impl Error {
    /// The cause, if a command failed.
    pub fn cause(&self) -> Option<Cause> {
        match self {
            Error::Command { cause, .. } => Some(*cause),
            _ => None,
        }
    }

    /// The error of a failed command, from what it printed, such as `cannot open 'tank/x': dataset
    /// does not exist` and more lines.
    pub(super) fn command(doing: &'static str, name: &str, stderr: &str) -> Self {
        let line = stderr
            .lines()
            .find(|line| !line.trim().is_empty())
            .unwrap_or("it gave no reason")
            .trim();
        // Names contain no quotes, so the text after the last quote is not part of a name.
        let reason = line.rsplit_once("': ").map_or(line, |(_, reason)| reason);
        // Our message names the dataset already.
        let message = if line.contains(&format!("'{name}'")) {
            reason
        } else {
            line
        };
        Error::Command {
            doing,
            name: name.to_owned(),
            cause: Cause::of(reason),
            message: message.to_owned(),
        }
    }
}

/// The pool of a dataset or snapshot.
fn pool_of(name: &str) -> &str {
    name.split(['/', '@']).next().unwrap_or(name)
}

impl Report for Error {
    fn exit(&self) -> Exit {
        match self {
            Error::Name { .. } => Exit::Usage,
            Error::Command {
                cause: Cause::NotFound,
                ..
            } => Exit::NotFound,
            Error::Command {
                cause: Cause::Busy | Cause::HasClones | Cause::HasChildren,
                ..
            } => Exit::Busy,
            _ => Exit::Failure,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::NotInstalled { .. } => {
                "install the ZFS utilities (Debian: zfsutils-linux), or use a directory instead"
            }
            Error::NoDirectory { hint, .. } => return Some(hint.clone()),
            Error::Locked { root, .. } => return Some(format!("`zfs load-key {root}` loads it")),
            Error::Hidden { path, .. } => {
                return Some(format!(
                    "`umount {}` unmounts what is mounted over it",
                    path.display()
                ));
            }
            Error::NotMounted { dataset } => {
                return Some(format!("`zfs mount {dataset}` mounts it"));
            }
            Error::Command {
                cause, doing, name, ..
            } => match cause {
                Cause::NotFound => "`zfs list -t all` shows what exists",
                Cause::Busy => {
                    return Some(format!(
                        "end the processes that use it (`fuser -vm DIRECTORY` lists them), then \
                         {doing} {name} again"
                    ));
                }
                Cause::NoSpace => {
                    "`zfs list -o space` shows what takes the space; quotas and reservations count \
                     too"
                }
                Cause::Permission => "run the command as root, or permit it with `zfs allow`",
                Cause::NotLoaded => "load the kernel module with `modprobe zfs`",
                Cause::HasClones => "destroy the clones first, or `zfs promote` one of them",
                Cause::HasChildren => "destroy its children and snapshots first",
                Cause::Locked => {
                    return Some(format!(
                        "`zfs load-key -r {}` loads all keys of the pool",
                        pool_of(name)
                    ));
                }
                Cause::NewerSnapshots => {
                    "roll back to the newest snapshot, or destroy the newer snapshots first"
                }
                _ => return None,
            },
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What OpenZFS 2.3.9 prints, and two lines of 2.1.
    #[test]
    fn causes() {
        let samples = [
            (
                "cannot create 'tank/a': dataset already exists",
                Cause::Exists,
            ),
            (
                "cannot create snapshot 'tank/a': dataset already exists",
                Cause::Exists,
            ),
            (
                "cannot create 'tank/a': parent does not exist",
                Cause::NotFound,
            ),
            (
                "cannot create 'tank/a': no such pool 'tank'",
                Cause::NotFound,
            ),
            (
                "cannot open 'tank/a': dataset does not exist",
                Cause::NotFound,
            ),
            (
                "could not find any snapshots to destroy; check snapshot names.",
                Cause::NotFound,
            ),
            (
                "cannot unmount '/tank/a': pool or dataset is busy",
                Cause::Busy,
            ),
            ("cannot destroy 'tank/a': dataset is busy", Cause::Busy),
            (
                "cannot unmount 'tank/a': not currently mounted",
                Cause::NotMounted,
            ),
            (
                "cannot mount 'tank/a': filesystem already mounted",
                Cause::Mounted,
            ),
            ("cannot create 'tank/a': out of space", Cause::NoSpace),
            (
                "Permission denied the ZFS utilities must be run as root.",
                Cause::Permission,
            ),
            (
                "cannot create 'tank/a': permission denied",
                Cause::Permission,
            ),
            (
                "/dev/zfs and /proc/self/mounts are required.\nTry running 'udevadm trigger' as \
                 root.",
                Cause::NotLoaded,
            ),
            (
                "The ZFS modules are not loaded.\nTry running '/sbin/modprobe zfs' as root to \
                 load them.",
                Cause::NotLoaded,
            ),
            (
                "cannot destroy 'tank/a': snapshot has dependent clones\nuse '-R' to destroy the \
                 following datasets:\ntank/cl",
                Cause::HasClones,
            ),
            (
                "cannot destroy 'tank/a': filesystem has children\nuse '-r' to destroy the \
                 following datasets:",
                Cause::HasChildren,
            ),
            (
                "cannot rollback to 'tank/a': more recent snapshots or bookmarks exist\nuse '-r' \
                 to force",
                Cause::NewerSnapshots,
            ),
            (
                "cannot create 'tank/a': encryption key not loaded",
                Cause::Locked,
            ),
            (
                "cannot mount 'tank/a': encryption key not loaded",
                Cause::Locked,
            ),
            (
                "cannot set property for 'tank/a': 'xattr' must be one of 'on | off | dir | sa'",
                Cause::Other,
            ),
            ("", Cause::Other),
        ];
        for (stderr, cause) in samples {
            let error = Error::command("test", "tank/a", stderr);
            assert_eq!(error.cause(), Some(cause), "{stderr}");
            assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn a_name_is_no_reason() {
        let error = Error::command(
            "destroy",
            "tank/dataset is busy",
            "cannot destroy 'tank/dataset is busy': dataset does not exist\n",
        );
        assert_eq!(
            error.to_string(),
            "zfs cannot destroy tank/dataset is busy: dataset does not exist"
        );
        assert_eq!(error.cause(), Some(Cause::NotFound));
        let error = Error::command(
            "unmount",
            "tank/a",
            "cannot unmount '/x': already exists': pool or dataset is busy\n",
        );
        assert_eq!(error.cause(), Some(Cause::Busy));
    }
}
