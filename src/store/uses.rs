//! Finds out what uses an image.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Store;
use super::backend::StoredImage;
use super::error::{Error, Result};
use crate::error::Io;
use crate::serve::overview;
use crate::sys::lock::{Mode, lock};
use crate::trust::Verdict;
use crate::upper;
use crate::upper::record::UpperRecord;
use crate::zfs::Dataset;

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
        users.extend(uppers(image));
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
            let name = &container.name;
            match images.iter().position(|used| used.root_digest == *digest) {
                None => {}
                Some(0) => users.push(format!("container {name}")),
                Some(_) => users.push(format!("container {name}, which can go back to it")),
            }
        }
        users.extend(self.backend.dependents(&image.name)?);
        Ok(users)
    }
}

/// Longest list of uppers that is kept for an image: a property of ZFS holds 8 KiB.
const MAX_UPPERS: usize = 32;

/// The uppers outside the store that an image is needed for, as far as the store was told.
pub(super) fn uppers(image: &StoredImage) -> Vec<String> {
    let places = image.facts.uppers.iter();
    places
        .filter(|place| is_upper_of(place, &image.facts.root_digest))
        .map(|place| format!("what was written over it to {place}"))
        .collect()
}

/// Whether a place still has an upper over the image with this root digest. What cannot be found
/// out counts as one.
fn is_upper_of(place: &str, root_digest: &str) -> bool {
    let dir = match place.strip_prefix("zfs:").map(str::parse::<Dataset>) {
        None => PathBuf::from(place),
        Some(Err(_)) => return false,
        Some(Ok(dataset)) if matches!(dataset.exists(), Ok(false)) => return false,
        Some(Ok(dataset)) => match dataset.mountpoint() {
            Ok(dir) => dir,
            Err(_) => return true,
        },
    };
    match UpperRecord::read(&dir) {
        Ok(record) => record.is_some_and(|record| {
            let mut digests = record.images.iter().map(|image| image.digest.as_str());
            digests.any(|digest| digest.strip_prefix("blake3:") == Some(root_digest))
        }),
        Err(upper::Error::Io(error)) => error.kind() != ErrorKind::NotFound,
        Err(_) => true,
    }
}

impl Store {
    /// Notes that an image is needed for the upper in this place outside the store: a directory, or
    /// `zfs:` and a dataset. Forgets those that are gone.
    ///
    /// # Errors
    /// [`Error`] if the store cannot be changed.
    pub fn note_upper(&self, image: &StoredImage, place: &str) -> Result<()> {
        if image.facts.uppers.iter().any(|known| known == place) {
            return Ok(());
        }
        let _lock = self.change()?;
        let mut images = self.backend.scan()?.images.into_iter();
        let Some(now) = images.find(|now| now.name == image.name) else {
            return Ok(());
        };
        let mut facts = now.facts;
        let digest = facts.root_digest.clone();
        facts.uppers.retain(|known| is_upper_of(known, &digest));
        if facts.uppers.len() >= MAX_UPPERS {
            facts.uppers.remove(0);
        }
        facts.uppers.push(place.to_owned());
        self.backend.set_facts(&now.name, &facts)
    }
}

impl Store {
    /// Notes why an image was accepted when it was asked about again.
    ///
    /// # Errors
    /// [`Error`] if the store cannot be changed.
    pub fn accept(&self, image: &StoredImage, verdict: Verdict) -> Result<()> {
        let _lock = self.change()?;
        let mut images = self.backend.scan()?.images.into_iter();
        let Some(mut now) = images.find(|now| now.name == image.name) else {
            return Ok(());
        };
        now.facts.accept(verdict);
        self.backend.set_facts(&now.name, &now.facts)
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
