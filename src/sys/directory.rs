//! Directories on paths that other users may be able to change.
//!
//! The owner of a directory on the path may replace the rest of the path at any time, for instance
//! by a symlink to /etc. A path is therefore followed only once, here, and not through symlinks
//! that another user could have created; after that, only the directory's descriptor is used.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, Dir, Gid, Mode, OFlags, ResolveFlags, Stat, fchmod, fchown, fstat, mkdirat,
    openat, openat2, readlinkat, statat, syncfs, unlinkat,
};
use rustix::io::Errno;

use super::Result;
use super::idmap::in_user_namespace;
use super::replace;
use crate::error::{Io, Untrusted};

/// Opens a directory without a request to its file system, which may be dead.
const FIND: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Opens a directory to list it, to set its mode, or to sync it.
const READ: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// How many symlinks a path may lead through, as in the kernel.
const MAX_LINKS: u32 = 40;
/// The id that a user namespace shows for users without an id in it, such as the host's root.
const OVERFLOW_UID: u32 = 65534;
const STICKY: u32 = 0o1000;
const OTHERS_WRITE: u32 = 0o002;
const FINDING: &str = "finding the directory";

/// A name in a directory that was opened once.
#[derive(Debug, Clone)]
pub struct DirectoryEntry {
    parent: Arc<OwnedFd>,
    name: OsString,
    path: PathBuf,
}

impl DirectoryEntry {
    /// The existing directory at a path.
    ///
    /// # Errors
    /// [`Io`] if there is none, it is the root, or the path is [`Untrusted`].
    pub fn of_directory(path: &Path) -> Result<Self> {
        let failed = |e| Io::at(FINDING, path)(e);
        // The same path as in mountinfo.
        let found = path_of(open(path)?.as_fd()).map_err(Io::at(FINDING, path))?;
        let (Some(parent), Some(name)) = (found.parent(), found.file_name()) else {
            let root = io::Error::other("it is the root directory");
            return Err(Io::at(FINDING, path)(root));
        };
        let parent =
            openat2(CWD, parent, FIND, Mode::empty(), ResolveFlags::NO_SYMLINKS).map_err(failed)?;
        Ok(Self {
            parent: Arc::new(parent),
            name: name.to_owned(),
            path: found,
        })
    }

    /// The last name of a path, whatever has it. A symlink there is not followed.
    ///
    /// # Errors
    /// [`Io`] if the directory above does not exist, or its path is [`Untrusted`].
    pub fn at(path: &Path) -> Result<Self> {
        let name = path
            .file_name()
            .ok_or_else(|| Io::at(FINDING, path)(Errno::INVAL))?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        Self::beneath(open(parent.unwrap_or(Path::new(".")))?, name)
    }

    /// A name, without slashes, in an open directory.
    ///
    /// # Errors
    /// [`Io`] if the directory's path cannot be read.
    pub fn beneath(dir: OwnedFd, name: &OsStr) -> Result<Self> {
        let path = path_of(dir.as_fd()).map_err(Io::at(FINDING, Path::new(name)))?;
        Ok(Self {
            parent: Arc::new(dir),
            name: name.to_owned(),
            path: path.join(name),
        })
    }

    /// Another name in the same directory.
    pub fn beside(&self, name: &OsStr) -> Self {
        Self {
            parent: Arc::clone(&self.parent),
            name: name.to_owned(),
            path: self.path.with_file_name(name),
        }
    }

    /// Its path when it was found, absolute and without symlinks.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its name.
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    /// The directory that contains it, to look up names in it.
    pub fn parent(&self) -> BorrowedFd<'_> {
        self.parent.as_fd()
    }

    /// Opens the directory of this name, without a request to its file system.
    ///
    /// # Errors
    /// [`Io`], also if it is a symlink.
    pub fn directory(&self) -> Result<OwnedFd> {
        openat2(
            &*self.parent,
            &self.name,
            FIND,
            Mode::empty(),
            ResolveFlags::NO_SYMLINKS,
        )
        .map_err(Io::at(FINDING, &self.path))
    }

    /// Creates a directory with this mode, whatever the umask, or sets the mode of an existing one.
    ///
    /// # Errors
    /// [`Io`], also if something else exists there.
    pub fn make_directory(&self, mode: u32, group: Option<Gid>) -> Result<OwnedFd> {
        let failed = || Io::at("making the directory", &self.path);
        match mkdirat(&*self.parent, &self.name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(failed()(e)),
        }
        let dir = openat(&*self.parent, &self.name, READ, Mode::empty()).map_err(failed())?;
        set_mode(dir.as_fd(), mode, group).map_err(failed())?;
        Ok(dir)
    }

    /// Replaces the file of this name, readable by its user alone; see `sys::replace`.
    ///
    /// # Errors
    /// [`Io`].
    pub fn replace(&self, content: &[u8]) -> Result<()> {
        // To sync a directory takes more than a descriptor for looking up names.
        let dir = openat(&*self.parent, ".", READ, Mode::empty()).map_err(io::Error::from);
        dir.and_then(|dir| replace::Pending::write(dir.as_fd(), &self.name, content)?.keep())
            .map_err(Io::at("writing", &self.path))
    }

    /// Removes the file of this name. Returns whether there was one.
    ///
    /// # Errors
    /// [`Io`].
    pub fn remove_file(&self) -> Result<bool> {
        self.remove(AtFlags::empty(), &[])
    }

    /// Removes the directory of this name if it is empty. Returns whether it did.
    ///
    /// # Errors
    /// [`Io`].
    pub fn remove_directory(&self) -> Result<bool> {
        self.remove(AtFlags::REMOVEDIR, &[Errno::NOTEMPTY, Errno::EXIST])
    }

    fn remove(&self, flags: AtFlags, ignored: &[Errno]) -> Result<bool> {
        match unlinkat(&*self.parent, &self.name, flags) {
            Ok(()) => Ok(true),
            Err(e) if e == Errno::NOENT || ignored.contains(&e) => Ok(false),
            Err(e) => Err(Io::at("removing", &self.path)(e)),
        }
    }
}

/// Replaces the file at a path, readable by its user alone. No other user can redirect the path.
///
/// # Errors
/// [`Io`]. The old file is unchanged then; or the new one is in place, if only
/// syncing the directory failed.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<()> {
    DirectoryEntry::at(path)?.replace(content)
}

/// Sets mode and group, in an order that gives nobody access in between.
///
/// # Errors
/// The system's error.
pub fn set_mode(file: BorrowedFd<'_>, mode: u32, group: Option<Gid>) -> Result<(), Errno> {
    if let Some(group) = group {
        fchmod(file, Mode::from_raw_mode(mode & 0o700))?;
        fchown(file, None, Some(group))?;
    }
    fchmod(file, Mode::from_raw_mode(mode))
}

/// The path of a descriptor in /proc, which leads to the opened file even if it was moved.
pub fn link(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// The path of an open file.
///
/// # Errors
/// The system's error.
pub fn path_of(fd: BorrowedFd<'_>) -> io::Result<PathBuf> {
    std::fs::read_link(link(fd))
}

/// Whether a directory has something of this name.
///
/// # Errors
/// The system's error.
pub fn is_there(dir: impl AsFd, name: &str) -> Result<bool, Errno> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(false),
        other => other.map(|_| true),
    }
}

/// Writes everything to the disk that was written to the file system of a directory, also what
/// programs wrote through mappings, which a snapshot would not have.
///
/// # Errors
/// [`Io`].
pub fn sync_file_system(dir: &Path) -> Result<()> {
    let opened = std::fs::File::open(dir).map_err(Io::at("opening", dir))?;
    syncfs(&opened).map_err(Io::at("syncing", dir))
}

/// Whether a directory is empty.
///
/// # Errors
/// The system's error.
pub fn is_empty(dir: impl AsFd) -> Result<bool, Errno> {
    for entry in Dir::read_from(dir)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Creates a directory and those above it, as far as they are missing.
///
/// # Errors
/// [`Io`], also if the path is [`Untrusted`].
pub fn make_all(path: &Path, mode: Mode) -> Result<OwnedFd> {
    let failed = |e| Io::at("making the directory", path)(e);
    match open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed(Errno::NOENT));
    };
    let parent = match parent.as_os_str().is_empty() {
        true => open(Path::new("."))?,
        false => make_all(parent, mode)?,
    };
    match mkdirat(&parent, name, mode) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(failed(e)),
    }
    openat(&parent, name, FIND | OFlags::NOFOLLOW, Mode::empty()).map_err(failed)
}

/// Opens a directory to look up names in it.
///
/// # Errors
/// [`Io`], also if the path is [`Untrusted`].
pub fn open(path: &Path) -> Result<OwnedFd> {
    match openat2(CWD, path, FIND, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        Err(Errno::LOOP) => follow(path),
        other => other.map_err(Io::at(FINDING, path)),
    }
}

/// Follows a path name by name, through symlinks that no other user could have created.
fn follow(path: &Path) -> Result<OwnedFd> {
    let failed = |e| Io::at(FINDING, path)(e);
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
            let name = PathBuf::from(name);
            return Err(Io::at(FINDING, path)(io::Error::other(Untrusted { name })));
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
    fn own_symlinks_are_followed_and_those_in_a_directory_of_everybodys_are_not() {
        let temp = tempfile::tempdir().unwrap();
        let top = temp.path().canonicalize().unwrap();
        for dir in ["real", "real/x", "open"] {
            std::fs::create_dir(top.join(dir)).unwrap();
        }
        symlink("../real", top.join("real/back")).unwrap();
        symlink(top.join("real/back/x"), top.join("far")).unwrap();
        symlink("../real", top.join("open/there")).unwrap();
        let path = |name: &str| DirectoryEntry::of_directory(&top.join(name)).map(|at| at.path);
        assert_eq!(path("far").unwrap(), top.join("real/x"));
        assert_eq!(path("open/there/x/..").unwrap(), top.join("real"));
        let open_to = |mode| {
            std::fs::set_permissions(top.join("open"), PermissionsExt::from_mode(mode)).unwrap();
        };
        open_to(0o777);
        let refused = [
            path("open/there/x").unwrap_err(),
            DirectoryEntry::at(&top.join("open/there/new")).unwrap_err(),
            make_all(&top.join("open/there/new"), Mode::RWXU).unwrap_err(),
        ];
        for error in refused {
            assert!(error.is_untrusted(), "{error:?}");
        }
        assert!(!top.join("real/new").exists());
        open_to(0o1777);
        assert!(path("open/there/x").is_ok());
        make_all(&top.join("open/there/new/one"), Mode::RWXU).unwrap();
        assert!(top.join("real/new/one").is_dir());
        symlink("round", top.join("round")).unwrap();
        assert!(!path("round").unwrap_err().is_untrusted());
    }

    #[test]
    fn what_is_named_is_changed_where_it_was_found() {
        let temp = tempfile::tempdir().unwrap();
        let top = temp.path().canonicalize().unwrap();
        std::fs::create_dir(top.join("elsewhere")).unwrap();
        let dir = DirectoryEntry::at(&top.join("dir")).unwrap();
        let inside = |name: &str| {
            let dir = dir.make_directory(0o750, None).unwrap();
            DirectoryEntry::beneath(dir, OsStr::new(name)).unwrap()
        };
        let (file, below) = (inside("file"), inside("below"));
        std::fs::rename(top.join("dir"), top.join("moved")).unwrap();
        symlink("elsewhere", top.join("dir")).unwrap();
        file.replace(b"content").unwrap();
        below.make_directory(0o700, None).unwrap();
        assert_eq!(std::fs::read(top.join("moved/file")).unwrap(), b"content");
        assert!(top.join("moved/below").is_dir());
        assert!(dir.directory().is_err() && dir.make_directory(0o700, None).is_err());
        assert!(file.remove_file().unwrap() && below.remove_directory().unwrap());
        assert!(!file.remove_file().unwrap() && !below.remove_directory().unwrap());
        assert!(is_empty(std::fs::File::open(top.join("moved")).unwrap()).unwrap());
        assert!(is_empty(std::fs::File::open(top.join("elsewhere")).unwrap()).unwrap());
    }

    #[test]
    fn a_file_is_whole_whoever_writes_at_the_same_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.json");
        let contents: Vec<Vec<u8>> = (0..4_u8).map(|i| vec![b'a' + i; 10_000]).collect();
        std::thread::scope(|scope| {
            for content in &contents {
                scope.spawn(|| (0..50).for_each(|_| replace(&path, content).unwrap()));
            }
            for _ in 0..200 {
                let found = std::fs::read(&path);
                assert!(found.is_err() || contents.contains(&found.unwrap()));
            }
        });
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn what_was_left_is_removed_and_never_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("record"), dir.path().join("other"));
        std::fs::write(&other, "other").unwrap();
        let left = dir.path().join(replace::unfinished(OsStr::new("record")));
        std::fs::hard_link(&other, &left).unwrap();
        replace(&path, b"one").unwrap();
        symlink(&other, &left).unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&other).unwrap(), b"other");
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert!(!left.exists());
    }
}
