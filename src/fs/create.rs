//! Creates files on another file system like those of an image.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use bfc::format::{S_IFBLK, S_IFCHR, S_IFLNK, S_IFMT, S_IFREG};
use bfc::rootfs::Xattr;
use bfc::rootfs::format::Inode;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    lsetxattr, mknodat, openat, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::Rootfs;

/// Creates any inode except a directory, without following symlinks and without attributes. A
/// regular file is empty, and returned open for writing.
///
/// # Errors
/// The system's error; EEXIST if the name exists.
pub fn make_node(
    rootfs: &Rootfs,
    parent: BorrowedFd<'_>,
    name: &OsStr,
    ino: u32,
    inode: &Inode,
) -> Result<Option<File>, Errno> {
    let kind = inode.mode & S_IFMT;
    match kind {
        S_IFREG => {
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            return openat(parent, name, flags, Mode::RUSR | Mode::WUSR).map(|fd| Some(fd.into()));
        }
        S_IFLNK => {
            let target = rootfs.readlink(ino).map_err(|e| e.errno())?;
            symlinkat(OsStr::from_bytes(&target), parent, name)?;
        }
        _ => {
            let (major, minor) = inode.rdev();
            let device = if kind == S_IFCHR || kind == S_IFBLK {
                rustix::fs::makedev(major, minor)
            } else {
                0
            };
            mknodat(
                parent,
                name,
                FileType::from_raw_mode(kind),
                Mode::RUSR | Mode::WUSR,
                device,
            )?;
        }
    }
    Ok(None)
}

/// Gives a new file an inode's attributes. With `owner`, also its owner; attributes that only root
/// can set must then be set.
///
/// # Errors
/// The system's error.
pub fn set_attributes(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    inode: &Inode,
    xattrs: &[Xattr],
    owner: bool,
) -> Result<(), Errno> {
    // Owner first: a change clears setuid and file capabilities.
    if owner {
        let (uid, gid) = (Uid::from_raw(inode.uid), Gid::from_raw(inode.gid));
        chownat(
            parent,
            name,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
    }
    if inode.mode & S_IFMT != S_IFLNK {
        // Just made, so no symlink.
        chmodat(
            parent,
            name,
            Mode::from_raw_mode(inode.mode & 0o7777),
            AtFlags::empty(),
        )?;
    }
    if !xattrs.is_empty() {
        let path = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(name);
        for xattr in xattrs {
            match lsetxattr(
                &path,
                OsStr::from_bytes(&xattr.name),
                &xattr.value,
                XattrFlags::empty(),
            ) {
                Err(Errno::PERM | Errno::NOTSUP) if !owner => {}
                other => other?,
            }
        }
    }
    utimensat(parent, name, &times(inode), AtFlags::SYMLINK_NOFOLLOW)
}

/// An inode's times: all its modification time.
pub fn times(inode: &Inode) -> Timestamps {
    let time = Timespec {
        tv_sec: inode.mtime_s,
        tv_nsec: inode.mtime_ns.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
