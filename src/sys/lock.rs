//! Locks with flock(2), which end with their holder, even if it is killed.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::Result;
use crate::error::Io;

/// Pause between two tries to take a lock, for callers who cannot wait for it without bound.
const PAUSE: Duration = Duration::from_millis(5);

/// How to lock a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Shared with other holders of shared locks; does not wait.
    TryShared,
    /// Exclusive; does not wait.
    Try,
    /// Exclusive; waits for all other holders.
    Wait,
}

/// Locks an open file or directory. Returns whether it is locked now; [`Mode::Wait`] always
/// succeeds.
///
/// # Errors
/// The system's error.
pub fn lock(file: &File, mode: Mode) -> io::Result<bool> {
    let operation = match mode {
        Mode::TryShared => FlockOperation::NonBlockingLockShared,
        Mode::Try => FlockOperation::NonBlockingLockExclusive,
        Mode::Wait => FlockOperation::LockExclusive,
    };
    match rustix::io::retry_on_intr(|| flock(file, operation)) {
        Err(Errno::WOULDBLOCK) => Ok(false),
        other => other.map(|()| true).map_err(io::Error::from),
    }
}

/// Locks a file that was opened at a path, and checks that it is still there: the previous holder
/// may have removed it. Returns whether it is locked now.
///
/// # Errors
/// The system's error.
pub fn lock_at(path: &Path, file: &File, mode: Mode) -> io::Result<bool> {
    if !lock(file, mode)? {
        return Ok(false);
    }
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    Ok(std::fs::metadata(path).ok().map(identity) == Some(identity(file.metadata()?)))
}

/// A directory of locks.
#[derive(Debug)]
pub struct Locks {
    dir: PathBuf,
}

/// A lock that is held.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: File,
}

impl Locks {
    /// The locks in a directory, which is created when it is needed.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Waits for a lock. Calls `waiting` once if another process holds it.
    ///
    /// # Errors
    /// [`Io`].
    pub fn lock(&self, name: &str, waiting: impl FnOnce()) -> Result<Lock> {
        if let Some(lock) = self.try_lock(name)? {
            return Ok(lock);
        }
        waiting();
        loop {
            if let Some(lock) = self.lock_with(name, Mode::Wait)? {
                return Ok(lock);
            }
        }
    }

    /// Waits for a lock, but no longer than `limit`; `None` if another process still holds it.
    ///
    /// # Errors
    /// [`Io`].
    pub fn lock_within(&self, name: &str, limit: Duration) -> Result<Option<Lock>> {
        let begun = Instant::now();
        loop {
            let lock = self.try_lock(name)?;
            if lock.is_some() || begun.elapsed() >= limit {
                return Ok(lock);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Takes a lock, unless another process holds it.
    ///
    /// # Errors
    /// [`Io`].
    pub fn try_lock(&self, name: &str) -> Result<Option<Lock>> {
        self.lock_with(name, Mode::Try)
    }

    /// The names of locks that are held, or were held by a process that was killed.
    ///
    /// # Errors
    /// [`Io`].
    pub fn names(&self) -> Result<Vec<String>> {
        let failed = |e| Io::at("reading", &self.dir)(e);
        let entries = match std::fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let names =
            entries.map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()));
        names.collect::<Result<_, _>>().map_err(failed)
    }

    /// `None` if another process holds it, or its holder removed it meanwhile.
    fn lock_with(&self, name: &str, mode: Mode) -> Result<Option<Lock>> {
        let path = self.dir.join(name);
        let take = || {
            let file = match open(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    let make = |dir: &Path, mode| {
                        let mut builder = DirBuilder::new();
                        builder.recursive(true).mode(mode).create(dir)
                    };
                    // The directory above may hold what others need to reach.
                    self.dir
                        .parent()
                        .map_or(Ok(()), |above| make(above, 0o711))?;
                    make(&self.dir, 0o700)?;
                    open(&path)?
                }
                other => other?,
            };
            Ok::<_, io::Error>(lock_at(&path, &file, mode)?.then_some(file))
        };
        let file = take().map_err(Io::at("locking", &path))?;
        // Dropping a `Lock` removes its file, which belongs to another process if the lock was not
        // taken.
        Ok(file.map(|file| Lock { path, _file: file }))
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while it is locked: a process that waits for it sees that it is gone, and makes a
        // new one.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn one_holds_a_lock_at_a_time_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, most) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let locks = Locks::new(dir.path().join("locks"));
                    for _ in 0..200 {
                        let _lock = locks.lock("a", || {}).unwrap();
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
                        std::thread::sleep(Duration::from_micros(50));
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(most.into_inner(), 0);
        let locks = Locks::new(dir.path().join("locks"));
        assert_eq!(locks.names().unwrap(), Vec::<String>::new());
        let held = locks.try_lock("b").unwrap().unwrap();
        assert!(locks.try_lock("b").unwrap().is_none());
        let limit = Duration::from_millis(20);
        assert!(locks.lock_within("b", limit).unwrap().is_none());
        drop(held);
        assert!(locks.lock_within("b", limit).unwrap().is_some());
        assert!(locks.try_lock("b").unwrap().is_some());
    }
}
