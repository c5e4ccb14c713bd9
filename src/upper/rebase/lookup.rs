//! Finds paths in a directory that nobody changes meanwhile, however long they are.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use crate::update::tree::is_within;

/// How many directories stay open, so that the next one is found from there.
const KEPT: usize = 128;
/// Looks up names.
const FIND: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A directory in which paths are looked up. Symlinks are never followed.
pub(super) struct Lookup {
    root: OwnedFd,
    /// The path of the directory that was found last.
    path: Vec<u8>,
    /// It, after some of those above it, each with the length of its path.
    open: VecDeque<(usize, OwnedFd)>,
}

impl Lookup {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self {
            root,
            path: Vec::new(),
            open: VecDeque::new(),
        }
    }

    /// Forgets the directories that were found, because one may have been replaced.
    pub(super) fn forget(&mut self) {
        self.open.clear();
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
        match self.enter(parent) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            other => other.map(|dir| Some((dir, OsStr::from_bytes(name)))),
        }
    }

    /// The directory at a path. Each name is looked up by itself, from the nearest directory above
    /// it that is open, so that no path is too long.
    fn enter(&mut self, path: &[u8]) -> Result<BorrowedFd<'_>, Errno> {
        let is_above = |len: usize| is_within(path, &self.path[..len]);
        while self.open.back().is_some_and(|(len, _)| !is_above(*len)) {
            self.open.pop_back();
        }
        let mut at = self.open.back().map_or(0, |(len, _)| *len);
        self.path = path.to_vec();
        while at < path.len() {
            let start = at + usize::from(at > 0);
            let rest = &path[start..];
            let end = rest
                .iter()
                .position(|&b| b == b'/')
                .map_or(path.len(), |n| start + n);
            let above = self
                .open
                .back()
                .map_or(self.root.as_fd(), |(_, dir)| dir.as_fd());
            let name = OsStr::from_bytes(&path[start..end]);
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            let dir = openat2(above, name, FIND, Mode::empty(), resolve)?;
            self.open.push_back((end, dir));
            if self.open.len() > KEPT {
                self.open.pop_front();
            }
            at = end;
        }
        Ok(self
            .open
            .back()
            .map_or(self.root.as_fd(), |(_, dir)| dir.as_fd()))
    }
}

/// A path as messages show it.
pub(super) fn shown(top: &Path, path: &[u8]) -> PathBuf {
    top.join(OsStr::from_bytes(path))
}
