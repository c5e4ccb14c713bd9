//! What can go wrong between a command and a mounted file system.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Exit, Io, Report};
use crate::sys::users::User;

/// An error of serving.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// More images than one mount can be made of.
    #[error(
        "a mount is made of at most {} images, and not of {found}",
        crate::fs::MAX_IMAGES
    )]
    TooManyImages {
        /// How many there are.
        found: usize,
    },
    /// What the system refused to do to a path.
    #[error(transparent)]
    Io(#[from] Io),
    /// A path leads through a symlink that another user may have put there.
    #[error(
        "{} leads through a symlink, {}, that another user can put there",
        path.display(),
        name.display()
    )]
    Untrusted {
        /// The path.
        path: PathBuf,
        /// The symlink's name.
        name: PathBuf,
    },
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
    /// The other process sent something else than was expected, or too much.
    #[error("the {peer} process sent a message that cannot be understood")]
    Protocol {
        /// Which process.
        peer: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The other process ended before it answered.
    #[error("the {peer} process ended before the file system was ready (its log tells more)")]
    Gone {
        /// Which process.
        peer: &'static str,
    },
    /// The other process did not answer in time.
    #[error("the {peer} process gave no answer for {seconds} s")]
    Timeout {
        /// Which process.
        peer: &'static str,
        /// How long was waited.
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
        /// By whom; empty when that could not be found out.
        users: Vec<User>,
    },
    /// Something else than our file system is mounted there.
    #[error("{} has a {fs_type} file system mounted on it, not one of lxcri-fs", path.display())]
    Foreign {
        /// The mount point.
        path: PathBuf,
        /// Its type.
        fs_type: String,
    },
    /// A keeper cannot go on as this version of the program.
    #[error(
        "the keeper of {} (version {version}) cannot go on as this version of the program",
        image.display()
    )]
    Upgrade {
        /// The image that it keeps.
        image: PathBuf,
        /// Its version.
        version: String,
    },
    /// No other worker can take over what the first one serves.
    #[error("Linux before 6.9 does not let another process take over a mount")]
    NoResend,
    /// What is mounted there does not answer.
    #[error("what is mounted on {} does not answer", path.display())]
    Silent {
        /// The mount point.
        path: PathBuf,
    },
    /// Our file system is mounted there already.
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

impl Error {
    /// For `map_err`: an error while doing something to a path.
    pub(crate) fn io<E: Into<io::Error>>(
        doing: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        move |source| Io::at(doing, path)(source).into()
    }

    /// For `map_err`: an error while doing something.
    pub(crate) fn system<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Io::doing(doing)(source).into()
    }
}

/// As many users as are of use in a message.
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

/// Why another process failed, as far as the command needs to know it.
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
            Error::Busy { .. } => "end what uses it, or take it out of sight now with --lazy",
            Error::Mounted { .. } => "`lxcri-fs umount` unmounts it",
            Error::NoResend => {
                "leave the mount with the program that it has, or unmount the image when nobody \
                 uses it, and mount it again"
            }
            Error::Upgrade { .. } => "unmount the image when nobody uses it, and mount it again",
            Error::Silent { path } => {
                return Some(format!(
                    "it goes on when its disk or its worker does; `lxcri-fs umount --force {}` \
                     takes it away",
                    path.display()
                ));
            }
            Error::Foreign { .. } => "umount(8) unmounts it",
            Error::Untrusted { .. } => {
                "name the directory that is meant, without symlinks (`readlink -f` shows where \
                 they lead)"
            }
            Error::Io(Io {
                doing: "opening",
                path: Some(path),
                ..
            }) if path == Path::new("/dev/fuse") => {
                "is the fuse module loaded? try `modprobe fuse`"
            }
            Error::Io(Io {
                doing: "running", ..
            }) => "install the package fuse3",
            Error::Io(e) => return e.hint(),
            Error::Gone { .. } | Error::Timeout { .. } => {
                "run it again with --foreground to see what it says"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
