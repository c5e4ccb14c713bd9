//! Errors of the store.

use std::io;
use std::path::PathBuf;

use crate::error::{Exit, Io, Report};
use crate::{fs, serve, upper, zfs};

/// An error of the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on a path failed.
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
        /// The line in it, from 1.
        line: Option<usize>,
        /// What is wrong.
        reason: String,
    },
    /// An invalid location of a store.
    #[error("{text:?} is not a store: {reason}")]
    Location {
        /// As it was given.
        text: String,
        /// What is wrong.
        reason: String,
    },
    /// An invalid engine in the environment.
    #[error("{}={text} is not an engine", super::config::ENGINE_VARIABLE)]
    Engine {
        /// As it was given.
        text: String,
    },
    /// An invalid name of an image.
    #[error("{text:?} is not the name of an image: {reason}")]
    Reference {
        /// As it was given.
        text: String,
        /// What is wrong.
        reason: String,
    },
    /// A name that a directory or dataset cannot have.
    #[error("the name {name:?} cannot be used: {reason}")]
    Name {
        /// As it was given.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The store has no such image or container.
    #[error("there is no {kind} {name} in the store {store}")]
    NotFound {
        /// `image` or `container`.
        kind: &'static str,
        /// The name that was requested.
        name: String,
        /// The store.
        store: String,
    },
    /// The store has one of this name already.
    #[error("the {kind} {name} exists already in the store {store}")]
    Exists {
        /// `image` or `container`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The store.
        store: String,
    },
    /// Several images have digests that begin with these digits.
    #[error("{text} is ambiguous: it could be any of {}", names.join(", "))]
    Ambiguous {
        /// As it was given.
        text: String,
        /// The images.
        names: Vec<String>,
    },
    /// It is in use and cannot be removed.
    #[error("{kind} {name} is in use: {}", users.join(", "))]
    InUse {
        /// `image` or `container`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// What uses it, such as "mounted on /mnt".
        users: Vec<String>,
    },
    /// Another process has been at work on a container for longer than a hook can wait.
    #[error("container {name} is being created, deleted, mounted or unmounted by another process")]
    Locked {
        /// Its name.
        name: String,
    },
    /// Images in a store never change.
    #[error("{} must not change: {why}", path.display())]
    Kept {
        /// The image as it was named.
        path: PathBuf,
        /// Why it is taken for an image in a store.
        why: String,
    },
    /// The file with an image's facts is malformed.
    #[error("{}: {reason}", path.display())]
    Facts {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An image cannot be read.
    #[error(transparent)]
    Fs(#[from] fs::Error),
    /// Datasets and snapshots.
    #[error(transparent)]
    Zfs(#[from] zfs::Error),
    /// The upper of a container.
    #[error(transparent)]
    Upper(#[from] Box<upper::Error>),
    /// Mounts could not be examined.
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
    /// Whether something is on a dataset that is not mounted, so that nothing is known about it.
    pub fn is_out_of_reach(&self) -> bool {
        matches!(self, Error::Zfs(error) if error.is_out_of_reach())
    }

    /// Whether something was read and is wrong. With any other error, it may be sound as soon as it
    /// can be read.
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
}

/// A result with this module's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Report for Error {
    fn exit(&self) -> Exit {
        match self {
            Error::NotFound { .. } => Exit::NotFound,
            Error::Io(e) => e.exit(),
            Error::InUse { .. } | Error::Locked { .. } | Error::Kept { .. } => Exit::Busy,
            Error::Fs(e) => e.exit(),
            Error::Serve(e) => e.exit(),
            Error::Zfs(e) => e.exit(),
            Error::Facts { .. } => Exit::Damaged,
            Error::Location { .. }
            | Error::Engine { .. }
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
                "`lxcri-fs list` shows the images in the store; write ./FILE to name a file"
            }
            Error::NotFound {
                kind: "container", ..
            } => {
                "a container has the name that `lxcri-fs create` got; `lxcri-fs ps` lists what is \
                 mounted, and a path or zfs:DATASET names an upper of no container"
            }
            Error::Engine { .. } => "an engine is auto, split or fuse",
            Error::Location { .. } => "write dir:/var/lib/lxcri-fs or zfs:tank/containers",
            Error::Reference { .. } => {
                "images in the store have names such as nginx:1.27 or \
                 registry.example.org/team/app:v2"
            }
            Error::Config { .. } => "docs/CONFIGURATION.md describes every setting",
            Error::Ambiguous { .. } => "give more digits",
            Error::Kept { .. } => "make a new image with -t NAME, which puts it into the store",
            Error::InUse {
                kind: "container", ..
            } => {
                "unmount what is mounted; move a dataset elsewhere with `zfs rename`, or remove it \
                 with `zfs destroy`"
            }
            Error::InUse { kind: "image", .. } => {
                "delete or unmount what uses it; `lxcri-fs rm --force` removes it if only uppers \
                 outside the store need it"
            }
            Error::Locked { .. } => "try again when the other command is done",
            Error::Facts { .. } => "`lxcri-fs doctor` shows what is wrong",
            Error::Io(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                "the default store belongs to root; name your own with --store or LXCRI_FS_STORE"
            }
            Error::Io(e) => return e.hint(),
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
