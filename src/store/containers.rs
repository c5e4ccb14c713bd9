//! Containers as hooks find them: by their directories, and while other processes may be at work on
//! them.

use std::path::Path;
use std::time::Duration;

use super::error::{Error, Result};
use super::{Location, Lock, Name, Store, directory};
use crate::sys::mountinfo;
use crate::zfs::{Dataset, recorded};

/// How long a hook waits for a container that is being created or deleted. Runtimes end a hook of
/// lxcri-fs after a minute.
const LOCK_LIMIT: Duration = Duration::from_secs(30);

impl Store {
    /// As [`Store::lock_container`], for hooks, for which a runtime waits.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process is at work on it for too long, and those of
    /// [`Store::lock_container`].
    pub fn lock_container_soon(&self, name: &str) -> Result<Lock> {
        let lock = format!("container-{}", Name::new(name)?);
        let locked = self.locks.lock_within(&lock, LOCK_LIMIT)?;
        locked.ok_or_else(|| Error::Locked {
            name: name.to_owned(),
        })
    }

    /// The store of a container, and its name there, from its directory; `None` if the directory
    /// does not exist, or is not in a store.
    ///
    /// # Errors
    /// [`Error::Zfs`] if its dataset cannot be mounted, [`Error::Serve`] if the mounts cannot be
    /// read.
    pub fn of_container(dir: &Path) -> Result<Option<(Self, Name)>> {
        // As long as its dataset is not mounted, it is empty or missing.
        let is_there = dir.read_dir().is_ok_and(|mut all| all.next().is_some());
        if !is_there {
            recorded::reach_directory(dir)?;
        }
        let Ok(dir) = dir.canonicalize() else {
            return Ok(None);
        };
        let mounted =
            mountinfo::at(&dir)?.filter(|m| m.fs_type == "zfs" && m.root == Path::new("/"));
        let found = match mounted.and_then(|m| m.source.to_str()?.parse::<Dataset>().ok()) {
            Some(dataset) => dataset
                .parent()
                .filter(|parent| parent.name() == recorded::CONTAINERS)
                .and_then(|parent| {
                    Some((Location::Zfs(parent.parent()?), dataset.name().to_owned()))
                }),
            None => {
                directory::of_container(&dir).map(|(root, name)| (Location::Directory(root), name))
            }
        };
        match found {
            Some((location, name)) => Ok(Some((Self::at(location)?, Name::new(&name)?))),
            None => Ok(None),
        }
    }
}
