//! Completes an upper that was written with an index, on a kernel where overlayfs cannot have one:
//! docs/SEMANTICS.md, "The fuse engine on Linux 6.16 and later".
//!
//! With an index, a copied-up file with several names has only the names that were used in the
//! upper, and overlayfs finds it under the others through `work/index`. Without an index, these
//! would show the image's old content. The other names are therefore created first.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, Mode, OFlags, ResolveFlags, Timespec, Timestamps, fremovexattr, fstat, futimens,
    linkat, mkdirat, openat, openat2, renameat, syncfs, unlinkat,
};
use rustix::io::Errno;

use super::error::{Error, Result};
use super::lower::Lower;
use super::record::Features;
use super::upper_dir::{Directories, UpperDir, copy_attributes};
use crate::build::sources::upper::{Linked, Upper};
use crate::error::Io;
use crate::fs::Rootfs;

/// Name of the index in overlayfs's own directory.
const INDEX: &str = "index";
/// Attribute with the file handle of what a file was copied up from.
const ORIGIN: &str = "trusted.overlay.origin";
/// Flags for opening directories, never through a symlink.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Gives copied-up files all their names. If this process is killed, the next call completes the
/// work.
///
/// # Errors
/// [`Error::Io`], [`Error::Build`] if the upper cannot be read, [`Error::Index`] if only overlayfs
/// could create a name.
pub(super) fn complete(
    place: &UpperDir,
    directories: &Directories,
    lower: &Lower,
    image: Rootfs,
    known: Features,
) -> Result<()> {
    let name = place.layout.place.display().to_string();
    let dir = place
        .as_fd()
        .try_clone_to_owned()
        .map_err(Io::at("opening", &place.layout.place))?;
    let upper = Upper {
        place: dir,
        name,
        image: Arc::new(image),
        marks: known.marks,
        numbers: known.numbers(),
    };
    let linked = upper.linked()?;
    if linked.is_empty() {
        return Ok(());
    }
    let work = &place.layout.work;
    let index = openat(&directories.work, INDEX, DIRECTORY, Mode::empty())
        .map_err(Io::at("opening", &work.join(INDEX)))?;
    for Linked { entry, paths } in &linked {
        for path in paths {
            let shown = place.layout.upper.join(OsStr::from_bytes(path));
            let (parent, name) = split(path);
            let parent =
                directory(directories.upper.as_fd(), parent, lower).map_err(
                    |error| match error {
                        // Below a moved directory, the image has nothing at this path.
                        Errno::NOENT => Error::Index {
                            path: place.layout.place.clone(),
                            name: shown.clone(),
                        },
                        error => Io::at("making the directory of", &shown)(error).into(),
                    },
                )?;
            let link = || {
                linkat(
                    &index,
                    OsStr::from_bytes(entry),
                    &parent,
                    OsStr::from_bytes(name),
                    AtFlags::empty(),
                )
            };
            match keeping_times(&parent, link) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(Io::at("linking", &shown)(error).into()),
            }
        }
    }
    syncfs(&directories.upper).map_err(Io::at("syncing", &place.layout.upper))?;
    for Linked { entry, .. } in &linked {
        let path = work.join(INDEX).join(OsStr::from_bytes(entry));
        unlinkat(&index, OsStr::from_bytes(entry), AtFlags::empty())
            .map_err(Io::at("removing", &path))?;
    }
    tracing::info!(
        upper = %place.layout.place.display(),
        files = linked.len(),
        "restored all names of hard-linked files",
    );
    Ok(())
}

/// Removes what says by a file handle that the upper's root belongs to the image's. With an index,
/// overlayfs refuses another handle; without the mark, it makes a new one.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn forget_root(place: &UpperDir, directories: &Directories) -> Result<()> {
    match fremovexattr(&directories.upper, ORIGIN) {
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(error) => {
            Err(Io::at("removing overlayfs's mark of", &place.layout.upper)(error).into())
        }
    }
}

/// A path's directory, and its last name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.iter()
        .rposition(|&b| b == b'/')
        .map_or((b"", path), |at| (&path[..at], &path[at + 1..]))
}

/// A directory of the upper, which is created like the image's if it is missing.
fn directory(upper: BorrowedFd<'_>, path: &[u8], lower: &Lower) -> Result<OwnedFd, Errno> {
    let mut dir = openat(upper, ".", DIRECTORY, Mode::empty())?;
    let mut end = 0;
    for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
        end += name.len() + usize::from(end > 0);
        let name = OsStr::from_bytes(name);
        dir = match openat(&dir, name, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => {
                let like = lower.directory(Path::new(OsStr::from_bytes(&path[..end])))?;
                keeping_times(&dir, || make_like(&dir, name, like.as_fd()))?
            }
            other => other?,
        };
    }
    Ok(dir)
}

/// Changes a directory, and restores its times.
fn keeping_times<T>(dir: &OwnedFd, change: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    let stat = fstat(dir)?;
    let changed = change()?;
    let last_access = Timespec {
        tv_sec: stat.st_atime,
        tv_nsec: stat.st_atime_nsec.cast_signed(),
    };
    let last_modification = Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: stat.st_mtime_nsec.cast_signed(),
    };
    futimens(
        dir,
        &Timestamps {
            last_access,
            last_modification,
        },
    )?;
    Ok(changed)
}

/// Creates a directory with all its attributes, or not at all.
fn make_like(dir: &OwnedFd, name: &OsStr, like: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // No overlay uses the upper now, and containers have no reason to use such a name.
    let new = format!(".lxcri-fs-{}", std::process::id());
    match mkdirat(dir, &*new, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let made = openat(dir, &*new, DIRECTORY, Mode::empty())?;
    copy_attributes(like, made.as_fd())?;
    renameat(dir, &*new, dir, name)?;
    Ok(made)
}

impl Lower {
    /// A directory of the image, with all its attributes.
    fn directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let open = |top: BorrowedFd<'_>| {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            openat2(top, path, DIRECTORY, Mode::empty(), resolve)
        };
        match &self.xattrs {
            Some(xattrs) => open(xattrs.as_fd()).or_else(|_| open(self.image.as_fd())),
            None => open(self.image.as_fd()),
        }
    }
}
