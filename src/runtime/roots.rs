//! Directories of ours where root file systems are mounted that annotations ask for: one for each container, named by its id.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use super::mount::{self, is_mounted};
use crate::serve::users::{self, Used};
use crate::serve::{self, mountpoint};

/// Where they are. A user namespace's root has to come through, so it is not with what only we may see.
const ROOTS: &str = "/run/lxcri-fs-rootfs";
/// Longest id that is a name of its own, bytes.
const MAX_ID: usize = 128;

/// The directory of the container with this id, empty and with nothing mounted on it. What a container of this id that never started has left is taken away.
///
/// # Errors
/// [`serve::Error::Busy`] when a container has it, [`Error::Io`].
pub fn make(id: &str) -> Result<PathBuf> {
    let top = Path::new(ROOTS);
    make_directory(top, 0o711)?;
    let metadata = std::fs::symlink_metadata(top).map_err(Error::io("looking at", top))?;
    if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(Error::io("using the directory (it must be its user's own)", top)(rustix::io::Errno::PERM));
    }
    let root = of(id);
    make_directory(&root, 0o755)?;
    release(&root)?;
    Ok(root)
}

fn make_directory(path: &Path, mode: u32) -> Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(Error::io("making the directory", path)(e)),
        _ => Ok(()),
    }
}

/// The directory that a container with this id has, if it has one.
pub fn of(id: &str) -> PathBuf {
    let plain = !id.is_empty()
        && id.len() <= MAX_ID
        && !id.starts_with('.')
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+.-".contains(&b));
    let name = if plain { id.to_owned() } else { format!("+{}", blake3::hash(id.as_bytes()).to_hex()) };
    Path::new(ROOTS).join(name)
}

/// Unmounts what nobody uses.
///
/// # Errors
/// [`serve::Error::Busy`] with who uses it.
pub fn release(root: &Path) -> Result<()> {
    if !is_mounted(root)? {
        return Ok(());
    }
    let dev = mountpoint::mounted_at(root)?.map(|m| m.dev);
    let users = dev.map(|dev| users::of(Used::Device(dev), &[std::process::id()])).unwrap_or_default();
    if users.is_empty() { mount::unmount_ended(root) } else { Err(serve::Error::Busy { path: root.to_owned(), users }.into()) }
}

/// Removes a directory that [`make`] made; another is left alone.
///
/// # Errors
/// [`Error::Io`].
pub fn remove(root: &Path) -> Result<()> {
    if root.parent() != Some(Path::new(ROOTS)) {
        return Ok(());
    }
    match std::fs::remove_dir(root) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("removing", root)(e)),
        _ => Ok(()),
    }
}
