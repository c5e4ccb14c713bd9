//! Snapshots of uppers on ZFS: take, roll back, clone.

use std::time::{SystemTime, UNIX_EPOCH};

use super::dataset::{self, Limits};
use super::error::{Error, Result};
use super::in_use;
use super::lower::Lower;
use super::over_image::over;
use super::record::UpperRecord;
use super::upper_dir::{Upper, UpperDir};
use super::written::Written;
use crate::error::Io;
use crate::serve::fuse_mount::Unmount;
use crate::serve::mountpoint::MountPoint;
use crate::serve::{shared, unmount};
use crate::sys::mount_attr::MountFlags;
use crate::sys::mountinfo::MountInfo;
use crate::sys::users;
use crate::zfs::{Dataset, Info, Newer, Snapshot};

impl Written {
    /// Its dataset.
    ///
    /// # Errors
    /// [`Error::NoSnapshots`] if it is in a directory.
    pub fn on_zfs(&self) -> Result<&Dataset> {
        self.dataset.as_ref().ok_or_else(|| Error::NoSnapshots {
            path: self.layout.place.clone(),
        })
    }

    /// Takes a snapshot, even of a running container. It holds everything that was written before,
    /// as a power cut at this moment would leave it.
    ///
    /// # Errors
    /// [`Error::NoSnapshots`], [`Error::Zfs`], [`Error::Io`].
    pub fn snapshot(&self, name: &str) -> Result<Snapshot> {
        let snapshot = self.on_zfs()?.at(name)?;
        // Data that programs wrote through mappings stays in memory until a sync.
        let place = &self.layout.place;
        let dir = std::fs::File::open(place).map_err(Io::at("opening", place))?;
        rustix::fs::syncfs(&dir).map_err(Io::at("syncing", place))?;
        snapshot.take()?;
        Ok(snapshot)
    }

    /// Its snapshots, the oldest first.
    ///
    /// # Errors
    /// [`Error::NoSnapshots`], [`Error::Zfs`].
    pub fn snapshots(&self) -> Result<Vec<Info>> {
        Ok(self.on_zfs()?.snapshots()?)
    }

    /// Rolls back to a snapshot. With `remount`, unmounts it first if it is mounted, and mounts it
    /// again afterwards.
    ///
    /// # Errors
    /// [`Error::Mounted`], [`Error::NewerSnapshots`], [`Error::NoSnapshots`], [`Error::Zfs`],
    /// [`Error::Serve`] if it cannot be unmounted. Nothing has changed then.
    pub fn rollback(&self, name: &str, newer: Newer, remount: bool) -> Result<()> {
        let dataset = self.on_zfs()?;
        let snapshot = dataset.at(name)?;
        let known = dataset.snapshots()?;
        let younger = match known.iter().position(|info| info.snapshot == snapshot) {
            Some(at) => &known[at + 1..],
            // The error of ZFS for a missing snapshot.
            None => return Ok(snapshot.properties(&["creation"]).map(drop)?),
        };
        if let Some(in_use) = younger
            .iter()
            .find(|info| newer == Newer::Keep || !info.clones.is_empty())
        {
            let younger = younger
                .iter()
                .map(|info| info.snapshot.name().to_owned())
                .collect();
            return Err(Error::NewerSnapshots {
                snapshot,
                younger,
                clone: in_use.clones.first().cloned(),
            });
        }
        let mounts = self.mounts()?;
        let other = users::of_upper(self.id()?);
        if mounts.is_empty() && other.is_none() && in_use::is_in_use(&self.layout)? {
            let place = "that is detached, or in another mount namespace".to_owned();
            return Err(Error::Mounted {
                dataset: dataset.clone(),
                place,
                remount: false,
            });
        }
        if let Some(user) = other {
            return Err(Error::Mounted {
                dataset: dataset.clone(),
                place: format!("in the mount namespace of {user}"),
                remount: false,
            });
        }
        match &mounts[..] {
            [] => Ok(snapshot.rollback(newer)?),
            [mount] if remount => self.rollback_mounted(mount, &snapshot, newer),
            mounts => {
                let places: Vec<_> = mounts
                    .iter()
                    .map(|m| m.mountpoint.display().to_string())
                    .collect();
                Err(Error::Mounted {
                    dataset: dataset.clone(),
                    place: format!("on {}", places.join(" and ")),
                    remount: mounts.len() == 1,
                })
            }
        }
    }

    fn rollback_mounted(&self, mount: &MountInfo, snapshot: &Snapshot, newer: Newer) -> Result<()> {
        let Some(overlay) = mount.overlay() else {
            return Ok(snapshot.rollback(newer)?);
        };
        let before = self.record()?;
        // The image stays mounted, so that its keys are not needed.
        let image = shared::another(overlay.lower)?;
        let lower = Lower {
            image,
            xattrs: if overlay.xattrs {
                before.xattrs()?
            } else {
                None
            },
        };
        let mountpoint = MountPoint::of(mount)?;
        unmount::unmount_at(&mountpoint, Unmount::default())?;
        let rolled_back = snapshot.rollback(newer).map_err(Error::from);
        let again = self.mount_again(mount, &mountpoint, lower, &before);
        match (rolled_back, again) {
            (rolled_back, Ok(true)) => rolled_back,
            (Ok(()), Ok(false)) => Err(Error::NotRemounted {
                snapshot: snapshot.clone(),
                mountpoint: mount.mountpoint.clone(),
            }),
            // Whatever failed, the user must know that nothing is mounted now.
            (Err(error), _) | (Ok(()), Err(error)) => Err(Error::LeftUnmounted {
                mountpoint: mount.mountpoint.clone(),
                source: Box::new(error),
            }),
        }
    }

    /// Mounts again after a rollback; returns false if the dataset belongs to another image now.
    fn mount_again(
        &self,
        mount: &MountInfo,
        mountpoint: &MountPoint,
        lower: Lower,
        before: &UpperRecord,
    ) -> Result<bool> {
        let Some(record) = self
            .record()
            .ok()
            .filter(|record| record.check(before, &self.layout.place).is_ok())
        else {
            return Ok(false);
        };
        if let Some(idmap) = &record.idmap {
            lower.map_ids(idmap)?;
        }
        let has = |flag| mount.options.split(',').any(|option| option == flag);
        let flags = MountFlags {
            nosuid: has("nosuid"),
            nodev: has("nodev"),
            noexec: has("noexec"),
            ..MountFlags::default()
        };
        let place = UpperDir::open(&Upper::Dir(self.layout.place.clone()))?;
        over(lower, &mount.source, &place, flags, has("ro"), mountpoint)?;
        Ok(true)
    }
}

/// Clones an upper, or its state at a snapshot, into a new dataset for another container of the
/// same image. Takes a snapshot if none is named. Returns the snapshot.
///
/// # Errors
/// [`Error::NoSnapshots`], [`Error::Zfs`], [`Error::Io`]. Nothing is left behind then.
pub fn clone(
    from: &Written,
    snapshot: Option<&str>,
    to: &Dataset,
    limits: Limits,
) -> Result<Snapshot> {
    let (origin, is_new) = match snapshot {
        Some(name) => (from.on_zfs()?.at(name)?, false),
        None => (
            from.snapshot(&format!("for-{}-{}", to.name(), now()))?,
            true,
        ),
    };
    let cloned = dataset::clone(&origin, to, limits);
    if cloned.is_err() && is_new {
        let _ = origin.destroy();
    }
    cloned.map(|()| origin)
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}
