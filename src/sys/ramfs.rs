//! Files in a ramfs that is not attached anywhere: no path leads to them, and their memory is not
//! swapped out. Unlike a memfd, the kernel can read one as the source of a file system.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

use super::Result;
use crate::error::Io;

/// The name that a file has until it is removed.
const NAME: &str = "file";
const MAKING: &str = "making a ramfs";
const WRITING: &str = "making a file in a ramfs";

/// Makes a ramfs. It is freed with the last descriptor of it and of its files.
///
/// # Errors
/// [`Io`]: without CAP_SYS_ADMIN in the first user namespace, the system's EPERM.
pub(super) fn mount() -> Result<OwnedFd> {
    let fs = fsopen("ramfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(Io::doing(MAKING))?;
    fsconfig_set_string(fs.as_fd(), "source", "lxcri-fs").map_err(Io::doing(MAKING))?;
    fsconfig_set_string(fs.as_fd(), "mode", "0700").map_err(Io::doing(MAKING))?;
    fsconfig_create(fs.as_fd()).map_err(Io::doing(MAKING))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(Io::doing(MAKING))
}

/// Writes a new file at a relative path in a new ramfs, and the directories above it.
///
/// # Errors
/// [`Io`].
pub(super) fn write(top: &OwnedFd, path: &Path, bytes: &[u8]) -> Result<()> {
    let parents: Vec<&Path> = path.ancestors().skip(1).collect();
    for parent in parents.iter().rev().filter(|p| !p.as_os_str().is_empty()) {
        mkdirat(top, *parent, Mode::RWXU).map_err(Io::doing(WRITING))?;
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(top, path, flags, Mode::RUSR | Mode::WUSR).map_err(Io::doing(WRITING))?;
    File::from(file)
        .write_all(bytes)
        .map_err(Io::doing(WRITING))
}

/// Puts bytes into a new file, which has no name any more; opened for reading only. Its memory is
/// freed when the last descriptor is closed.
///
/// # Errors
/// [`Io`]: without CAP_SYS_ADMIN in the first user namespace, the system's EPERM.
pub fn file(bytes: &[u8]) -> Result<File> {
    let top = mount()?;
    write(&top, NAME.as_ref(), bytes)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = openat(&top, NAME, flags, Mode::empty()).map_err(Io::doing(WRITING))?;
    unlinkat(&top, NAME, AtFlags::empty()).map_err(Io::doing(WRITING))?;
    Ok(file.into())
}
