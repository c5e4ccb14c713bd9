//! Mounts the kernel's EROFS.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, unlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use super::directory::link;
use super::{Result, mountinfo, ramfs};
use crate::error::Io;

/// Longest value of an option that fsconfig(2) takes, bytes.
const MAX_NAME: usize = 255;
/// Doing what: the error of a kernel without EROFS is ENODEV.
pub const OPENING: &str = "opening EROFS";
/// Doing what: the error is ENOTBLK if EROFS cannot read from files, or not from a file like this.
pub const MOUNTING: &str = "mounting EROFS";

/// Mounts EROFS from a file with its metadata, and regular files as its extra devices, in order.
/// The mount is read-only and not attached anywhere; it can be attached (move_mount(2)), cloned
/// (open_tree(2)), and a clone made idmapped. The kernel opens the files again, by /proc.
///
/// # Errors
/// [`Io`].
pub fn mount(metadata: BorrowedFd<'_>, devices: &[BorrowedFd<'_>]) -> Result<OwnedFd> {
    mount_at(&link(metadata), devices)
}

/// Mounts EROFS as [`mount`] does, of metadata that are put into a ramfs for it. The source of the
/// mount tells whose it is, and, if that is not too long, a path: [`mountinfo`].
///
/// # Errors
/// [`Io`].
pub fn mount_named(metadata: &[u8], path: &Path, devices: &[BorrowedFd<'_>]) -> Result<OwnedFd> {
    let top = ramfs::mount()?;
    let mut name: PathBuf = std::iter::once(mountinfo::METADATA.as_ref())
        .chain(path.components().filter_map(|component| match component {
            Component::Normal(name) => Some(name),
            _ => None,
        }))
        .collect();
    let source = |name: &Path| link(top.as_fd()).join(name);
    if source(&name).as_os_str().len() > MAX_NAME {
        name = [mountinfo::METADATA, mountinfo::UNNAMED_IMAGE]
            .iter()
            .collect();
    }
    ramfs::write(&top, &name, metadata)?;
    let mounted = mount_at(&source(&name), devices);
    // It is open now, or of no use.
    let _ = unlinkat(&top, &name, AtFlags::empty());
    mounted
}

fn mount_at(source: &Path, devices: &[BorrowedFd<'_>]) -> Result<OwnedFd> {
    let fs = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(Io::doing(OPENING))?;
    let failed = || Io::doing(MOUNTING);
    let set = |key, path: &Path| fsconfig_set_string(fs.as_fd(), key, path).map_err(failed());
    set("source", source)?;
    for device in devices {
        set("device", &link(*device))?;
    }
    fsconfig_set_flag(fs.as_fd(), "ro").map_err(failed())?;
    fsconfig_create(fs.as_fd()).map_err(failed())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
    fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed())
}
