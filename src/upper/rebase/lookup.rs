//! Finds paths in a directory that nobody changes meanwhile, however long they are.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

/// Longest path that is given to the kernel at once, bytes (PATH_MAX is 4096).
const MAX_PATH: usize = 4000;
/// Looks up names.
const FIND: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A directory in which paths are looked up. Symlinks are never followed.
pub(super) struct Lookup {
    root: OwnedFd,
    /// The directory that was found last.
    last: Option<(Vec<u8>, OwnedFd)>,
}

impl Lookup {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self { root, last: None }
    }

    /// Forgets the directory that was found last, because it may have been replaced.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }

    /// The directory that a path is in, and its name there; `None` if there is none.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn parent<'a>(
        &mut self,
        path: &'a [u8],
    ) -> Result<Option<(BorrowedFd<'_>, &'a OsStr)>, Errno> {
        let (parent, name) = match path.iter().rposition(|&b| b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None if path.is_empty() => (path, &b"."[..]),
            None => (&path[..0], path),
        };
        if self.last.as_ref().is_none_or(|(last, _)| last != parent) {
            match open(self.root.as_fd(), parent) {
                Ok(dir) => self.last = Some((parent.to_vec(), dir)),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(e) => return Err(e),
            }
        }
        let dir = self.last.as_ref().map(|(_, dir)| dir.as_fd());
        Ok(dir.map(|dir| (dir, OsStr::from_bytes(name))))
    }
}

/// Opens the directory at a path to look up names in it.
fn open(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let mut at = openat(root, ".", FIND, Mode::empty())?;
    let mut left = path;
    while !left.is_empty() {
        let end = match left.len() <= MAX_PATH {
            true => left.len(),
            false => left[..MAX_PATH]
                .iter()
                .rposition(|&b| b == b'/')
                .ok_or(Errno::NAMETOOLONG)?,
        };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        at = openat2(
            &at,
            OsStr::from_bytes(&left[..end]),
            FIND,
            Mode::empty(),
            resolve,
        )?;
        left = left.get(end + 1..).unwrap_or_default();
    }
    Ok(at)
}

/// A path as messages show it.
pub(super) fn shown(top: &Path, path: &[u8]) -> PathBuf {
    top.join(OsStr::from_bytes(path))
}
