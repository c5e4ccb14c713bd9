//! Who uses an image.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Store;
use super::backend::StoredImage;
use super::error::{Error, Result};
use crate::serve::overview;
use crate::sys::lock::{Mode, lock};

/// How one is told who only has the image open.
pub(super) const OPEN: &str = "a process has it open";
/// How long an image may be locked by those who only look.
const PATIENCE: Duration = Duration::from_secs(1);

/// Marks an image as used for as long as the open file is: the mark goes to whom the descriptor is
/// handed, and ends with the last who has it.
pub(super) fn hold(file: &File, path: &Path) -> Result<()> {
    let start = Instant::now();
    loop {
        if lock(file, Mode::TryShared).map_err(Error::io("locking the image", path))? {
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
        // Somebody just looks whether it is used.
        std::thread::sleep(PATIENCE / 100);
    }
}

impl Store {
    /// Who uses an image: mounts, processes that have it open, containers, clones that are none of
    /// the store's.
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

    /// As [`Store::users`], without processes that just have it open.
    pub(super) fn users_but_open(&self, image: &StoredImage) -> Result<Vec<String>> {
        let mut users = Vec::new();
        let Some(id) = file_id(&image.path) else {
            return Ok(users);
        };
        for mounted in overview::all()? {
            // It may have been mounted by another path.
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
            if container
                .images
                .iter()
                .any(|used| used.root_digest == image.facts.root_digest)
            {
                users.push(format!("container {}", container.name));
            }
        }
        users.extend(self.backend.dependents(&image.name)?);
        Ok(users)
    }
}

/// What tells files apart; `None` when there is none.
pub(super) fn file_id(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// Takes an image for its removal, unless somebody uses it: as long as the file is open, nobody
/// begins to.
pub(super) fn claim(path: &Path) -> Result<Option<File>> {
    let file = File::open(path).map_err(Error::io("opening the image", path))?;
    let locked = lock(&file, Mode::Try).map_err(Error::io("locking the image", path))?;
    Ok(locked.then_some(file))
}
