//! The record of a container: `container.json` in its directory. It is written before anything else
//! of the container is created, so that it shows what may have to be removed.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::settings::Settings;
use super::volumes::VolumeRecord;
use crate::fs::paths;
use crate::image::ContainerAndImage;
use crate::serve::engine::Wanted as Engine;
use crate::store::{self, Store};
use crate::sys::directory::replace;
use crate::sys::files;
use crate::sys::idmap::IdMap;

/// Its name in the container's directory.
pub const FILE: &str = "container.json";
/// Longest record that is read, bytes.
const MAX_RECORD: u64 = 1 << 20;
/// Version of the fields.
const VERSION: u32 = 1;

/// State of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// `create` is running, or was killed.
    Creating,
    /// It can be started.
    Ready,
    /// `delete` is running, or was killed.
    Deleting,
    /// Only what it wrote remains, for another `create` of this name.
    Kept,
}

/// The image of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The file, absolute.
    #[serde(with = "paths::path")]
    pub path: PathBuf,
    /// The image as `create` was given it.
    pub name: String,
    /// `blake3:` and the root digest; none of a plain v1 image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_digest: Option<String>,
    /// File with the image's password.
    #[serde(
        default,
        with = "paths::optional_path",
        skip_serializing_if = "Option::is_none"
    )]
    pub password_file: Option<PathBuf>,
    /// File with the image's key.
    #[serde(
        default,
        with = "paths::optional_path",
        skip_serializing_if = "Option::is_none"
    )]
    pub key_file: Option<PathBuf>,
}

/// What a container can go back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// Its image there.
    pub image: ImageRecord,
    /// When the container left it, seconds since 1970.
    pub left: u64,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Where a container writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpperLocation {
    /// The container's own directory in the store.
    Store,
    /// A place outside the store, as `--upper` names it. It is not removed with the container.
    Elsewhere(String),
    /// Memory: lost when it is unmounted.
    Ephemeral {
        /// The limit in bytes.
        size: Option<u64>,
    },
}

/// The runtime that the container is for, and its directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// LXC: its directory with `config` and `rootfs`.
    Lxc {
        /// The directory.
        #[serde(with = "paths::path")]
        dir: PathBuf,
        /// Whether it is a system, not an application.
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

/// The containers in a store, and their images. Those without a readable record are left out.
pub fn images(store: &Store) -> Vec<ContainerAndImage> {
    let containers = store.containers().unwrap_or_default().into_iter();
    containers
        .filter_map(|container| {
            let dir = store.reach(&container).ok()?;
            let image = ContainerRecord::read(&dir).ok()??.image.path;
            Some(ContainerAndImage { container, image })
        })
        .collect()
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Version of the fields.
    pub(super) version: u32,
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: State,
    /// When it was created, seconds since 1970.
    pub created: u64,
    /// Its image.
    pub image: ImageRecord,
    /// Where it writes.
    pub upper: UpperLocation,
    /// The map of ids; `None` for the ids in the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idmap: Option<IdMap>,
    /// What may serve its image; `None` for what is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<Engine>,
    /// Its runtime.
    pub runtime: Runtime,
    /// Whether the runtime's directory existed before.
    pub found_dir: bool,
    /// Whether the place that it writes to existed before.
    pub found_upper: bool,
    /// Working directory of its process, which is created if the image does not have it.
    pub cwd: String,
    /// Its volumes, in the order in which they are mounted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeRecord>,
    /// What the user asked `create` for; none if an earlier version created it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<Settings>,
    /// Whether `update --all --auto` updates it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub auto_update: bool,
    /// What `rollback` goes back to, if there is anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Previous>,
    /// What identified it on the host when it was created: `zfs:` and its dataset, or `dir:` and
    /// its directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

/// The time, seconds since 1970.
pub(super) fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs())
}

impl ContainerRecord {
    /// A record for a new container.
    pub fn new(
        name: &str,
        image: ImageRecord,
        upper: UpperLocation,
        idmap: Option<IdMap>,
        runtime: Runtime,
        cwd: &str,
    ) -> Self {
        let now = now();
        let found_dir = runtime.dir().exists();
        // Whether a dataset exists is not known here.
        let found_upper = match &upper {
            UpperLocation::Elsewhere(place) => !place.starts_with('/') || Path::new(place).exists(),
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
            engine: None,
            runtime,
            found_dir,
            found_upper,
            cwd,
            volumes: Vec::new(),
            settings: None,
            auto_update: false,
            previous: None,
            place: None,
        }
    }

    /// Whether this is the record of this container. If the store is a copy and the original still
    /// exists, the record is the original's, and so is everything outside the store. A store that
    /// was moved, also to another host, keeps its containers.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn is_of(&self, store: &Store, container: &store::Name) -> Result<bool> {
        let Some(recorded) = &self.place else {
            return Ok(true);
        };
        Ok(*recorded == store.place(container)? || !store::is_there(recorded)?)
    }

    /// The error for a container with another container's record.
    pub fn of_another(&self) -> Error {
        Error::Unfit {
            what: format!(
                "it is a copy of {}, which keeps the configuration and the root directory",
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
                "{} was written by a newer version of this program",
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
        Ok(replace(&path, &text)?)
    }
}
