//! What can go wrong between a command and a mounted file system.

use std::io;
use std::path::{Path, PathBuf};

use super::protocol::Failure;
use super::users::User;

/// An error of serving.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// More images than one mount can be made of.
    #[error("a mount is made of at most {} images, and not of {found}", crate::fs::MAX_IMAGES)]
    TooManyImages {
        /// How many there are.
        found: usize,
    },
    /// A system call on a path failed.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was being done, such as "mounting".
        doing: &'static str,
        /// To which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A path leads through a symlink that another user may have put there.
    #[error("{} leads through a symlink, {}, that another user can put there", path.display(), name.display())]
    Untrusted {
        /// The path.
        path: PathBuf,
        /// The symlink's name.
        name: PathBuf,
    },
    /// A system call that concerns no path failed.
    #[error("{doing}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
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
    #[error("the keeper of {} (version {version}) cannot go on as this version of the program", image.display())]
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
    pub(crate) fn io<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Error::Io { doing, path: path.to_owned(), source: source.into() }
    }

    /// For `map_err`: an error while doing something.
    pub(crate) fn system<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Error::System { doing, source: source.into() }
    }
}

/// An error and its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
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
