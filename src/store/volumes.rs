//! Volumes that outlive their containers.

use std::path::PathBuf;

use super::error::Result;
use super::{Lock, Name, Store};
use crate::sys::extents::Usage;

impl Store {
    /// The directory of the volume of this name, which is made if it is missing, and mounted if
    /// necessary.
    ///
    /// # Errors
    /// [`Error::Io`](super::Error::Io), [`Error::Zfs`](super::Error::Zfs).
    pub fn volume(&self, name: &Name) -> Result<PathBuf> {
        let _lock = self.change()?;
        self.backend.volume(name)
    }

    /// The volumes, ordered by name.
    ///
    /// # Errors
    /// [`Error::Io`](super::Error::Io), [`Error::Zfs`](super::Error::Zfs).
    pub fn volumes(&self) -> Result<Vec<Name>> {
        let mut names = self.backend.volumes()?;
        names.sort();
        Ok(names)
    }

    /// The space that a volume takes.
    ///
    /// # Errors
    /// [`Error::NotFound`](super::Error::NotFound), and as [`Store::volumes`].
    pub fn usage_of_volume(&self, name: &Name) -> Result<Usage> {
        if !self.volumes()?.contains(name) {
            return Err(self.not_found("volume", name.as_str()));
        }
        self.backend.volume_usage(name)
    }

    /// Keeps others from filling or removing a volume.
    ///
    /// # Errors
    /// [`Error::Io`](super::Error::Io).
    pub fn lock_volume(&self, name: &Name) -> Result<Lock> {
        let waiting = || tracing::info!("waiting for another process that fills volume {name}");
        Ok(self.locks.lock(&format!("volume-{name}"), waiting)?)
    }

    /// Removes a volume with all that is in it. Whether a container uses it is for the caller to
    /// find out.
    ///
    /// # Errors
    /// [`Error::NotFound`](super::Error::NotFound), [`Error::InUse`](super::Error::InUse).
    pub fn remove_volume(&self, name: &Name) -> Result<()> {
        let _lock = self.change()?;
        if !self.volumes()?.contains(name) {
            return Err(self.not_found("volume", name.as_str()));
        }
        self.backend.remove_volume(name)
    }
}
