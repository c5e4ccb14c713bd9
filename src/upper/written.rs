//! Reads what was written to an upper: finds the upper by its directory, its dataset or its mount,
//! and keeps it unchanged meanwhile.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::directory_snapshots;
use super::error::{Error, Result};
use super::in_use;
use super::rebase;
use super::record::UpperRecord;
use super::upper_dir::{Layout, Upper, is_ephemeral};
use crate::build::sources::upper::Upper as Source;
use crate::error::Io;
use crate::fs::Rootfs;
use crate::serve::{self, shared, unmount};
use crate::sys::directory;
use crate::sys::mountinfo::{self, DirectoryId};
use crate::sys::users::{self, Used};
use crate::zfs::{Dataset, Snapshot, recorded};

/// An upper that has been written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Its directories.
    pub layout: Layout,
    /// Its dataset, if it is the root of one.
    pub dataset: Option<Dataset>,
}

impl Written {
    /// Finds the upper in a directory or a dataset (`zfs:DATASET`), or the upper of a mount at a
    /// directory.
    ///
    /// # Errors
    /// [`Error::NoUpper`], [`Error::Zfs`], [`Error::Io`].
    pub fn find(text: &OsStr) -> Result<Self> {
        let path = match Upper::parse(text)? {
            Upper::Zfs { dataset, .. } => {
                let layout = Layout::in_place(dataset.reach()?);
                layout.check()?;
                return Ok(Self {
                    layout,
                    dataset: Some(dataset),
                });
            }
            Upper::Dir(path) => unmount::mountpoint(&path),
            Upper::Ephemeral { .. } => PathBuf::from(text),
        };
        let place = match mountinfo::at(&path)?.map(|m| (m.overlay(), m.is_ours())) {
            Some((Some(overlay), _)) => match overlay.upper {
                Some(upper) if is_ephemeral(&upper) => {
                    return Err(Error::NoUpper {
                        path,
                        reason: "is mounted with --ephemeral, which keeps nothing",
                    });
                }
                Some(upper) => upper.parent().unwrap_or(&upper).to_owned(),
                None => {
                    return Err(Error::NoUpper {
                        path,
                        reason: "has an upper whose path is too long for mountinfo: name the \
                                 upper's directory",
                    });
                }
            },
            Some((None, true)) => {
                return Err(Error::NoUpper {
                    path,
                    reason: "is mounted read-only",
                });
            }
            _ => {
                // The directory of a container in a store is empty while its dataset is not
                // mounted.
                if Layout::in_place(path.clone()).check().is_err() {
                    recorded::reach_directory(&path)?;
                }
                path.canonicalize().map_err(Io::at("finding", &path))?
            }
        };
        let zfs = mountinfo::at(&place)?.filter(|m| m.fs_type == "zfs" && m.root == Path::new("/"));
        let dir = directory::open(&place)?;
        if zfs.is_none() {
            directory_snapshots::finish(dir.as_fd(), &place)?;
        }
        rebase::finish(dir.as_fd(), &place)?;
        let layout = Layout::in_place(place);
        layout.check()?;
        Ok(Self {
            layout,
            dataset: zfs.and_then(|m| m.source.to_str()?.parse().ok()),
        })
    }

    /// Its record.
    ///
    /// # Errors
    /// [`Error::NoUpper`] if it has none, [`Error::Record`], [`Error::Io`].
    pub fn record(&self) -> Result<UpperRecord> {
        let none = || Error::NoUpper {
            path: self.layout.place.clone(),
            reason: "has no record of an image",
        };
        UpperRecord::read(&self.layout.place)?.ok_or_else(none)
    }

    /// Goes back to before its last move to another image.
    ///
    /// # Errors
    /// [`Error::NoUpdate`], [`Error::Busy`], [`Error::Io`].
    pub fn before_update(&self) -> Result<()> {
        let place = &self.layout.place;
        if !self.mounts()?.is_empty() || in_use::is_known_in_use(place) {
            let (path, users) = (place.clone(), Vec::new());
            return Err(Error::Busy { path, users });
        }
        rebase::back(place, |_, _| Ok(()))
    }

    /// Reads it in its current state.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Serve`] if its ids cannot be mapped back.
    pub fn source(&self, record: &UpperRecord, image: Arc<Rootfs>) -> Result<Source> {
        source(&self.layout.place, record, image)
    }

    /// The identity of its upper directory, by which its mounts are found whatever its path is now.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn id(&self) -> Result<DirectoryId> {
        let upper = &self.layout.upper;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened =
            rustix::fs::open(upper, flags, Mode::empty()).map_err(Io::at("opening", upper))?;
        Ok(DirectoryId::of(opened.as_fd()).map_err(Io::at("looking at", upper))?)
    }

    /// Its mounts in this mount namespace.
    ///
    /// # Errors
    /// [`Error::Serve`] when the mounts cannot be read.
    pub fn mounts(&self) -> Result<Vec<mountinfo::MountInfo>> {
        let id = self.id()?;
        let is_over = |m: &mountinfo::MountInfo| m.overlay().is_some_and(|o| o.is_over(id));
        Ok(mountinfo::all()?.into_iter().filter(is_over).collect())
    }

    /// Its state at a snapshot, if it is in a directory.
    ///
    /// # Errors
    /// [`Error::NoSnapshot`], [`Error::SnapshotName`], [`Error::Io`].
    pub fn at_snapshot(&self, name: &str) -> Result<Still> {
        self.snapshot_directory(name).map(Still::of_copy)
    }

    /// Keeps it unchanged while the result is held: takes a snapshot of a dataset, or makes the
    /// mount of a directory read-only, if it is not in use.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Zfs`], [`Error::Io`].
    pub fn hold(&self) -> Result<Still> {
        let mounts = self.mounts()?;
        // It may be written to through a detached mount, or in another mount namespace.
        if mounts.is_empty() && in_use::is_known_in_use(&self.layout.place) {
            return match &self.dataset {
                Some(dataset) => Still::snapshot(dataset, &self.layout.place),
                None => Err(Error::Busy {
                    path: self.layout.place.clone(),
                    users: Vec::new(),
                }),
            };
        }
        if mounts.is_empty() {
            return Ok(Still {
                place: self.layout.place.clone(),
                snapshot: None,
                frozen: Vec::new(),
            });
        }
        if let Some(dataset) = &self.dataset {
            return Still::snapshot(dataset, &self.layout.place);
        }
        let mut still = Still {
            place: self.layout.place.clone(),
            snapshot: None,
            frozen: Vec::new(),
        };
        for mount in mounts {
            let path = mount.mountpoint.clone();
            let users = users::of(Used::Device(mount.dev), &[std::process::id()]);
            if !users.is_empty() {
                return Err(Error::Busy { path, users });
            }
            match shared::set_read_only(&mount, true) {
                Ok(()) => still.frozen.push(mount),
                Err(serve::Error::Io(e)) if e.kind() == std::io::ErrorKind::ResourceBusy => {
                    return Err(Error::Busy { path, users });
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(still)
    }
}

/// Prefix of the snapshots that readers take; the number and the start time of the process follow.
const COMMIT: &str = "lxcri-fs-reading-";

/// The snapshots of a dataset that killed readers have left.
///
/// # Errors
/// [`Error::Zfs`].
pub fn leftovers(dataset: &Dataset) -> Result<Vec<Snapshot>> {
    let is_left = |snapshot: &Snapshot| {
        let Some((pid, start)) = snapshot
            .name()
            .strip_prefix(COMMIT)
            .and_then(|name| name.split_once('-'))
        else {
            return false;
        };
        started(pid).is_none_or(|now| now != start)
    };
    let free = dataset
        .snapshots()?
        .into_iter()
        .filter(|info| info.clones.is_empty() && info.holds == 0);
    Ok(free.map(|info| info.snapshot).filter(is_left).collect())
}

/// The start time of a process, in clock ticks since boot; `None` if it does not exist.
fn started(pid: &str) -> Option<String> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat")).ok()?;
    // The name may contain anything, the fields after it do not.
    Some(
        stat.rsplit_once(')')?
            .1
            .split_whitespace()
            .nth(19)?
            .to_owned(),
    )
}

/// An upper that does not change while this exists.
#[derive(Debug)]
pub struct Still {
    place: PathBuf,
    snapshot: Option<Snapshot>,
    frozen: Vec<mountinfo::MountInfo>,
}

impl Still {
    fn snapshot(dataset: &Dataset, place: &Path) -> Result<Self> {
        // Remove what killed processes left.
        for left in leftovers(dataset)? {
            left.destroy()?;
        }
        let snapshot = dataset.at(&format!(
            "{COMMIT}{}-{}",
            std::process::id(),
            started("self").unwrap_or_default()
        ))?;
        snapshot.take()?;
        let place = place.join(".zfs/snapshot").join(snapshot.name());
        Ok(Self {
            place,
            snapshot: Some(snapshot),
            frozen: Vec::new(),
        })
    }

    /// A snapshot in a directory, which never changes.
    pub(super) fn of_copy(place: PathBuf) -> Self {
        Self {
            place,
            snapshot: None,
            frozen: Vec::new(),
        }
    }

    /// Where it is: the upper's place, or a snapshot of that.
    pub(super) fn place(&self) -> &Path {
        &self.place
    }

    /// Reads it.
    ///
    /// # Errors
    /// As [`Written::source`].
    pub fn source(&self, record: &UpperRecord, image: Arc<Rootfs>) -> Result<Source> {
        source(&self.place, record, image)
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        for mount in &self.frozen {
            if let Err(error) = shared::set_read_only(mount, false) {
                tracing::warn!("it stays read-only: {}", crate::error::chain(&error));
            }
        }
        if let Some(snapshot) = &self.snapshot {
            // Reading a snapshot has mounted it.
            let _ = rustix::mount::unmount(&self.place, rustix::mount::UnmountFlags::DETACH);
            if let Err(error) = snapshot.destroy() {
                tracing::warn!("{}", crate::error::chain(&error));
            }
        }
    }
}

fn source(place: &Path, record: &UpperRecord, image: Arc<Rootfs>) -> Result<Source> {
    let fd: OwnedFd = match &record.idmap {
        None => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(place, flags, Mode::empty()).map_err(Io::at("opening", place))?
        }
        Some(idmap) => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let mount =
                open_tree(CWD, place, flags).map_err(Io::at("making a bind mount of", place))?;
            shared::map_ids(mount.as_fd(), &idmap.inverse())?;
            mount
        }
    };
    Ok(Source {
        place: fd,
        name: place.display().to_string(),
        image,
        marks: record.overlay.marks,
        numbers: record.overlay.numbers(),
    })
}
