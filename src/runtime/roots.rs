//! Directories for the root file systems that annotations request: one for each container, named by
//! its id, with `rootfs` in it.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::Gid;

use super::error::Result;
use super::root_mount::{self, is_mounted};
use crate::error::Io;
use crate::serve::{self, mountpoint};
use crate::sys::directory::DirectoryEntry;
use crate::sys::files;
use crate::sys::users::{self, Used};

/// Where they are. The root of a user namespace must be able to traverse it, so it is not in the
/// keepers' private directory.
const ROOTS: &str = "/run/lxcri-fs-rootfs";
/// Name of the mount point in a container's directory.
const ROOT: &str = "rootfs";
/// Longest id that is used as a name unchanged, bytes.
const MAX_ID: usize = 128;

/// Makes the mount point of the container with this id, which only its user can reach, and
/// optionally the group of the container's root on the host. Removes what a container of this id
/// that never started has left.
///
/// # Errors
/// [`serve::Error::Busy`] if a container uses it, [`Io`].
pub(super) fn make(id: &str, group: Option<Gid>) -> Result<PathBuf> {
    let top = Path::new(ROOTS);
    files::make_directory(top, 0o711, None)?;
    let metadata = std::fs::symlink_metadata(top).map_err(Io::at("looking at", top))?;
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(
            Io::at("using the directory, which must belong to its user,", top)(
                rustix::io::Errno::PERM,
            )
            .into(),
        );
    }
    let root = of(id);
    release(&root)?;
    let dir = DirectoryEntry::at(root.parent().unwrap_or(top))?;
    let dir = files::make_private_directory(&dir, group)?;
    files::make_private_directory(&DirectoryEntry::beneath(dir, OsStr::new(ROOT))?, group)?;
    Ok(root)
}

/// The mount point for the container with this id.
pub(super) fn of(id: &str) -> PathBuf {
    let plain = !id.is_empty()
        && id.len() <= MAX_ID
        && !id.starts_with('.')
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_+.-".contains(&b));
    let name = if plain {
        id.to_owned()
    } else {
        format!("+{}", blake3::hash(id.as_bytes()).to_hex())
    };
    Path::new(ROOTS).join(name).join(ROOT)
}

/// Unmounts a root file system that is not in use.
///
/// # Errors
/// [`serve::Error::Busy`] with its users.
pub(super) fn release(root: &Path) -> Result<()> {
    if !is_mounted(root)? {
        return Ok(());
    }
    let dev = mountpoint::mounted_at(root)?.map(|m| m.dev);
    let users = dev
        .map(|dev| users::of(Used::Device(dev), &[std::process::id()]))
        .unwrap_or_default();
    if users.is_empty() {
        root_mount::unmount_ended(root)
    } else {
        Err(serve::Error::Busy {
            path: root.to_owned(),
            users,
        }
        .into())
    }
}

/// Removes the directories that [`make`] made, and no others.
///
/// # Errors
/// [`Io`].
pub(super) fn remove(root: &Path) -> Result<()> {
    let Some(dir) = root
        .parent()
        .filter(|dir| dir.parent() == Some(Path::new(ROOTS)) && root.ends_with(ROOT))
    else {
        return Ok(());
    };
    for path in [root, dir] {
        match std::fs::remove_dir(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Io::at("removing", path)(e).into());
            }
            _ => {}
        }
    }
    Ok(())
}
