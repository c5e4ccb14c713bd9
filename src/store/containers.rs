//! Containers as clones begin, and as hooks find them: by their directories, and while other
//! processes may be at work on them.

use std::path::Path;
use std::time::Duration;

use super::error::{Error, Result};
use super::{Container, ImageUse, Location, Lock, Name, Store, directory};
use crate::sys::mountinfo;
use crate::zfs::{Dataset, recorded};

/// How long a hook waits for a container that is being created or deleted. Runtimes end a hook of
/// lxcri-fs after a minute.
const LOCK_LIMIT: Duration = Duration::from_secs(30);

/// The name of a new container.
///
/// # Errors
/// [`Error::Name`].
pub(super) fn new_name(name: &str) -> Result<Name> {
    let name = Name::new(name)?;
    if name.is_work() {
        return Err(Error::Name {
            name: name.to_string(),
            reason: "names that begin with _w are reserved",
        });
    }
    Ok(name)
}

impl Store {
    /// Creates a container from the images of another, marked as unfinished. If the store can clone
    /// datasets, its directory has what the other's has, or had at a snapshot, except the file
    /// `without`; whether it has is returned.
    ///
    /// # Errors
    /// As [`Store::create_container`], [`Error::NotFound`] if the other container is gone, and
    /// [`Error::Zfs`] if there is no such snapshot.
    pub(crate) fn clone_container(
        &self,
        from: &Name,
        snapshot: Option<&str>,
        name: &str,
        without: &str,
    ) -> Result<(Container, bool)> {
        let name = new_name(name)?;
        let _lock = self.change()?;
        let from = self
            .listed(from.as_str())?
            .ok_or_else(|| self.not_found("container", from.as_str()))?;
        let cloned = self
            .backend
            .clone_container(&from, snapshot, &name, without)?;
        match cloned {
            Some(container) => Ok((container, true)),
            None => {
                let images = from.images.unwrap_or_default();
                Ok((self.backend.create_container(&name, &images)?, false))
            }
        }
    }

    /// Sets the images that a container needs: its own, and one that it can go back to. Images
    /// outside the store are left out.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Zfs`].
    pub(crate) fn set_images(&self, name: &Name, root_digests: &[&str]) -> Result<()> {
        let _lock = self.change()?;
        let images = self.images()?;
        let uses = root_digests.iter().filter_map(|digest| {
            let image = images.iter().find(|i| i.facts.root_digest == **digest)?;
            Some(ImageUse {
                name: image.name.to_string(),
                root_digest: image.facts.root_digest.clone(),
            })
        });
        self.backend.set_images(name, &uses.collect::<Vec<_>>())
    }

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
