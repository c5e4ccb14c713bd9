//! Snapshots of uppers in directories, on file systems that can share blocks between files: copies
//! in `snapshots/` beside the upper.
//!
//! To roll back, a copy of the snapshot is made in `rollback/`. Once that is complete, its parts
//! take the places of the upper's, one by one; if that is interrupted, whoever opens the upper next
//! finishes it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    FlockOperation, Mode, OFlags, RenameFlags, flock, fsync, mkdirat, openat, renameat,
    renameat_with,
};
use rustix::io::Errno;

use super::error::{Error, Result};
use super::record;
use super::snapshots::SnapshotInfo;
use super::upper_dir::{UPPER, VOLUMES, WORK};
use super::written::{Still, Written};
use crate::error::Io;
use crate::sys::directory::is_there;
use crate::sys::extents::tree_usage;
use crate::sys::remove_tree::remove_tree;
use crate::sys::tree_copy::shares_blocks;
use crate::sys::{self, directory};

/// Name of the directory of snapshots, beside the upper.
pub(super) const SNAPSHOTS: &str = "snapshots";
/// Name of a complete copy of a snapshot that is taking the upper's place.
pub(super) const ROLLBACK: &str = "rollback";
/// Begins the names of directories that are being made or removed.
const WORKING: &str = ".tmp-";
/// Ends the names of what was in the place of a part of the copy.
const OLD: &str = ".old";
/// What a rollback replaces.
const PARTS: [&str; 4] = [UPPER, WORK, VOLUMES, record::NAME];
/// Longest name of a snapshot, bytes.
const MAX_NAME: usize = 200;

/// The directory of an upper, locked: no other process takes, removes or rolls back to a snapshot
/// of it.
pub(super) struct Locked<'a> {
    pub(super) dir: File,
    place: &'a Path,
}

impl<'a> Locked<'a> {
    pub(super) fn of(place: &'a Path) -> Result<Self> {
        Self::within(directory::open(place)?.as_fd(), place)
    }

    pub(super) fn within(found: BorrowedFd<'_>, place: &'a Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(found, ".", flags, Mode::empty()).map_err(Io::at("opening", place))?;
        flock(&dir, FlockOperation::LockExclusive).map_err(Io::at("locking", place))?;
        let dir = File::from(dir);
        Ok(Self { dir, place })
    }

    /// Makes an empty directory, in place of what a killed process has left.
    pub(super) fn make(&self, parent: BorrowedFd<'_>, path: &Path, name: &str) -> Result<()> {
        gone(remove_tree(path, name))?;
        let made = mkdirat(parent, name, Mode::RWXU);
        Ok(made.map_err(Io::at("making the directory", &path.join(name)))?)
    }

    /// Finishes a rollback, if one has begun.
    fn finish(&self) -> Result<()> {
        let failed = |e: Errno| Io::at("rolling back", self.place)(e);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let copy = match openat(&self.dir, ROLLBACK, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            other => other.map_err(failed)?,
        };
        for part in PARTS {
            if !is_there(copy.as_fd(), part).map_err(failed)? {
                continue;
            }
            match renameat(&self.dir, part, &copy, format!("{part}{OLD}")) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(failed(e).into()),
            }
            renameat(&copy, part, &self.dir, part).map_err(failed)?;
        }
        fsync(&self.dir).map_err(failed)?;
        Ok(remove_tree(self.place, ROLLBACK)?)
    }
}

/// Finishes a rollback of the upper in an open directory, if one was interrupted.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn finish(dir: BorrowedFd<'_>, place: &Path) -> Result<()> {
    match is_there(dir, ROLLBACK).map_err(Io::at("looking at", place))? {
        true => Locked::within(dir, place)?.finish(),
        false => Ok(()),
    }
}

impl Written {
    /// Takes a snapshot of an upper in a directory, which no process may use meanwhile.
    pub(super) fn copy_as_snapshot(&self, name: &str) -> Result<()> {
        let place = &self.layout.place;
        check(name)?;
        let locked = Locked::of(place)?;
        if !shares_blocks(locked.dir.as_fd()).map_err(Io::at("looking at", place))? {
            return Err(Error::NoSnapshots {
                path: place.clone(),
            });
        }
        let all = place.join(SNAPSHOTS);
        match mkdirat(&locked.dir, SNAPSHOTS, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(Io::at("making the directory", &all)(e).into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = openat(&locked.dir, SNAPSHOTS, flags, Mode::empty());
        let dir = dir.map_err(Io::at("opening", &all))?;
        if is_there(dir.as_fd(), name).map_err(Io::at("looking at", &all))? {
            return Err(Error::SnapshotExists {
                path: place.clone(),
                name: name.to_owned(),
            });
        }
        let still = self.hold()?;
        let new = format!("{WORKING}{name}");
        locked.make(dir.as_fd(), &all, &new)?;
        let made = still
            .copy_to(&all.join(&new), &[VOLUMES], &|_| ())
            .and_then(|()| {
                renameat_with(&dir, &new, &dir, name, RenameFlags::NOREPLACE)
                    .and_then(|()| fsync(&dir))
                    .map_err(|e| Io::at("making the snapshot", &all.join(name))(e).into())
            });
        made.inspect_err(|_| drop(remove_tree(&all, &new)))
    }

    /// The snapshots in a directory, the oldest first.
    pub(super) fn copies(&self) -> Result<Vec<SnapshotInfo>> {
        let all = self.layout.place.join(SNAPSHOTS);
        let entries = match std::fs::read_dir(&all) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(Io::at("listing", &all))?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(Io::at("listing", &all))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(name) = name.filter(|name| check(name).is_ok()) else {
                continue;
            };
            let usage = tree_usage(&path)?;
            let made = path
                .symlink_metadata()
                .map_err(Io::at("looking at", &path))?;
            found.push(SnapshotInfo {
                name: name.to_owned(),
                place: path.display().to_string(),
                created: made.mtime().max(0).unsigned_abs(),
                used: usage.own(),
                referenced: usage.bytes,
                clones: Vec::new(),
            });
        }
        found.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        Ok(found)
    }

    /// The directory of a snapshot.
    pub(super) fn snapshot_directory(&self, name: &str) -> Result<PathBuf> {
        check(name)?;
        let path = self.layout.place.join(SNAPSHOTS).join(name);
        match path.symlink_metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::NoSnapshot {
                path: self.layout.place.clone(),
                name: name.to_owned(),
            }),
            other => Ok(other
                .map(|_| path.clone())
                .map_err(Io::at("looking at", &path))?),
        }
    }

    /// Removes a snapshot in a directory.
    pub(super) fn remove_copy(&self, name: &str) -> Result<()> {
        let _locked = Locked::of(&self.layout.place)?;
        let path = self.snapshot_directory(name)?;
        let all = self.layout.place.join(SNAPSHOTS);
        // If it is interrupted, what is left is no snapshot.
        let old = format!("{WORKING}{name}");
        gone(remove_tree(&all, &old))?;
        std::fs::rename(&path, all.join(&old)).map_err(Io::at("removing", &path))?;
        Ok(remove_tree(&all, &old)?)
    }

    /// Rolls an upper that is not mounted back to a snapshot in a directory.
    pub(super) fn return_to_copy(&self, name: &str) -> Result<()> {
        let place = &self.layout.place;
        let locked = Locked::of(place)?;
        let still = Still::of_copy(self.snapshot_directory(name)?);
        let new = format!("{WORKING}{ROLLBACK}");
        locked.make(locked.dir.as_fd(), place, &new)?;
        let copied = still.copy_to(&place.join(&new), &[VOLUMES], &|_| ());
        copied.inspect_err(|_| drop(remove_tree(place, &new)))?;
        let begun = renameat_with(
            &locked.dir,
            &new,
            &locked.dir,
            ROLLBACK,
            RenameFlags::NOREPLACE,
        )
        .and_then(|()| fsync(&locked.dir));
        begun.map_err(Io::at("rolling back", place))?;
        locked.finish()
    }
}

/// The result of removing what may not be there.
pub(super) fn gone(removed: sys::Result<()>) -> Result<()> {
    match removed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => Ok(other?),
    }
}

/// Refuses what cannot be the name of a snapshot: the rules are those of ZFS.
fn check(name: &str) -> Result<()> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
    if (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(is_plain) && !name.starts_with('.')
    {
        return Ok(());
    }
    Err(Error::SnapshotName {
        name: name.to_owned(),
    })
}
