//! Removes directories of the store in which nothing is mounted.

use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use crate::sys::{mountinfo, remove_tree as sys};

/// Removes the directory `name` of the directory `parent` with everything in it; symlinks are not
/// followed.
///
/// # Errors
/// [`Error::InUse`] when something is mounted in it, [`Error::Io`].
pub fn remove_tree(parent: &Path, name: &str) -> Result<()> {
    refuse_mounts(&parent.join(name))?;
    Ok(sys::remove_tree(parent, name)?)
}

/// Fails if something is mounted at a path or below it.
///
/// # Errors
/// [`Error::InUse`].
pub fn refuse_mounts(path: &Path) -> Result<()> {
    let mounted: Vec<String> = mounts_below(path)?
        .iter()
        .map(|m| format!("something is mounted on {}", m.display()))
        .collect();
    if mounted.is_empty() {
        return Ok(());
    }
    Err(Error::InUse {
        kind: "directory",
        name: path.display().to_string(),
        users: mounted,
    })
}

/// The mount points at a path and below it.
///
/// # Errors
/// [`Error::Serve`] when the mounts cannot be read.
pub fn mounts_below(path: &Path) -> Result<Vec<PathBuf>> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    Ok(mountinfo::all()?
        .into_iter()
        .map(|m| m.mountpoint)
        .filter(|m| m.starts_with(&path))
        .collect())
}
