//! Finds out what uses an image.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Store;
use super::backend::StoredImage;
use super::error::{Error, Result};
use crate::error::Io;
use crate::serve::overview;
use crate::sys::lock::{Mode, lock};

/// Describes a user that only has the image open.
pub(super) const OPEN: &str = "a process has it open";
/// How long processes that only check an image may lock it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Marks an image as used while the file is open. The mark moves with the descriptor to other
/// processes, and ends when the last one closes it.
pub(super) fn hold(file: &File, path: &Path) -> Result<()> {
    let start = Instant::now();
    loop {
        if lock(file, Mode::TryShared).map_err(Io::at("locking the image", path))? {
            return Ok(());
        }
        if start.elapsed() >= PATIENCE {
            let users = vec!["a process is changing it".to_owned()];
            return Err(Error::InUse {
                kind: "image",
                name: path.display().to_string(),
                users,
            });
        }
        // Another process is checking whether it is in use.
        std::thread::sleep(PATIENCE / 100);
    }
}

impl Store {
    /// What uses an image: mounts, processes that have it open, containers, and clones outside the
    /// store.
    ///
    /// # Errors
    /// [`Error`].
    pub fn users(&self, image: &StoredImage) -> Result<Vec<String>> {
        let mut users = self.users_but_open(image)?;
        if users.is_empty() && claim(&image.path)?.is_none() {
            users.push(OPEN.to_owned());
        }
        Ok(users)
    }

    /// Like [`Store::users`], without processes that only have it open.
    pub(super) fn users_but_open(&self, image: &StoredImage) -> Result<Vec<String>> {
        let mut users = Vec::new();
        let Some(id) = file_id(&image.path) else {
            return Ok(users);
        };
        for mounted in overview::all()? {
            // It may be mounted under another path.
            if !mounted
                .status
                .images
                .iter()
                .any(|path| file_id(Path::new(path)) == Some(id))
            {
                continue;
            }
            match mounted.seen.as_slice() {
                [] => users.push(format!("served by process {}", mounted.status.pid)),
                seen => users.extend(
                    seen.iter()
                        .map(|m| format!("mounted on {}", m.mountpoint.display())),
                ),
            }
        }
        for container in self.containers()? {
            let Some(images) = &container.images else {
                users.push(format!(
                    "container {}, whose list of images is damaged",
                    container.name
                ));
                continue;
            };
            let digest = &image.facts.root_digest;
            if images.iter().any(|used| used.root_digest == *digest) {
                users.push(format!("container {}", container.name));
            }
        }
        users.extend(self.backend.dependents(&image.name)?);
        Ok(users)
    }
}

/// The identity of a file; `None` if it does not exist.
pub(crate) fn file_id(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// Locks an image for its removal, unless it is in use. No process can start to use it while the
/// file is open.
pub(super) fn claim(path: &Path) -> Result<Option<File>> {
    let file = File::open(path).map_err(Io::at("opening the image", path))?;
    let locked = lock(&file, Mode::Try).map_err(Io::at("locking the image", path))?;
    Ok(locked.then_some(file))
}
