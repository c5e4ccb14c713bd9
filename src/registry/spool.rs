//! Blobs in files that grow while they are read, and that a later attempt can continue.

use std::fs::{File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::error::{Error, Result};
use crate::build::Digest;
use crate::error::Io;
use crate::sync::{Condvar, Mutex, MutexGuard, switch};

/// Name of the directory for fetched parts of blobs.
pub(crate) const DIRECTORY: &str = ".lxcri-fs-blobs";
/// How long parts are kept for a later attempt.
const KEPT: Duration = Duration::from_secs(7 * 86_400);

#[cfg(all(test, shuttle))]
mod schedules;

/// A directory of blobs.
pub(super) struct SpoolDir {
    path: PathBuf,
}

impl SpoolDir {
    /// Opens the directory below `dir`, and creates it if it is missing.
    ///
    /// # Errors
    /// [`Error::Io`], also if it belongs to another user.
    pub(super) fn below(dir: &Path) -> Result<Self> {
        let path = dir.join(DIRECTORY);
        let making = || Io::at("making the directory", &path);
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.map_err(making())?,
        }
        let meta = path.symlink_metadata().map_err(making())?;
        if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() {
            return Err(making()(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "another user created it",
            ))
            .into());
        }
        let dir = Self { path };
        dir.forget_old();
        Ok(dir)
    }

    /// Removes parts that were not continued for too long.
    fn forget_old(&self) {
        let old = |path: &Path| {
            let file = File::options()
                .read(true)
                .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
                .open(path)
                .ok()?;
            let age = file.metadata().ok()?.modified().ok()?.elapsed().ok()?;
            (age > KEPT && file.try_lock().is_ok()).then_some(file)
        };
        for entry in std::fs::read_dir(&self.path)
            .into_iter()
            .flatten()
            .flatten()
        {
            if let Some(_held) = old(&entry.path()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// The file for a blob of `size` bytes, with the part that an earlier attempt left. If another
    /// process is fetching the same blob, it is a file without a name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn blob(&self, digest: &Digest, size: u64) -> Result<Spool> {
        let path = self.path.join(digest.hex());
        let failed = || Io::at("opening", &path);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(
            rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600))
                .map_err(|e| failed()(e.into()))?,
        );
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let file = tempfile::tempfile_in(&self.path)
                    .map_err(Io::at("making a file in", &self.path))?;
                return Ok(Spool::new(file, None, path, 0));
            }
            Err(TryLockError::Error(e)) => return Err(Io::at("locking", &path)(e).into()),
        }
        let mut have = file.metadata().map_err(failed())?.len();
        if have > size {
            file.set_len(0).map_err(failed())?;
            have = 0;
        }
        Ok(Spool::new(file, Some(path.clone()), path, have))
    }

    /// Removes the directory, if nothing is in it any more.
    pub(super) fn remove_if_empty(&self) {
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// The file of a blob.
pub(super) struct Spool {
    file: File,
    /// Its name, if it has one.
    name: Option<PathBuf>,
    /// What messages call it.
    path: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// How many bytes were fetched.
    have: u64,
    end: Option<End>,
}

enum End {
    /// The blob is complete.
    Complete,
    /// Fetching failed; holds the error until it is taken.
    Failed(Option<Error>),
}

impl Spool {
    fn new(file: File, name: Option<PathBuf>, path: PathBuf, have: u64) -> Self {
        Self {
            file,
            name,
            path,
            state: Mutex::new(State { have, end: None }),
            changed: Condvar::new(),
        }
    }

    /// What messages call it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// How many bytes were fetched.
    pub(super) fn have(&self) -> u64 {
        self.state().have
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn append(&self, bytes: &[u8]) -> Result<()> {
        let at = self.have();
        switch();
        self.file
            .write_all_at(bytes, at)
            .map_err(Io::at("writing", &self.path))?;
        self.state().have = at + bytes.len() as u64;
        self.changed.notify_all();
        Ok(())
    }

    /// Nothing is added any more.
    pub(super) fn end(&self, result: Result<()>) {
        let mut state = self.state();
        if state.end.is_none() {
            state.end =
                Some(result.map_or_else(|error| End::Failed(Some(error)), |()| End::Complete));
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Why it was not completed. Returns the cause only once.
    pub(super) fn failure(&self) -> Option<Error> {
        match &mut self.state().end {
            Some(End::Failed(error)) => Some(error.take().unwrap_or(Error::Cancelled)),
            _ => None,
        }
    }

    /// Removes the file, which is wrong or not needed any more.
    pub(super) fn discard(&self) {
        if let Some(name) = &self.name {
            let _ = std::fs::remove_file(name);
        }
    }

    /// Reads it from beginning to end, waiting for bytes that have not arrived yet.
    pub(super) fn reader(self: &Arc<Self>) -> SpoolReader {
        SpoolReader {
            spool: self.clone(),
            at: 0,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a [`Spool`].
pub(super) struct SpoolReader {
    spool: Arc<Spool>,
    at: u64,
}

impl Read for SpoolReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut state = self.spool.state();
        let have = loop {
            match &state.end {
                _ if state.have > self.at => break state.have,
                Some(End::Complete) => return Ok(0),
                Some(End::Failed(_)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                None => {
                    state = self
                        .spool
                        .changed
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner)
                }
            }
        };
        drop(state);
        let want = usize::try_from(have - self.at)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        let n = self.spool.file.read_at(&mut buf[..want], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}
