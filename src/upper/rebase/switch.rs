//! Puts a new upper into an old one's place, and goes back.
//!
//! A new upper is made in a temporary directory beside the old one. Renaming that to `update/` is
//! the one step that decides: from then on, whoever opens the upper moves the parts of it into
//! their places, and the old ones to `previous/`. To go back, `previous/` is renamed to `update/`.
//! The files of a container that are in `update/` too are put into their places by the runtime's
//! side, which then calls [`complete`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Mode, OFlags, RenameFlags, fsync, mkdirat, openat, renameat, renameat_with, unlinkat,
};
use rustix::io::Errno;

use super::{LOST, PREVIOUS, UPDATE};
use crate::error::Io;
use crate::sys::directory::{self, is_there, sync_file_system};
use crate::sys::remove_tree::remove_tree;
use crate::upper::directory_snapshots::{Locked, gone};
use crate::upper::error::{Error, Result};
use crate::upper::record;
use crate::upper::upper_dir::{UPPER, WORK};

/// Name of the directory of an upper that is being made.
const STAGED: &str = ".tmp-update";
/// Name of what is being removed.
const REMOVED: &str = ".tmp-previous";
/// Name of the directory of what was in the places of the new parts.
const OLD: &str = "old";
/// What is replaced.
const PARTS: [&str; 4] = [UPPER, WORK, record::NAME, LOST];
/// The file of a container whose presence says that the runtime's side has to complete the update.
pub const CONTAINER: &str = "container.json";

/// A new upper that is being made beside an old one. If it is dropped, it is removed.
pub struct Stage<'a> {
    locked: Locked<'a>,
    place: &'a Path,
    dir: OwnedFd,
    is_kept: bool,
}

impl std::fmt::Debug for Stage<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stage")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl<'a> Stage<'a> {
    /// Begins a new upper beside the one in a place, which no other process changes meanwhile.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn begin(place: &'a Path) -> Result<Self> {
        let locked = Locked::of(place)?;
        locked.make(locked.dir.as_fd(), place, STAGED)?;
        let dir = open(locked.dir.as_fd(), STAGED).map_err(Io::at("opening", place))?;
        mkdirat(&dir, LOST, Mode::RWXU).map_err(Io::at("making the directory", place))?;
        Ok(Self {
            locked,
            place,
            dir,
            is_kept: false,
        })
    }

    /// Its directory.
    pub fn path(&self) -> PathBuf {
        self.place.join(STAGED)
    }

    /// The directory for what lost a conflict.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn lost(&self) -> Result<OwnedFd> {
        Ok(open(self.dir.as_fd(), LOST).map_err(Io::at("opening", &self.path()))?)
    }

    /// The directory for copies of a container's files as they are now.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn old(&self) -> Result<PathBuf> {
        let path = self.path().join(OLD);
        match mkdirat(&self.dir, OLD, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => Ok(path),
            Err(e) => Err(Io::at("making the directory", &path)(e).into()),
        }
    }

    /// Decides for the new upper, and puts it into its place, unless that is the runtime's task.
    ///
    /// # Errors
    /// [`Error::Io`]. The old upper is in its place then, or the next process that opens it
    /// continues.
    pub fn commit(mut self) -> Result<()> {
        sync_file_system(self.place)?;
        decide(&self.locked, self.place, STAGED)?;
        self.is_kept = true;
        finish_locked(&self.locked, self.place)
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            drop(remove_tree(self.place, STAGED));
        }
    }
}

fn open(at: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

/// The one step that decides.
fn decide(locked: &Locked<'_>, place: &Path, new: &str) -> Result<()> {
    let dir = &locked.dir;
    let renamed = renameat_with(dir, new, dir, UPDATE, RenameFlags::NOREPLACE);
    Ok(renamed
        .and_then(|()| fsync(dir))
        .map_err(Io::at("updating", place))?)
}

/// The directory of an update that has been decided in a place, and not been completed.
///
/// # Errors
/// [`Error::Io`].
pub fn pending(place: &Path) -> Result<Option<PathBuf>> {
    let dir = match directory::open(place) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let there = is_there(&dir, UPDATE).map_err(Io::at("looking at", place))?;
    Ok(there.then(|| place.join(UPDATE)))
}

/// Completes an update of the upper in an open directory, if one was interrupted and no container
/// belongs to it.
///
/// # Errors
/// [`Error::Io`].
pub(in crate::upper) fn finish(dir: BorrowedFd<'_>, place: &Path) -> Result<()> {
    match is_there(dir, UPDATE).map_err(Io::at("looking at", place))? {
        true => finish_locked(&Locked::within(dir, place)?, place),
        false => Ok(()),
    }
}

fn finish_locked(locked: &Locked<'_>, place: &Path) -> Result<()> {
    let Some(update) = find(locked, place)? else {
        return Ok(());
    };
    if is_there(&update, CONTAINER).map_err(Io::at("looking at", place))? {
        return Ok(());
    }
    move_parts(locked, &update, place)?;
    end(locked, &update, place)
}

fn find(locked: &Locked<'_>, place: &Path) -> Result<Option<OwnedFd>> {
    match open(locked.dir.as_fd(), UPDATE) {
        Err(Errno::NOENT) => Ok(None),
        other => Ok(Some(other.map_err(Io::at("opening", &place.join(UPDATE)))?)),
    }
}

/// Puts the upper of a container's update into its place.
///
/// # Errors
/// [`Error::Io`]; the next call continues.
pub fn finish_parts(place: &Path) -> Result<()> {
    let locked = Locked::of(place)?;
    match find(&locked, place)? {
        Some(update) => move_parts(&locked, &update, place),
        None => Ok(()),
    }
}

/// Ends a container's update, whose files are all in their places.
///
/// # Errors
/// [`Error::Io`]; the next call continues.
pub fn complete(place: &Path) -> Result<()> {
    let locked = Locked::of(place)?;
    let Some(update) = find(&locked, place)? else {
        return Ok(());
    };
    // From here on, it is no container's any more.
    match unlinkat(&update, CONTAINER, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(Io::at("updating", place)(e).into()),
    }
    end(&locked, &update, place)
}

fn move_parts(locked: &Locked<'_>, update: &OwnedFd, place: &Path) -> Result<()> {
    let failed = |e: Errno| Io::at("updating", place)(e);
    for part in PARTS {
        if !is_there(update, part).map_err(failed)? {
            continue;
        }
        match mkdirat(update, OLD, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(failed(e).into()),
        }
        let old = open(update.as_fd(), OLD).map_err(failed)?;
        match renameat(&locked.dir, part, &old, part) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(failed(e).into()),
        }
        renameat(update, part, &locked.dir, part).map_err(failed)?;
    }
    // Without conflicts, it is empty.
    match unlinkat(&locked.dir, LOST, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => {}
        Err(e) => return Err(failed(e).into()),
    }
    Ok(fsync(&locked.dir).map_err(failed)?)
}

fn end(locked: &Locked<'_>, update: &OwnedFd, place: &Path) -> Result<()> {
    let failed = |e: Errno| Io::at("updating", place)(e);
    if is_there(update, OLD).map_err(failed)? {
        discard(locked, place)?;
        renameat(update, OLD, &locked.dir, PREVIOUS).map_err(failed)?;
        fsync(&locked.dir).map_err(failed)?;
    }
    gone_tree(place, UPDATE)
}

/// Removes the way back.
fn discard(locked: &Locked<'_>, place: &Path) -> Result<()> {
    gone_tree(place, REMOVED)?;
    let dir = &locked.dir;
    match renameat(dir, PREVIOUS, dir, REMOVED) {
        Err(Errno::NOENT) => Ok(()),
        other => {
            other.map_err(Io::at("removing", &place.join(PREVIOUS)))?;
            gone_tree(place, REMOVED)
        }
    }
}

/// Whether the upper in a place can go back to before its last update.
///
/// # Errors
/// [`Error::Io`].
pub fn can_go_back(place: &Path) -> Result<bool> {
    let dir = match directory::open(place) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    Ok(is_there(&dir, PREVIOUS).map_err(Io::at("looking at", place))?)
}

/// Goes back to before the last update: what is there now becomes what is gone back to next time.
/// `prepare` gets the directories of what is gone back to, and for copies of a container's files as
/// they are now.
///
/// # Errors
/// [`Error::NoUpdate`], [`Error::Io`], those of `prepare`.
pub fn back<E: From<Error>>(
    place: &Path,
    prepare: impl FnOnce(&Path, &Path) -> Result<(), E>,
) -> Result<(), E> {
    let locked = Locked::of(place)?;
    let no_update = || Error::NoUpdate {
        path: place.to_owned(),
    };
    let previous = match open(locked.dir.as_fd(), PREVIOUS) {
        Err(Errno::NOENT) => return Err(no_update().into()),
        other => other.map_err(|e| Error::from(Io::at("opening", &place.join(PREVIOUS))(e)))?,
    };
    let path = place.join(PREVIOUS);
    gone_tree(&path, OLD)?;
    let made = mkdirat(&previous, OLD, Mode::RWXU);
    made.map_err(|e| Error::from(Io::at("making the directory", &path)(e)))?;
    prepare(&path, &path.join(OLD))?;
    decide(&locked, place, PREVIOUS)?;
    Ok(finish_locked(&locked, place)?)
}

/// Removes the way back. Returns whether there was one.
///
/// # Errors
/// [`Error::Io`].
pub fn forget(place: &Path) -> Result<bool> {
    let was = can_go_back(place)?;
    if was {
        discard(&Locked::of(place)?, place)?;
    }
    Ok(was)
}

/// Removes what a killed update has left of an upper that it was making. No other process may be
/// updating the upper.
///
/// # Errors
/// [`Error::Io`].
pub fn sweep(place: &Path) -> Result<()> {
    let dir = match directory::open(place) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for name in [STAGED, REMOVED] {
        if is_there(&dir, name).map_err(Io::at("looking at", place))? {
            gone_tree(place, name)?;
        }
    }
    Ok(())
}

fn gone_tree(place: &Path, name: &str) -> Result<()> {
    gone(remove_tree(place, name))
}
