//! Errors of mounting, serving and unmounting.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Exit, Io, Report};
use crate::sys::users::User;

/// An error of serving.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Too many images for one mount.
    #[error(
        "a mount can have at most {} images, not {found}",
        crate::fs::MAX_IMAGES
    )]
    TooManyImages {
        /// How many there are.
        found: usize,
    },
    /// A system call on a path failed.
    #[error(transparent)]
    Io(#[from] Io),
    /// `fusermount3` refused.
    #[error("fusermount3 could not {verb} {}: {message}", path.display())]
    Fusermount {
        /// `mount` or `unmount`.
        verb: &'static str,
        /// The mount point.
        path: PathBuf,
        /// What it printed.
        message: String,
    },
    /// The other process sent an unexpected or too long message.
    #[error("the {peer} process sent an invalid message")]
    Protocol {
        /// Which process.
        peer: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The other process ended before it answered.
    #[error("the {peer} process ended before the file system was ready (see its log)")]
    Gone {
        /// Which process.
        peer: &'static str,
    },
    /// The other process did not answer in time.
    #[error("the {peer} process has not answered for {seconds} s")]
    Timeout {
        /// Which process.
        peer: &'static str,
        /// How long the caller waited.
        seconds: u64,
    },
    /// The worker could not open the image, or the keeper could not mount it.
    #[error("{}", .0.message)]
    Failed(Box<Failure>),
    /// The mount is in use.
    #[error("{} is in use{}", path.display(), list(users))]
    Busy {
        /// The mount point.
        path: PathBuf,
        /// The processes that use it; empty if unknown.
        users: Vec<User>,
    },
    /// A file system of another kind is mounted there.
    #[error("{} has a {fs_type} file system mounted on it, not one of lxcri-fs", path.display())]
    Foreign {
        /// The mount point.
        path: PathBuf,
        /// Its type.
        fs_type: String,
    },
    /// A keeper cannot be upgraded to this version of the program.
    #[error(
        "the keeper of {} (version {version}) cannot be upgraded to this version of the program",
        image.display()
    )]
    Upgrade {
        /// The image that it keeps.
        image: PathBuf,
        /// Its version.
        version: String,
    },
    /// The kernel does not let another worker take over a mount.
    #[error("Linux before 6.9 does not let another process take over a mount")]
    NoResend,
    /// The image cannot be mounted with the kernel's EROFS.
    #[error("the split engine cannot mount the image: {reason}")]
    Split {
        /// Why.
        reason: String,
    },
    /// What is mounted there does not answer.
    #[error("what is mounted on {} does not answer", path.display())]
    Silent {
        /// The mount point.
        path: PathBuf,
    },
    /// A file system of lxcri-fs is mounted there already.
    #[error("{} has {} mounted on it already", path.display(), image.display())]
    Mounted {
        /// The mount point.
        path: PathBuf,
        /// The image.
        image: PathBuf,
    },
}

/// A result with this module's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Lists users for a message: the first eight, and how many more there are.
fn list(users: &[User]) -> String {
    const SHOWN: usize = 8;
    if users.is_empty() {
        return String::new();
    }
    let mut text = String::from(" by ");
    for (i, user) in users.iter().take(SHOWN).enumerate() {
        if i > 0 {
            text.push_str(", ");
        }
        text.push_str(&user.to_string());
    }
    if users.len() > SHOWN {
        text.push_str(&format!(" and {} more", users.len() - SHOWN));
    }
    text
}

/// Why another process failed, as it tells the command that started it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The error with its causes.
    pub message: String,
    /// What to try.
    pub hint: Option<String>,
    /// Exit code of the command.
    pub exit: u8,
    /// The image that needs a password or key which was not given.
    pub key_needed: Option<OsString>,
}

impl Report for Error {
    fn exit(&self) -> Exit {
        match self {
            Error::Failed(failure) => Exit::from_code(failure.exit),
            Error::Busy { .. } | Error::Mounted { .. } => Exit::Busy,
            Error::Io(e) => e.exit(),
            _ => Exit::Failure,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Failed(failure) => return failure.hint.clone(),
            Error::Busy { .. } => {
                "end the processes that use it, or detach the mount with `umount \
                                   --lazy`"
            }
            Error::Mounted { .. } => "`lxcri-fs umount` unmounts it",
            Error::NoResend => {
                "the mount continues with the old version; to upgrade it, unmount it when it is \
                 idle, and mount it again"
            }
            Error::Upgrade { .. } => "unmount it when it is idle, and mount it again",
            Error::Silent { path } => {
                return Some(format!(
                    "it continues when its disk or worker responds; `lxcri-fs umount --force {}` \
                     ends it",
                    path.display()
                ));
            }
            Error::Foreign { .. } => "umount(8) unmounts it",
            Error::Io(Io {
                doing: "opening",
                path: Some(path),
                ..
            }) if path == Path::new("/dev/fuse") => "load the fuse module with `modprobe fuse`",
            Error::Io(Io {
                doing: "running", ..
            }) => "install the package fuse3",
            Error::Io(e) => return e.hint(),
            Error::Gone { .. } | Error::Timeout { .. } => {
                "run the command again with --foreground to see the log"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
