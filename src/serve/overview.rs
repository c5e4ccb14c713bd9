//! What is mounted on this host, and by which keepers.

use std::path::PathBuf;

use super::error::{Result, chain};
use super::mountinfo;
use super::protocol::Status;
use super::rundir::RunDir;

/// A keeper with its mounts.
#[derive(Debug, Clone)]
pub struct Mounted {
    /// Where commands find the keeper.
    pub dir: RunDir,
    /// How it is doing.
    pub status: Status,
    /// Where its file system is seen in this mount namespace.
    pub mountpoints: Vec<PathBuf>,
}

/// All keepers of this user. What dead ones left behind is cleared away.
///
/// # Errors
/// [`super::Error::Io`] when the directory of keepers or the mounts cannot be read.
pub fn all() -> Result<Vec<Mounted>> {
    let mounts = mountinfo::all()?;
    let mut all = Vec::new();
    for dir in RunDir::all()? {
        match dir.status() {
            Ok(Some(status)) => {
                let hidden = dir.mountpoint();
                let seen = mounts.iter().filter(|m| m.dev == status.dev && m.mountpoint != hidden);
                all.push(Mounted { mountpoints: seen.map(|m| m.mountpoint.clone()).collect(), dir, status });
            }
            Ok(None) => clear(&dir),
            Err(error) => tracing::warn!("{}: {}", dir.path().display(), chain(&error)),
        }
    }
    Ok(all)
}

/// Removes a directory where nobody listens, unless somebody is about to.
fn clear(dir: &RunDir) {
    let cleared = dir.try_lock().and_then(|locked| match locked {
        // It may have come to life before it was locked.
        Some(locked) if dir.connect()?.is_none() => locked.remove(),
        _ => Ok(()),
    });
    if let Err(error) = cleared {
        tracing::warn!("{}", chain(&error));
    }
}
