//! Mount points: a name in a directory that is opened once.
//!
//! The owner of a directory on the path may replace the rest of the path at any time, for instance
//! by a symlink to /etc. A path is therefore followed only once, here, and not through symlinks
//! that another user could have created; after that, only the directory's descriptor is used.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2, readlinkat};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, move_mount};

use super::error::{Error, Result};
use crate::sys::idmap::in_user_namespace;
use crate::sys::mountinfo::{self, MountInfo};

/// Opens a directory without a request to its file system, which may be dead.
const FIND: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// How many symlinks a path may lead through, as in the kernel.
const MAX_LINKS: u32 = 40;
/// The id that a user namespace shows for users without an id in it, such as the host's root.
const OVERFLOW_UID: u32 = 65534;
const STICKY: u32 = 0o1000;
const OTHERS_WRITE: u32 = 0o002;

/// A directory to mount on.
#[derive(Debug, Clone)]
pub struct MountPoint {
    parent: Arc<OwnedFd>,
    name: OsString,
    path: PathBuf,
}

impl MountPoint {
    /// The directory at a path.
    ///
    /// # Errors
    /// [`Error::Io`] if there is none, or it is the root; [`Error::Untrusted`].
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |e| Error::io("finding the directory", path)(e);
        let dir = directory(path)?;
        // The same path as in mountinfo.
        let found = std::fs::read_link(link(dir.as_fd()))
            .map_err(Error::io("finding the directory", path))?;
        let (Some(parent), Some(name)) = (found.parent(), found.file_name()) else {
            return Err(failed(Errno::BUSY));
        };
        let parent =
            openat2(CWD, parent, FIND, Mode::empty(), ResolveFlags::NO_SYMLINKS).map_err(failed)?;
        Ok(Self {
            parent: Arc::new(parent),
            name: name.to_owned(),
            path: found,
        })
    }

    /// The mount point of a mount in this namespace.
    ///
    /// # Errors
    /// [`Error::Io`], also if something else is mounted there now.
    pub fn of(mount: &MountInfo) -> Result<Self> {
        let at = Self::open(&mount.mountpoint)?;
        match at.mounted()? {
            Some(seen) if seen.id == mount.id => Ok(at),
            _ => Err(Error::io("finding the mount on", &mount.mountpoint)(
                Errno::NOENT,
            )),
        }
    }

    /// Its path when it was opened, absolute and without symlinks.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A descriptor (O_PATH) of the directory that is visible there: the root directory of the
    /// mount, if there is one.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn directory(&self) -> Result<OwnedFd> {
        let failed = Error::io("finding the directory", &self.path);
        openat2(
            &*self.parent,
            &self.name,
            FIND,
            Mode::empty(),
            ResolveFlags::NO_SYMLINKS,
        )
        .map_err(failed)
    }

    /// The mount there; if there are several, the uppermost, which is visible. No request goes to
    /// it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn mounted(&self) -> Result<Option<MountInfo>> {
        // The number of a mount can be reused, so the descriptor keeps it alive.
        let dir = self.directory()?;
        let id = self.id_of(dir.as_fd())?;
        if id == self.id_of(self.parent.as_fd())? {
            return Ok(None);
        }
        Ok(mountinfo::all()?.into_iter().find(|m| m.id == id))
    }

    /// Fails if a file system of lxcri-fs is mounted there.
    ///
    /// # Errors
    /// [`Error::Mounted`], [`Error::Io`].
    pub fn check_free(&self) -> Result<()> {
        match self.mounted()?.filter(MountInfo::is_ours) {
            Some(mounted) => Err(Error::Mounted {
                path: self.path.clone(),
                image: mounted.source,
            }),
            None => Ok(()),
        }
    }

    /// The number of the mount that a directory is in, without a request to its file system as
    /// statx(2) would make.
    fn id_of(&self, dir: BorrowedFd<'_>) -> Result<u32> {
        let path = format!("/proc/self/fdinfo/{}", dir.as_raw_fd());
        let text =
            std::fs::read_to_string(&path).map_err(Error::io("reading", Path::new(&path)))?;
        let id = text
            .lines()
            .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
        id.ok_or_else(|| Error::io("finding the mount of", &self.path)(Errno::NOTSUP))
    }

    /// Attaches a detached mount.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn attach(&self, mount: BorrowedFd<'_>) -> Result<()> {
        move_mount(
            mount,
            "",
            &*self.parent,
            &self.name,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .map_err(Error::io("mounting on", &self.path))
    }

    /// A path that leads there while this exists, even if its path has changed. It ends in a name,
    /// so that no descriptor keeps the mount in use; the name may have become a symlink.
    pub(super) fn through_parent(&self) -> PathBuf {
        link(self.parent.as_fd()).join(&self.name)
    }
}

/// The mount at a path, if the path exists; see [`MountPoint::mounted`].
///
/// # Errors
/// As [`MountPoint::open`].
pub fn mounted_at(path: &Path) -> Result<Option<MountInfo>> {
    match MountPoint::open(path).and_then(|at| at.mounted()) {
        Err(Error::Io(e)) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other,
    }
}

/// The path of a descriptor in /proc, which leads to the opened file even if it was moved.
pub(super) fn link(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Opens a directory to look up names in it.
fn directory(path: &Path) -> Result<OwnedFd> {
    match openat2(CWD, path, FIND, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        Err(Errno::LOOP) => follow(path),
        other => other.map_err(Error::io("finding the directory", path)),
    }
}

/// Follows a path name by name, through symlinks that no other user could have created.
fn follow(path: &Path) -> Result<OwnedFd> {
    let failed = |e| Error::io("finding the directory", path)(e);
    let top = |path: &Path| {
        openat(
            CWD,
            if path.is_absolute() { "/" } else { "." },
            FIND,
            Mode::empty(),
        )
    };
    let mut dir = top(path).map_err(failed)?;
    let mut left = names(path);
    let mut links = 0;
    while let Some(name) = left.pop() {
        match openat2(&dir, &name, FIND, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
            Err(Errno::LOOP) => {}
            other => {
                dir = other.map_err(failed)?;
                continue;
            }
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(failed(Errno::LOOP));
        }
        let symlink = openat(
            &dir,
            &name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(failed)?;
        if !is_trusted(
            &fstat(&dir).map_err(failed)?,
            &fstat(&symlink).map_err(failed)?,
        ) {
            return Err(Error::Untrusted {
                path: path.to_owned(),
                name: PathBuf::from(name),
            });
        }
        let target = readlinkat(&symlink, "", Vec::new())
            .map_err(failed)?
            .into_bytes();
        let target = PathBuf::from(OsString::from_vec(target));
        if target.is_absolute() {
            dir = top(&target).map_err(failed)?;
        }
        left.extend(names(&target));
    }
    Ok(dir)
}

/// The names of a path in reverse order.
fn names(path: &Path) -> Vec<OsString> {
    let named = path
        .components()
        .rev()
        .filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir));
    named.map(|c| OsStr::to_owned(c.as_os_str())).collect()
}

/// Whether only the host's root or the caller could have created a symlink in this directory.
fn is_trusted(dir: &Stat, symlink: &Stat) -> bool {
    let own = rustix::process::geteuid().as_raw();
    let is_trusted = |uid| uid == 0 || uid == own || uid == OVERFLOW_UID && in_user_namespace();
    let others_write = dir.st_mode & OTHERS_WRITE != 0 && dir.st_mode & STICKY == 0;
    is_trusted(symlink.st_uid) && is_trusted(dir.st_uid) && !others_write
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn the_root_is_a_mount_and_a_new_directory_is_none() {
        let temp = tempfile::tempdir().unwrap();
        let at = MountPoint::open(temp.path()).unwrap();
        assert_eq!(
            (at.mounted().unwrap(), at.path()),
            (None, &*temp.path().canonicalize().unwrap())
        );
        let proc = MountPoint::open(Path::new("/proc"))
            .unwrap()
            .mounted()
            .unwrap()
            .unwrap();
        assert_eq!(
            (proc.fs_type.as_str(), proc.mountpoint.as_path()),
            ("proc", Path::new("/proc"))
        );
        assert!(MountPoint::of(&proc).is_ok());
        assert!(MountPoint::open(Path::new("/")).is_err());
        assert_eq!(mounted_at(&temp.path().join("nothing")).unwrap(), None);
    }

    #[test]
    fn own_symlinks_are_followed_and_those_in_a_directory_of_everybodys_are_not() {
        let temp = tempfile::tempdir().unwrap();
        let top = temp.path().canonicalize().unwrap();
        for dir in ["real", "real/x", "open"] {
            std::fs::create_dir(top.join(dir)).unwrap();
        }
        symlink("../real", top.join("real/back")).unwrap();
        symlink(top.join("real/back/x"), top.join("far")).unwrap();
        symlink("../real", top.join("open/there")).unwrap();
        assert_eq!(
            MountPoint::open(&top.join("far")).unwrap().path(),
            top.join("real/x")
        );
        assert_eq!(
            MountPoint::open(&top.join("open/there/x/.."))
                .unwrap()
                .path(),
            top.join("real")
        );
        std::fs::set_permissions(top.join("open"), PermissionsExt::from_mode(0o777)).unwrap();
        assert!(matches!(
            MountPoint::open(&top.join("open/there/x")),
            Err(Error::Untrusted { .. })
        ));
        std::fs::set_permissions(top.join("open"), PermissionsExt::from_mode(0o1777)).unwrap();
        assert!(MountPoint::open(&top.join("open/there/x")).is_ok());
        symlink("round", top.join("round")).unwrap();
        assert!(matches!(
            MountPoint::open(&top.join("round")),
            Err(Error::Io(_))
        ));
    }
}
