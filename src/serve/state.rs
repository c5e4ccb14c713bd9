//! What keepers leave in /run for other commands: one file each, locked for as long as the keeper lives.

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};

/// A keeper and its mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// The keeper's process number.
    pub pid: u32,
    /// Device of the mount, major and minor number.
    pub dev: (u32, u32),
    /// Where it is mounted.
    pub mountpoint: OsString,
    /// The images, lowest first.
    pub images: Vec<OsString>,
    /// When it was mounted, seconds since 1970.
    pub since: u64,
}

/// The directory of this user's state files, made when it is missing.
///
/// # Errors
/// [`Error::Io`], also when the directory belongs to somebody else.
pub fn directory() -> Result<PathBuf> {
    let uid = rustix::process::geteuid();
    let path = match std::env::var_os("XDG_RUNTIME_DIR").filter(|d| !d.is_empty()) {
        _ if uid.is_root() => PathBuf::from("/run/lxcri-fs"),
        Some(runtime) => Path::new(&runtime).join("lxcri-fs"),
        None => std::env::temp_dir().join(format!("lxcri-fs-{}", uid.as_raw())),
    };
    match DirBuilder::new().mode(0o700).create(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(Error::io("making the directory", &path)(e)),
        _ => {}
    }
    let metadata = std::fs::symlink_metadata(&path).map_err(Error::io("looking at the directory", &path))?;
    if !metadata.is_dir() || metadata.uid() != uid.as_raw() {
        return Err(Error::io("using the directory (it belongs to somebody else)", &path)(std::io::Error::from(rustix::io::Errno::PERM)));
    }
    Ok(path)
}

/// A keeper's state file. It goes when this goes, or is found stale because nobody has it locked.
#[derive(Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    _locked: File,
}

impl StateFile {
    /// Writes a keeper's state.
    pub(super) fn create(state: &State) -> Result<Self> {
        let path = directory()?.join(format!("{}.json", state.pid));
        let failed = "writing the state file";
        // One of a keeper that had the same number and was killed.
        let _ = std::fs::remove_file(&path);
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path).map_err(Error::io(failed, &path))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(Error::io("locking the state file", &path))?;
        let json = serde_json::to_vec(state).map_err(|e| Error::io(failed, &path)(std::io::Error::other(e)))?;
        file.write_all(&json).map_err(Error::io(failed, &path))?;
        Ok(Self { path, _locked: file })
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The keepers that live. Files of dead ones are removed on the way.
///
/// # Errors
/// [`Error::Io`] when the directory cannot be read.
pub fn keepers() -> Result<Vec<State>> {
    let directory = directory()?;
    let mut states = Vec::new();
    for entry in std::fs::read_dir(&directory).map_err(Error::io("reading", &directory))?.flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        let Ok(mut file) = File::open(&path) else { continue };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            // Locked by its keeper.
            Err(_) => {
                let mut json = Vec::new();
                // Cut off when the keeper is just writing it, or ending.
                if file.read_to_end(&mut json).is_ok()
                    && let Ok(state) = serde_json::from_slice(&json)
                {
                    states.push(state);
                }
            }
            Ok(()) => {
                tracing::debug!(path = %path.display(), "removing the state file of a keeper that is gone");
                let _ = std::fs::remove_file(&path);
            }
        }
    }
    Ok(states)
}
