//! Mount points: a name in a directory that is opened once, see [`DirectoryEntry`].

use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, move_mount};

use super::error::{Error, Result};
use crate::error::Io;
use crate::sys::directory::{DirectoryEntry, link};
use crate::sys::mountinfo::{self, MountInfo};

/// A directory to mount on.
#[derive(Debug, Clone)]
pub struct MountPoint(DirectoryEntry);

impl MountPoint {
    /// The directory at a path.
    ///
    /// # Errors
    /// [`Error::Io`] if there is none, it is the root, or another user could redirect the path.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self(DirectoryEntry::of_directory(path)?))
    }

    /// The mount point of a mount in this namespace.
    ///
    /// # Errors
    /// [`Error::Io`], also if something else is mounted there now.
    pub fn of(mount: &MountInfo) -> Result<Self> {
        let at = Self::open(&mount.mountpoint)?;
        match at.mounted()? {
            Some(seen) if seen.id == mount.id => Ok(at),
            _ => Err(Io::at("finding the mount on", &mount.mountpoint)(Errno::NOENT).into()),
        }
    }

    /// Its path when it was opened, absolute and without symlinks.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A descriptor (O_PATH) of the directory that is visible there: the root directory of the
    /// mount, if there is one.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn directory(&self) -> Result<OwnedFd> {
        Ok(self.0.directory()?)
    }

    /// The mount there; if there are several, the uppermost, which is visible. No request goes to
    /// it. Nothing is mounted on a directory that does not exist.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn mounted(&self) -> Result<Option<MountInfo>> {
        // The number of a mount can be reused, so the descriptor keeps it alive.
        let dir = match self.0.directory() {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let id = self.id_of(dir.as_fd())?;
        if id == self.id_of(self.0.parent())? {
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
                path: self.path().to_owned(),
                image: mounted.source,
            }),
            None => Ok(()),
        }
    }

    /// The number of the mount that a directory is in, without a request to its file system as
    /// statx(2) would make.
    fn id_of(&self, dir: BorrowedFd<'_>) -> Result<u32> {
        let path = format!("/proc/self/fdinfo/{}", dir.as_raw_fd());
        let text = std::fs::read_to_string(&path).map_err(Io::at("reading", Path::new(&path)))?;
        let id = text
            .lines()
            .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
        id.ok_or_else(|| Io::at("finding the mount of", self.path())(Errno::NOTSUP).into())
    }

    /// Attaches a detached mount.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn attach(&self, mount: BorrowedFd<'_>) -> Result<()> {
        let (parent, name) = (self.0.parent(), self.0.name());
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        let moved = move_mount(mount, "", parent, name, flags);
        Ok(moved.map_err(Io::at("mounting on", self.path()))?)
    }

    /// A path that leads there while this exists, even if its path has changed. It ends in a name,
    /// so that no descriptor keeps the mount in use; the name may have become a symlink.
    pub(super) fn through_parent(&self) -> PathBuf {
        link(self.0.parent()).join(self.0.name())
    }
}

impl From<DirectoryEntry> for MountPoint {
    fn from(at: DirectoryEntry) -> Self {
        Self(at)
    }
}

/// The mount at a path, if the path exists; see [`MountPoint::mounted`].
///
/// # Errors
/// As [`MountPoint::open`].
pub fn mounted_at(path: &Path) -> Result<Option<MountInfo>> {
    match MountPoint::open(path).and_then(|at| at.mounted()) {
        Err(Error::Io(e)) if e.kind() == ErrorKind::NotFound => Ok(None),
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
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
}
