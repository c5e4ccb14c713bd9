//! What is mounted on this host, and by which keepers.

use std::path::PathBuf;

use super::error::{Result, chain};
use super::mountinfo::{self, MountInfo};
use super::protocol::Status;
use super::rundir::RunDir;

/// A keeper with its mounts.
#[derive(Debug, Clone)]
pub struct Mounted {
    /// Where commands find the keeper.
    pub dir: RunDir,
    /// How it is doing.
    pub status: Status,
    /// Where its file system is seen in this mount namespace, by itself or in an overlay.
    pub seen: Vec<Seen>,
}

/// A mount.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Where it is.
    pub mountpoint: PathBuf,
    /// Its device, major and minor number.
    pub dev: (u32, u32),
    /// The upper directory, if it is an overlay.
    pub upper: Option<PathBuf>,
}

impl Seen {
    /// How a mount shows the file system that has the device `dev`; `None` when it does not.
    fn of(mount: &MountInfo, dev: (u32, u32)) -> Option<Self> {
        let overlay = mount.overlay();
        let is_seen = mount.dev == dev || overlay.as_ref().is_some_and(|o| o.lower == dev);
        is_seen.then(|| Self { mountpoint: mount.mountpoint.clone(), dev: mount.dev, upper: overlay.and_then(|o| o.upper) })
    }
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
                let seen = mounts.iter().filter(|m| m.mountpoint != hidden).filter_map(|m| Seen::of(m, status.dev)).collect();
                all.push(Mounted { seen, dir, status });
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
