//! Replaces small files atomically: readers find the old file or the new one, even after a power
//! cut.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, fstat, fsync, openat, renameat, statat, unlinkat};
use rustix::io::Errno;

use super::lock::{self, lock};

/// Suffix of the name of an incomplete file.
pub(crate) const UNFINISHED: &str = ".lxcri-fs-new";

/// The name of the file `name` until it is complete. It identifies what a killed process left.
pub(crate) fn unfinished(name: &OsStr) -> OsString {
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(UNFINISHED);
    temporary
}

/// A file that is complete and synced, but not in its place yet. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Pending {
    dir: OwnedFd,
    name: OsString,
    temporary: Option<OsString>,
    /// Locked until it has its name, so that no process takes it for a leftover.
    file: File,
}

impl Pending {
    /// Writes the new content of the file `name` in a directory, readable by its user alone.
    ///
    /// # Errors
    /// The system's error; nothing is left then.
    pub(crate) fn write(dir: BorrowedFd<'_>, name: &OsStr, content: &[u8]) -> io::Result<Self> {
        let dir = dir.try_clone_to_owned()?;
        let temporary = unfinished(name);
        let file = begin(&dir, &temporary)?;
        let mut pending = Self {
            dir,
            name: name.to_owned(),
            temporary: Some(temporary),
            file,
        };
        pending.file.write_all(content)?;
        pending.file.sync_all()?;
        Ok(pending)
    }

    /// Renames it to its place, and syncs the directory.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn keep(mut self) -> io::Result<()> {
        if let Some(temporary) = &self.temporary {
            renameat(&self.dir, temporary, &self.dir, &self.name)?;
        }
        self.temporary = None;
        Ok(fsync(&self.dir)?)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = unlinkat(&self.dir, temporary, AtFlags::empty());
        }
    }
}

/// Creates a new file of this name, locked. Removes one that a killed process left, and waits for a
/// process that is writing one. Never writes to an existing file.
fn begin(dir: &OwnedFd, name: &OsStr) -> io::Result<File> {
    const NEW: OFlags = OFlags::WRONLY
        .union(OFlags::CREATE)
        .union(OFlags::EXCL)
        .union(OFlags::CLOEXEC);
    const OLD: OFlags = OFlags::RDONLY
        .union(OFlags::NOFOLLOW)
        .union(OFlags::NONBLOCK)
        .union(OFlags::CLOEXEC);
    let mode = Mode::RUSR | Mode::WUSR;
    loop {
        match openat(dir, name, NEW, mode) {
            Ok(new) => {
                let new = File::from(new);
                lock(&new, lock::Mode::Wait)?;
                // Otherwise another process took it for a leftover before it was locked.
                if is_named(dir, name, &new)? {
                    rustix::fs::fchmod(&new, mode)?;
                    return Ok(new);
                }
            }
            Err(Errno::EXIST) => match openat(dir, name, OLD, Mode::empty()) {
                Ok(old) => {
                    let old = File::from(old);
                    lock(&old, lock::Mode::Wait)?;
                    if is_named(dir, name, &old)? {
                        unlinkat(dir, name, AtFlags::empty())?;
                    }
                }
                Err(Errno::NOENT) => {}
                // A symlink.
                Err(Errno::LOOP) => unlinkat(dir, name, AtFlags::empty())?,
                Err(e) => return Err(e.into()),
            },
            Err(e) => return Err(e.into()),
        }
    }
}

/// Whether a name in a directory refers to an open file.
fn is_named(dir: &OwnedFd, name: &OsStr, file: &File) -> io::Result<bool> {
    let open = fstat(file)?;
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) => Ok((named.st_dev, named.st_ino) == (open.st_dev, open.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_not_kept_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let open = File::open(&dir).unwrap();
        drop(Pending::write(open.as_fd(), OsStr::new("record"), b"x").unwrap());
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    }
}
