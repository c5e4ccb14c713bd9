//! What is written down of a container: `container.json` in its directory. It is there before
//! anything else of the container is, so that whoever finds it knows what may have to be taken
//! away.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use crate::fs::paths;
use crate::store::{self, Store};
use crate::sys::files;
use crate::sys::idmap::IdMap;
use crate::sys::replace::replace;

/// Its name in the container's directory.
pub const FILE: &str = "container.json";
/// Longest record that is read, bytes.
const MAX_RECORD: u64 = 1 << 20;
/// Version of the fields.
const VERSION: u32 = 1;

/// How far a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// `create` is at work, or was when it was killed.
    Creating,
    /// It can be started.
    Ready,
    /// `delete` is at work, or was when it was killed.
    Deleting,
    /// Only what it wrote is left, for another `create` of this name.
    Kept,
}

/// The image of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The file, absolute.
    #[serde(with = "paths::path")]
    pub path: PathBuf,
    /// As it was asked for.
    pub name: String,
    /// `blake3:` and the root digest; none of a plain v1 image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_digest: Option<String>,
    /// File with the password that it is encrypted with.
    #[serde(
        default,
        with = "paths::optional_path",
        skip_serializing_if = "Option::is_none"
    )]
    pub password_file: Option<PathBuf>,
    /// File with the key that it is encrypted with.
    #[serde(
        default,
        with = "paths::optional_path",
        skip_serializing_if = "Option::is_none"
    )]
    pub key_file: Option<PathBuf>,
}

/// Where a container writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// In its own directory.
    Store,
    /// Elsewhere, as `--upper` names it. It is not removed with the container.
    Elsewhere(String),
    /// In memory: gone when it is unmounted.
    Ephemeral {
        /// How much at most, bytes.
        size: Option<u64>,
    },
}

/// Which runtime the container is for, and what was made for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// LXC: its directory with `config` and `rootfs`.
    Lxc {
        /// The directory.
        #[serde(with = "paths::path")]
        dir: PathBuf,
        /// Whether it is a whole system, not an application.
        system: bool,
    },
    /// An OCI runtime: the bundle with `config.json` and `rootfs`.
    Bundle {
        /// The directory.
        #[serde(with = "paths::path")]
        dir: PathBuf,
    },
}

impl Runtime {
    /// The directory.
    pub fn dir(&self) -> &Path {
        match self {
            Runtime::Lxc { dir, .. } | Runtime::Bundle { dir } => dir,
        }
    }

    /// The configuration.
    pub fn config(&self) -> PathBuf {
        self.dir().join(match self {
            Runtime::Lxc { .. } => "config",
            Runtime::Bundle { .. } => "config.json",
        })
    }

    /// Where the root file system is mounted.
    pub fn root(&self) -> PathBuf {
        self.dir().join("rootfs")
    }
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Version of the fields.
    version: u32,
    /// Its name.
    pub name: String,
    /// How far it is.
    pub state: State,
    /// When it was created, seconds since 1970.
    pub created: u64,
    /// Its image.
    pub image: ImageRecord,
    /// Where it writes.
    pub upper: Place,
    /// Whose ids it sees; the image's own when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idmap: Option<IdMap>,
    /// Its runtime.
    pub runtime: Runtime,
    /// Whether the runtime's directory was there before.
    pub found_dir: bool,
    /// Whether what it writes to was there before.
    pub found_upper: bool,
    /// Working directory of its process, made when the image has none.
    pub cwd: String,
    /// What told it from all other containers of the host when it was made: `zfs:` and its dataset,
    /// or `dir:` and its directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

impl Record {
    /// A record of a container that is about to be made.
    pub fn new(
        name: &str,
        image: ImageRecord,
        upper: Place,
        idmap: Option<IdMap>,
        runtime: Runtime,
        cwd: &str,
    ) -> Self {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        let found_dir = runtime.dir().exists();
        // Of a dataset, nothing is known here.
        let found_upper = match &upper {
            Place::Elsewhere(place) => !place.starts_with('/') || Path::new(place).exists(),
            _ => false,
        };
        let (name, cwd) = (name.to_owned(), cwd.to_owned());
        let state = State::Creating;
        Self {
            version: VERSION,
            name,
            state,
            created: now,
            image,
            upper,
            idmap,
            runtime,
            found_dir,
            found_upper,
            cwd,
            place: None,
        }
    }

    /// Whether this is the record of this container. It is that of another when the store is a
    /// copy, and the original still there: what is outside the store is the original's. A store
    /// that was moved, or is on another host now, goes on with what it finds.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn is_of(&self, store: &Store, container: &store::Container) -> Result<bool> {
        let Some(recorded) = &self.place else {
            return Ok(true);
        };
        Ok(*recorded == store.place(container)? || !store::is_there(recorded)?)
    }

    /// For a container whose record is another's.
    pub fn of_another(&self) -> Error {
        Error::Unfit {
            what: format!(
                "it is a copy of {}, which has its configuration and its root directory",
                self.place.as_deref().unwrap_or("another")
            ),
            hint: Some(format!(
                "`lxcri-fs delete --keep {0}` and then `lxcri-fs create {0}` make a container of \
                 its own of it",
                self.name
            )),
        }
    }

    /// The record in a container's directory; `None` when there is none.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Document`], [`Error::Unfit`] when it is of a later version.
    pub fn read(container: &Path) -> Result<Option<Self>> {
        let path = container.join(FILE);
        let bytes = match files::read(&path, MAX_RECORD) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let record: Self =
            serde_json::from_slice(&bytes).map_err(Error::document(path.display().to_string()))?;
        if record.version > VERSION {
            return Err(Error::unfit(format!(
                "{} is of a later version of this program",
                path.display()
            )));
        }
        Ok(Some(record))
    }

    /// Writes it into a container's directory.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, container: &Path) -> Result<()> {
        let path = container.join(FILE);
        let text =
            serde_json::to_vec_pretty(self).map_err(Error::document(path.display().to_string()))?;
        replace(&path, &text).map_err(Error::io("writing", &path))
    }
}
