//! Copies directories with everything in them, as `cp -a --reflink=auto` does: owners, modes,
//! extended attributes, nanosecond times, hard links, devices, and holes. Where the file system can
//! share blocks between files, contents are shared.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid,
    XattrFlags, chmodat, chownat, copy_file_range, ioctl_ficlone, lgetxattr, linkat, llistxattr,
    llistxattr_query, lsetxattr, mkdirat, mknodat, openat, readlinkat, seek, statat, symlinkat,
    utimensat,
};
use rustix::io::Errno;

use super::Result;
use crate::error::Io;

/// How much is copied at once, bytes.
const PIECE: usize = 1 << 20;
/// How much the kernel is asked to copy at once, bytes: progress is told in between.
const MAX_IN_KERNEL: usize = 1 << 28;
/// A block of any file system, bytes.
const BLOCK: usize = 1 << 16;
/// The kernel's limit for the value of an attribute, bytes.
const MAX_XATTR: usize = 1 << 16;
/// Opens a directory to list it.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A copy that is being made of parts of one directory in another. It knows what it has copied, so
/// that hard links between the parts stay links.
pub(crate) struct TreeCopy<'a> {
    from: BorrowedFd<'a>,
    to: BorrowedFd<'a>,
    /// Messages name the source so.
    path: &'a Path,
    /// Where files with several names are in the copy, by their device and inode numbers.
    links: HashMap<(u64, u64), PathBuf>,
    /// Whether contents may be shared: true until the file system refuses.
    shares: bool,
    buffer: Vec<u8>,
    done: &'a dyn Fn(u64),
    /// Whether device nodes are copied.
    devices: bool,
}

/// A directory whose entries are being copied.
struct Level {
    from: OwnedFd,
    to: OwnedFd,
    entries: Dir,
    stat: Stat,
}

impl<'a> TreeCopy<'a> {
    /// Will copy from one directory to another, and report how many bytes of content were copied or
    /// shared. `path` is the source's, for messages.
    pub(crate) fn new(
        from: BorrowedFd<'a>,
        to: BorrowedFd<'a>,
        path: &'a Path,
        done: &'a dyn Fn(u64),
    ) -> Self {
        Self {
            from,
            to,
            path,
            links: HashMap::new(),
            shares: true,
            buffer: vec![0; PIECE],
            done,
            devices: true,
        }
    }

    /// Leaves out device nodes.
    pub(crate) fn without_devices(mut self) -> Self {
        self.devices = false;
        self
    }

    /// Copies the directory `name`, which the target does not have yet, or what is in it into the
    /// target's own. Neither may change meanwhile. Takes three descriptors for each level of
    /// the tree.
    ///
    /// # Errors
    /// [`Io`]; what was copied stays.
    pub(crate) fn directory(&mut self, name: &Path) -> Result<()> {
        let path = self.path;
        let failed = |at: &Path, e: io::Error| Io::at("copying", &path.join(at))(e);
        let (top_from, top_to) = (self.from, self.to);
        let mut at = name.to_owned();
        let first =
            enter(top_from, top_to, name.as_os_str()).map_err(|e| failed(name, e.into()))?;
        let mut levels = vec![first];
        while let Some(mut level) = levels.pop() {
            if let Some(entry) = level.entries.next() {
                let entry = entry.map_err(|e| failed(&at, e.into()))?;
                let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
                if name == "." || name == ".." {
                    levels.push(level);
                    continue;
                }
                at.push(&name);
                let inner = self.entry(&level, &name, &at).map_err(|e| failed(&at, e))?;
                levels.push(level);
                match inner {
                    Some(inner) => levels.push(inner),
                    None => drop(at.pop()),
                }
                continue;
            }
            // Last, because what was made in it has changed its times.
            let above = levels.last();
            let (from, to, name) = match above {
                Some(above) => (
                    above.from.as_fd(),
                    above.to.as_fd(),
                    at.file_name().unwrap_or_default(),
                ),
                None => (top_from, top_to, at.as_os_str()),
            };
            attributes(from, to, name, &level.stat).map_err(|e| failed(&at, e.into()))?;
            if above.is_some() {
                at.pop();
            }
        }
        Ok(())
    }

    /// Copies the entry of a directory, which is `at` from the top; returns a directory, whose
    /// entries are to be copied next.
    fn entry(&mut self, level: &Level, name: &OsStr, at: &Path) -> io::Result<Option<Level>> {
        let (from, to) = (level.from.as_fd(), level.to.as_fd());
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind.is_dir() {
            return Ok(Some(enter(from, to, name)?));
        }
        if !self.devices && matches!(kind, FileType::BlockDevice | FileType::CharacterDevice) {
            return Ok(None);
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                let found = beneath(self.to, first)?;
                let first = first.file_name().unwrap_or_default();
                linkat(found, first, to, name, AtFlags::empty())?;
                return Ok(None);
            }
            self.links.insert((stat.st_dev, stat.st_ino), at.to_owned());
        }
        match kind {
            FileType::RegularFile => self.content(from, to, name, &stat)?,
            FileType::Symlink => {
                let target = readlinkat(from, name, Vec::new())?;
                symlinkat(target, to, name)?;
            }
            _ => mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?,
        }
        attributes(from, to, name, &stat)?;
        Ok(None)
    }

    /// Copies the content of a file, which the target does not have yet, without its attributes.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn content(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &OsStr,
        stat: &Stat,
    ) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let old = File::from(openat(from, name, flags, Mode::empty())?);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let new = File::from(openat(to, name, flags, Mode::RUSR | Mode::WUSR)?);
        let size = stat.st_size.unsigned_abs();
        if self.shares && size > 0 {
            match ioctl_ficlone(&new, &old) {
                Ok(()) => {
                    (self.done)(size);
                    return Ok(());
                }
                Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY | Errno::NOSYS) => {
                    self.shares = false;
                }
                // As for a file that is stored inline, or encrypted.
                Err(Errno::INVAL) => {}
                Err(e) => return Err(e.into()),
            }
        }
        new.set_len(size)?;
        let mut at = 0;
        // It shares contents even through an overlay, but not of every file.
        let mut in_kernel = true;
        // A file system without SEEK_DATA says that all is data.
        while let Some(start) = next(&old, SeekFrom::Data(at))? {
            let end = next(&old, SeekFrom::Hole(start))?.unwrap_or(size);
            at = start;
            while at < end {
                if in_kernel {
                    match copied_in_kernel(&old, &new, at, end - at) {
                        Some(0) => return Ok(()),
                        Some(len) => {
                            at += len;
                            (self.done)(len);
                            continue;
                        }
                        None => in_kernel = false,
                    }
                }
                let most = usize::try_from(end - at).map_or(PIECE, |left| left.min(PIECE));
                let len = old.read_at(&mut self.buffer[..most], at)?;
                if len == 0 {
                    return Ok(());
                }
                new.write_all_at(&self.buffer[..len], at)?;
                at += len as u64;
                (self.done)(len as u64);
            }
        }
        Ok(())
    }
}

/// How many bytes the kernel copied, or shared; `None` if it does not for these files.
fn copied_in_kernel(old: &File, new: &File, at: u64, len: u64) -> Option<u64> {
    let (mut from, mut to) = (at, at);
    let len = usize::try_from(len)
        .unwrap_or(usize::MAX)
        .min(MAX_IN_KERNEL);
    let copied = copy_file_range(old, Some(&mut from), new, Some(&mut to), len);
    copied.ok().map(|len| len as u64)
}

/// Whether the file system of a directory can share blocks between files.
///
/// # Errors
/// The system's error when nothing can be written there.
pub(crate) fn shares_blocks(dir: BorrowedFd<'_>) -> io::Result<bool> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = || match openat(dir, ".", flags, Mode::RUSR | Mode::WUSR) {
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => Ok(None),
        other => Ok::<_, Errno>(Some(File::from(other?))),
    };
    let (Some(old), Some(new)) = (file()?, file()?) else {
        return Ok(false);
    };
    old.write_all_at(&[1; BLOCK], 0)?;
    Ok(ioctl_ficlone(&new, &old).is_ok())
}

/// Where data or a hole begins; `None` behind the last data.
fn next(file: &File, whence: SeekFrom) -> io::Result<Option<u64>> {
    match seek(file, whence) {
        Err(Errno::NXIO) => Ok(None),
        other => Ok(Some(other?)),
    }
}

/// Opens the directory that a file is in, below `top`, however long its path is.
fn beneath(top: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = openat(top, ".", flags, Mode::empty())?;
    for name in path.parent().into_iter().flat_map(Path::components) {
        at = openat(&at, name.as_os_str(), flags, Mode::empty())?;
    }
    Ok(at)
}

/// Opens a directory to copy it, and makes the copy if there is none.
fn enter(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &OsStr) -> Result<Level, Errno> {
    let from = openat(from, name, DIRECTORY, Mode::empty())?;
    match mkdirat(to, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e),
    }
    Ok(Level {
        to: openat(to, name, DIRECTORY, Mode::empty())?,
        entries: Dir::read_from(&from)?,
        stat: rustix::fs::fstat(&from)?,
        from,
    })
}

/// Gives a file or directory the owner, mode, extended attributes and times of one in another
/// directory, which are `stat`.
///
/// # Errors
/// The system's error.
pub(crate) fn attributes(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &OsStr,
    stat: &Stat,
) -> Result<(), Errno> {
    // Owner first: a change clears set-user-id and file capabilities.
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if !FileType::from_raw_mode(stat.st_mode).is_symlink() {
        // Just made, so no symlink.
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        chmodat(to, name, mode, AtFlags::empty())?;
    }
    let path = |dir: BorrowedFd<'_>| {
        PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name)
    };
    let (from, new) = (path(from), path(to));
    // Most files have none.
    let len = match llistxattr_query(&from) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => 0,
        other => other?,
    };
    let mut names = vec![0; len];
    let len = match len {
        0 => 0,
        _ => llistxattr(&from, &mut names[..])?,
    };
    let mut value = Vec::new();
    for name in names[..len].split(|&b| b == 0).filter(|n| !n.is_empty()) {
        value.resize(MAX_XATTR, 0);
        let len = lgetxattr(&from, name, &mut value[..])?;
        lsetxattr(&new, name, &value[..len], XattrFlags::empty())?;
    }
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime,
            tv_nsec: stat.st_atime_nsec.cast_signed(),
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec.cast_signed(),
        },
    };
    utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}
