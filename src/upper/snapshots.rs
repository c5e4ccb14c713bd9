//! Snapshots of uppers: take, list, delete, roll back, and on ZFS clone.

use std::time::{SystemTime, UNIX_EPOCH};

use super::dataset::{self, Limits};
use super::error::{Error, Result};
use super::in_use;
use super::lower::Lower;
use super::over_image::over;
use super::record::UpperRecord;
use super::upper_dir::{Upper, UpperDir};
use super::written::Written;
use crate::serve::mountpoint::MountPoint;
use crate::serve::{shared, unmount};
use crate::sys::directory::sync_file_system;
use crate::sys::mount_attr::MountFlags;
use crate::sys::mountinfo::MountInfo;
use crate::sys::users;
use crate::zfs::{Dataset, Info, Newer, Snapshot};

/// A snapshot as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its name.
    pub name: String,
    /// `DATASET@NAME`, or its directory.
    pub place: String,
    /// When it was taken, seconds since 1970.
    pub created: u64,
    /// What deleting it would free, bytes.
    pub used: u64,
    /// What it shows, bytes.
    pub referenced: u64,
    /// The datasets that were cloned from it.
    pub clones: Vec<String>,
}

/// The state that a rollback returns to.
enum State<'a> {
    Zfs(Snapshot, Newer),
    /// A snapshot in a directory.
    Copy(&'a str),
}

/// Refuses to lose newer snapshots.
fn check_newer(snapshot: &Snapshot, younger: &[Info], newer: Newer) -> Result<()> {
    let in_use = younger
        .iter()
        .find(|info| newer == Newer::Keep || !info.clones.is_empty());
    let Some(in_use) = in_use else {
        return Ok(());
    };
    let younger = younger.iter().map(|info| info.snapshot.name().to_owned());
    Err(Error::NewerSnapshots {
        snapshot: snapshot.clone(),
        younger: younger.collect(),
        clone: in_use.clones.first().cloned(),
    })
}

impl Written {
    /// Its dataset.
    ///
    /// # Errors
    /// [`Error::NotOnZfs`] if it is in a directory.
    fn on_zfs(&self) -> Result<&Dataset> {
        self.dataset.as_ref().ok_or_else(|| Error::NotOnZfs {
            path: self.layout.place.clone(),
        })
    }

    /// Takes a snapshot. On ZFS even of a running container: it holds everything that was written
    /// before, as a power cut at this moment would leave it.
    ///
    /// # Errors
    /// [`Error::NoSnapshots`], [`Error::SnapshotExists`], [`Error::SnapshotName`],
    /// [`Error::Busy`], [`Error::Zfs`], [`Error::Io`].
    pub fn snapshot(&self, name: &str) -> Result<()> {
        match &self.dataset {
            Some(dataset) => self.zfs_snapshot(dataset, name).map(drop),
            None => self.copy_as_snapshot(name),
        }
    }

    fn zfs_snapshot(&self, dataset: &Dataset, name: &str) -> Result<Snapshot> {
        let snapshot = dataset.at(name)?;
        sync_file_system(&self.layout.place)?;
        snapshot.take()?;
        Ok(snapshot)
    }

    /// Its snapshots, the oldest first.
    ///
    /// # Errors
    /// [`Error::Zfs`], [`Error::Io`].
    pub fn snapshots(&self) -> Result<Vec<SnapshotInfo>> {
        let Some(dataset) = &self.dataset else {
            return self.copies();
        };
        let listed = dataset.snapshots()?.into_iter().map(|info| SnapshotInfo {
            name: info.snapshot.name().to_owned(),
            place: info.snapshot.to_string(),
            created: info.creation,
            used: info.used,
            referenced: info.referenced,
            clones: info.clones.iter().map(ToString::to_string).collect(),
        });
        Ok(listed.collect())
    }

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// [`Error::NoSnapshot`], [`Error::SnapshotName`], [`Error::Zfs`], [`Error::Io`].
    pub fn delete_snapshot(&self, name: &str) -> Result<()> {
        match &self.dataset {
            Some(dataset) => Ok(dataset.at(name)?.destroy()?),
            None => self.remove_copy(name),
        }
    }

    /// Rolls back to a snapshot. With `remount`, unmounts it first if it is mounted, and mounts it
    /// again afterwards. Only on ZFS do newer snapshots matter.
    ///
    /// # Errors
    /// [`Error::Mounted`], [`Error::NewerSnapshots`], [`Error::NoSnapshot`], [`Error::Zfs`],
    /// [`Error::Serve`] if it cannot be unmounted. Nothing has changed then.
    pub fn rollback(&self, name: &str, newer: Newer, remount: bool) -> Result<()> {
        let state = match &self.dataset {
            Some(dataset) => {
                let snapshot = dataset.at(name)?;
                let known = dataset.snapshots()?;
                let Some(at) = known.iter().position(|info| info.snapshot == snapshot) else {
                    // The error of ZFS for a missing snapshot.
                    return Ok(snapshot.properties(&["creation"]).map(drop)?);
                };
                check_newer(&snapshot, &known[at + 1..], newer)?;
                State::Zfs(snapshot, newer)
            }
            None => {
                self.snapshot_directory(name)?;
                State::Copy(name)
            }
        };
        let mounts = self.mounts()?;
        let upper = match &self.dataset {
            Some(dataset) => dataset.to_string(),
            None => self.layout.place.display().to_string(),
        };
        let mounted = |place, remount| {
            Err(Error::Mounted {
                upper: upper.clone(),
                place,
                remount,
            })
        };
        let other = users::of_upper(self.id()?);
        if mounts.is_empty() && other.is_none() && in_use::is_in_use(&self.layout)? {
            let place = "that is detached, or in another mount namespace".to_owned();
            return mounted(place, false);
        }
        if let Some(user) = other {
            return mounted(format!("in the mount namespace of {user}"), false);
        }
        match &mounts[..] {
            [] => self.return_to(&state),
            [mount] if remount => self.rollback_mounted(mount, &state),
            mounts => {
                let places: Vec<_> = mounts
                    .iter()
                    .map(|m| m.mountpoint.display().to_string())
                    .collect();
                mounted(format!("on {}", places.join(" and ")), mounts.len() == 1)
            }
        }
    }

    /// Returns to a state while it is not mounted.
    fn return_to(&self, state: &State<'_>) -> Result<()> {
        match state {
            State::Zfs(snapshot, newer) => Ok(snapshot.rollback(*newer)?),
            State::Copy(name) => self.return_to_copy(name),
        }
    }

    fn rollback_mounted(&self, mount: &MountInfo, state: &State<'_>) -> Result<()> {
        let Some(overlay) = mount.overlay() else {
            return self.return_to(state);
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
        unmount::unmount_one_of(&mountpoint)?;
        let rolled_back = self.return_to(state);
        let again = self.mount_again(mount, &mountpoint, lower, &before);
        match (rolled_back, again) {
            (rolled_back, Ok(true)) => rolled_back,
            (Ok(()), Ok(false)) => Err(Error::NotRemounted {
                snapshot: match state {
                    State::Zfs(snapshot, _) => snapshot.to_string(),
                    State::Copy(name) => (*name).to_owned(),
                },
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
/// [`Error::NotOnZfs`], [`Error::Zfs`], [`Error::Io`]. Nothing is left behind then.
pub fn clone(
    from: &Written,
    snapshot: Option<&str>,
    to: &Dataset,
    limits: Limits,
) -> Result<Snapshot> {
    let (origin, is_new) = match snapshot {
        Some(name) => (from.on_zfs()?.at(name)?, false),
        None => {
            let name = format!("for-{}-{}", to.name(), now());
            (from.zfs_snapshot(from.on_zfs()?, &name)?, true)
        }
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
