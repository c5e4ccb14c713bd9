//! How errors are made and told, in every module alike.
//!
//! - A module has one enum for what can go wrong in it, in its `error.rs`. A variant says what was
//!   being done, and to which path, offset or name; its source says why it failed. Nothing is said
//!   twice: [`chain`] puts both into one line.
//! - What the operating system refuses is [`Io`], whatever module asked for it.
//! - What a command does about an error stands beside the enum: its implementation of [`Report`]
//!   names the exit code, and the hint for whoever reads the message. The command line only prints
//!   them.
//! - Callers of a mounted file system are told an errno, in one place: [`crate::fs::Error::errno`].

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What the operating system refused to do.
#[derive(Debug, thiserror::Error)]
#[error("{doing}{}", path.as_ref().map(|path| format!(" {}", path.display())).unwrap_or_default())]
pub struct Io {
    /// What was being done, such as "opening".
    pub doing: &'static str,
    /// To which path; `None` when it was done to none.
    pub path: Option<PathBuf>,
    /// What the system said.
    pub source: io::Error,
}

impl Io {
    /// For `map_err`: an error while doing something to a path.
    pub fn at<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self {
            doing,
            path: Some(path.to_owned()),
            source: source.into(),
        }
    }

    /// For `map_err`: an error while doing something that concerns no path.
    pub fn doing<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self {
            doing,
            path: None,
            source: source.into(),
        }
    }

    /// What the system said, in a word.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

impl Report for Io {
    fn exit(&self) -> Exit {
        if self.path.is_some() && self.kind() == io::ErrorKind::NotFound {
            Exit::NotFound
        } else {
            Exit::Failure
        }
    }

    fn hint(&self) -> Option<String> {
        let path = self
            .path
            .as_ref()
            .filter(|_| self.kind() == io::ErrorKind::NotConnected)?;
        Some(format!(
            "nobody serves what is mounted there; `lxcri-fs umount {}` takes it away",
            path.display()
        ))
    }
}

/// Exit codes of commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Anything that has no code of its own.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// An image is damaged.
    Damaged = 3,
    /// A password or key is missing or wrong.
    Key = 4,
    /// Something named does not exist.
    NotFound = 5,
    /// Something is in use.
    Busy = 6,
}

impl Exit {
    /// The exit code of another process of ours.
    pub(crate) fn from_code(code: u8) -> Self {
        let all = [
            Exit::Usage,
            Exit::Damaged,
            Exit::Key,
            Exit::NotFound,
            Exit::Busy,
        ];
        all.into_iter()
            .find(|exit| *exit as u8 == code)
            .unwrap_or(Exit::Failure)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// What a command does about an error.
pub trait Report: std::error::Error {
    /// The exit code.
    fn exit(&self) -> Exit {
        Exit::Failure
    }

    /// What to try.
    fn hint(&self) -> Option<String> {
        None
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
