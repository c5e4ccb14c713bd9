//! A runtime's directory of a container: an OCI bundle, or LXC's directory. Its owner, and the
//! owner of a directory above it, may replace what its path leads to at any time. So it is opened
//! once, and its files are created and removed through that descriptor.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use super::bundle::MAX_CONFIG;
use super::error::{Error, Result};
use super::record::Runtime;
use crate::error::Io;
use crate::serve::mountpoint::MountPoint;
use crate::sys::directory::{DirectoryEntry, is_empty};
use crate::sys::files::{make_private_directory, open_directory_beneath, take};
use crate::sys::replace::unfinished;

/// Deepest directories that runtimes have created as mount points, below the root.
const MAX_DEPTH: u32 = 64;

/// A runtime's directory, open.
#[derive(Debug)]
pub(super) struct RuntimeDirectory {
    /// The directory in the one above.
    at: DirectoryEntry,
    /// What is in it.
    config: DirectoryEntry,
    root: DirectoryEntry,
}

impl RuntimeDirectory {
    /// Creates it, and in it the directory of the root file system.
    ///
    /// # Errors
    /// [`Error::Unfit`] if it exists and is not empty, [`Error::Io`].
    pub(super) fn make(runtime: &Runtime, group: Option<Gid>) -> Result<Self> {
        let at = DirectoryEntry::at(runtime.dir())?;
        let dir = make_private_directory(&at, group)?;
        if !is_empty(&dir).map_err(Io::at("reading", at.path()))? {
            return Err(occupied(at.path()));
        }
        let made = Self::new(at, &dir, runtime)?;
        make_private_directory(&made.root, group)?;
        Ok(made)
    }

    /// Finds it; `None` if it does not exist.
    ///
    /// # Errors
    /// [`Error::Io`], also if another user could redirect its path.
    pub(super) fn find(runtime: &Runtime) -> Result<Option<Self>> {
        let found = DirectoryEntry::of_directory(runtime.dir()).and_then(|at| {
            let dir = at.directory()?;
            Ok((at, dir))
        });
        match found {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            other => {
                let (at, dir) = other?;
                Self::new(at, &dir, runtime).map(Some)
            }
        }
    }

    fn new(at: DirectoryEntry, dir: &OwnedFd, runtime: &Runtime) -> Result<Self> {
        let beneath = |path: &Path| {
            let dir = dir.try_clone().map_err(Io::at("opening", at.path()))?;
            Ok::<_, Error>(DirectoryEntry::beneath(
                dir,
                path.file_name().unwrap_or_default(),
            )?)
        };
        let (config, root) = (beneath(&runtime.config())?, beneath(&runtime.root())?);
        Ok(Self { at, config, root })
    }

    /// Where the root file system is mounted.
    pub(super) fn root(&self) -> MountPoint {
        self.root.clone().into()
    }

    /// Writes the runtime's configuration.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn configure(&self, text: &str) -> Result<()> {
        Ok(self.config.replace(text.as_bytes())?)
    }

    /// Reads the runtime's configuration.
    ///
    /// # Errors
    /// [`Error::Io`], also if it is longer than [`MAX_CONFIG`].
    pub(super) fn configuration(&self) -> Result<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(
            self.config.parent(),
            self.config.name(),
            flags,
            Mode::empty(),
        );
        let file = file.map_err(Io::at("opening", self.config.path()))?;
        Ok(take(File::from(file), MAX_CONFIG).map_err(Io::at("reading", self.config.path()))?)
    }

    /// Removes what `create` made in it, and unless `keep`, the directory itself if it is empty.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn remove(&self, keep: bool) -> Result<()> {
        self.config.remove_file()?;
        self.config
            .beside(&unfinished(self.config.name()))
            .remove_file()?;
        // A runtime that starts without a mount creates mount points there.
        self.remove_empty_directories()?;
        self.root.remove_directory()?;
        if !keep {
            self.at.remove_directory()?;
        }
        Ok(())
    }

    /// Removes directories where the root file system is mounted that contain no files and are no
    /// mount points.
    fn remove_empty_directories(&self) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(self.root.parent(), self.root.name(), flags, Mode::empty()) {
            Err(Errno::NOENT) => {}
            other => {
                let root = other.map_err(Io::at("opening", self.root.path()))?;
                remove_empty_below(&root, MAX_DEPTH);
            }
        }
        Ok(())
    }
}

/// Refuses a directory that is not empty.
///
/// # Errors
/// [`Error::Unfit`], [`Error::Io`].
pub(super) fn check_free(runtime: &Runtime) -> Result<()> {
    let dir = runtime.dir();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let found = match DirectoryEntry::of_directory(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?.directory()?,
    };
    let empty = openat(&found, OsStr::new("."), flags, Mode::empty()).and_then(is_empty);
    match empty.map_err(Io::at("reading", dir))? {
        true => Ok(()),
        false => Err(occupied(dir)),
    }
}

fn occupied(dir: &Path) -> Error {
    Error::Unfit {
        what: format!("{} is not empty", dir.display()),
        hint: Some(
            "name an empty directory, or one that does not exist: `create` creates it".into(),
        ),
    }
}

/// Removes the deepest first. Directories that are not empty, and mount points, stay; symlinks are
/// not followed.
fn remove_empty_below(dir: &OwnedFd, depth: u32) {
    let Ok(entries) = Dir::read_from(dir) else {
        return;
    };
    let may_be = |kind| matches!(kind, FileType::Directory | FileType::Unknown);
    let entries = entries.flatten().filter(|entry| {
        may_be(entry.file_type()) && !matches!(entry.file_name().to_bytes(), b"." | b"..")
    });
    for name in entries
        .map(|entry| entry.file_name().to_owned())
        .collect::<Vec<_>>()
    {
        if depth > 0
            && let Ok(inner) = open_directory_beneath(dir, &name)
        {
            remove_empty_below(&inner, depth - 1);
        }
        let _ = unlinkat(dir, &name, AtFlags::REMOVEDIR);
    }
}
