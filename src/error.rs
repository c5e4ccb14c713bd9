//! How all modules make and report errors.
//!
//! - Each module has one error enum, in its `error.rs`. A variant states what the program was
//!   doing, and to which path, offset or name; its source states why that failed. Neither repeats
//!   the other: [`chain`] joins them in one line.
//! - A failed system call is an [`Io`], in every module.
//! - What a command does about an error stands beside the enum: its implementation of [`Report`]
//!   gives the exit code, and a hint for the user. The command line only prints them.
//! - Programs that use a mounted file system get an errno. Only [`crate::fs::Error::errno`] chooses
//!   it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A failed system call.
#[derive(Debug, thiserror::Error)]
#[error("{doing}{}", path.as_ref().map(|path| format!(" {}", path.display())).unwrap_or_default())]
pub struct Io {
    /// What the program was doing, such as "opening".
    pub doing: &'static str,
    /// To which path, if any.
    pub path: Option<PathBuf>,
    /// The system's error.
    pub source: io::Error,
}

impl Io {
    /// Makes a closure for `map_err` that adds what was being done, and to which path.
    pub fn at<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self {
            doing,
            path: Some(path.to_owned()),
            source: source.into(),
        }
    }

    /// Makes a closure for `map_err` that adds what was being done, if no path is involved.
    pub fn doing<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self {
            doing,
            path: None,
            source: source.into(),
        }
    }

    /// The kind of the system's error.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// Whether its file system, or what its user may take of it, is full.
    pub fn is_full(&self) -> bool {
        matches!(
            self.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }

    /// Whether another user could redirect the path.
    pub fn is_untrusted(&self) -> bool {
        let source = self.source.get_ref();
        source.is_some_and(|e| e.is::<Untrusted>())
    }
}

/// A path leads through a symlink that another user may have created. It is the source of an
/// [`Io`].
#[derive(Debug, thiserror::Error)]
#[error("it leads through {}, a symlink that another user could have created", name.display())]
pub struct Untrusted {
    /// The symlink's name.
    pub(crate) name: PathBuf,
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
        if self.is_untrusted() {
            return Some(
                "name the directory without symlinks (`readlink -f` shows where they lead)"
                    .to_owned(),
            );
        }
        let path = self
            .path
            .as_ref()
            .filter(|_| self.kind() == io::ErrorKind::NotConnected)?;
        Some(format!(
            "no process serves the mount there any more; `lxcri-fs umount {}` removes it",
            path.display()
        ))
    }
}

/// Exit codes of commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Every failure without a code of its own.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// An image is damaged, or a file is no image.
    Damaged = 3,
    /// A password or key is missing or wrong.
    Key = 4,
    /// Something named does not exist.
    NotFound = 5,
    /// Something is in use.
    Busy = 6,
    /// Something is out of date, of what was asked about.
    Outdated = 7,
    /// A policy or a verifier does not accept an image.
    Untrusted = 8,
}

impl Exit {
    /// Converts the exit code of another process of this program.
    pub(crate) fn from_code(code: u8) -> Self {
        let all = [
            Exit::Usage,
            Exit::Damaged,
            Exit::Key,
            Exit::NotFound,
            Exit::Busy,
            Exit::Outdated,
            Exit::Untrusted,
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

    /// What the user can try.
    fn hint(&self) -> Option<String> {
        None
    }
}

/// An error and its causes in one line, separated by colons.
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
