//! Where something is mounted, or is to be: a name in a directory that is opened once.
//!
//! Whoever owns a directory above may put something else at a path at any time, a symlink to /etc
//! for instance. So a path is followed once, here, and through no symlink that another user could
//! have put there; from then on the directory's descriptor is used.

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

/// A directory that is only to be found: nothing is asked of its file system, which may be dead.
const FIND: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// How many symlinks a path may lead through, as in the kernel.
const MAX_LINKS: u32 = 40;
/// Whom a user namespace shows who has no id in it, such as the host's root.
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
    /// [`Error::Io`] when there is none, or it is the root; [`Error::Untrusted`].
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |e| Error::io("finding the directory", path)(e);
        let dir = directory(path)?;
        // As the kernel has it in mountinfo.
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

    /// Where a mount of this namespace is.
    ///
    /// # Errors
    /// [`Error::Io`], also when something else is seen there by now.
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

    /// The directory that is seen there, to be found and no more: the root directory of what is
    /// mounted, if anything is.
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

    /// What is mounted there: the uppermost mount, the one that is seen. It is asked nothing.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn mounted(&self) -> Result<Option<MountInfo>> {
        // A number is given to another mount once it is free, so the descriptor is held.
        let dir = self.directory()?;
        let id = self.id_of(dir.as_fd())?;
        if id == self.id_of(self.parent.as_fd())? {
            return Ok(None);
        }
        Ok(mountinfo::all()?.into_iter().find(|m| m.id == id))
    }

    /// Refuses it when one of our file systems is mounted there.
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

    /// The number of the mount that a directory is in. It is not asked of the file system, as by
    /// statx(2).
    fn id_of(&self, dir: BorrowedFd<'_>) -> Result<u32> {
        let path = format!("/proc/self/fdinfo/{}", dir.as_raw_fd());
        let text =
            std::fs::read_to_string(&path).map_err(Error::io("reading", Path::new(&path)))?;
        let id = text
            .lines()
            .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
        id.ok_or_else(|| Error::io("finding the mount of", &self.path)(Errno::NOTSUP))
    }

    /// Attaches a mount that is attached nowhere.
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

    /// A path that leads there as long as this is held, whatever is at its path. It ends in a name,
    /// so that no descriptor keeps the mount in use; the name may have become a symlink's.
    pub(super) fn through_parent(&self) -> PathBuf {
        link(self.parent.as_fd()).join(&self.name)
    }
}

/// What is mounted at a path, if the path is there; see [`MountPoint::mounted`].
///
/// # Errors
/// As [`MountPoint::open`].
pub fn mounted_at(path: &Path) -> Result<Option<MountInfo>> {
    match MountPoint::open(path).and_then(|at| at.mounted()) {
        Err(Error::Io(e)) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other,
    }
}

/// The name of a descriptor: it leads to what was opened, wherever that is by now.
pub(super) fn link(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Opens a directory to find what is in it.
fn directory(path: &Path) -> Result<OwnedFd> {
    match openat2(CWD, path, FIND, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        Err(Errno::LOOP) => follow(path),
        other => other.map_err(Error::io("finding the directory", path)),
    }
}

/// Follows a path name by name, and those symlinks that nobody else could have put there.
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

/// The names of a path, the first one last.
fn names(path: &Path) -> Vec<OsString> {
    let named = path
        .components()
        .rev()
        .filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir));
    named.map(|c| OsStr::to_owned(c.as_os_str())).collect()
}

/// Whether a symlink, and that it is in this directory, is the host's root's doing or the caller's
/// own.
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
