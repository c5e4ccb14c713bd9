//! Garbage collection: first a plan, then its execution, which checks again before each step.

use std::fs::File;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};

use super::backend::StoredImage;
use super::error::{Error, Result};
use super::name::Name;
use super::{Store, graph};
use crate::error::Io;
use crate::registry;
use crate::sys::extents::{self, Usage};
use crate::sys::lock::Lock;
use crate::upper::written::leftovers;
use crate::zfs::Snapshot;

/// Something that can be removed.
#[derive(Debug, Clone)]
pub enum Garbage {
    /// An image without a name.
    Image(Box<StoredImage>),
    /// An image that could be pulled again.
    Spare(Box<StoredImage>),
    /// An image whose writing or removal was interrupted.
    Work(Name),
    /// A container whose creation or removal was interrupted.
    Container(Name),
    /// A snapshot of a container that a killed `commit` or other command was reading.
    Snapshot(Snapshot),
    /// The fetched part of a blob, from which an interrupted pull could continue.
    Blob(PathBuf),
}

impl Garbage {
    /// Since when the grace time runs; `None` if there is none for it.
    pub fn since(&self) -> Option<Timestamp> {
        match self {
            Garbage::Image(image) => Some(image.facts.unnamed_since()),
            Garbage::Blob(path) => {
                let modified = path.metadata().and_then(|m| m.modified()).ok()?;
                Timestamp::try_from(modified).ok()
            }
            Garbage::Work(_) | Garbage::Container(_) | Garbage::Snapshot(_) | Garbage::Spare(_) => {
                None
            }
        }
    }

    /// Whether both are the same thing.
    fn is(&self, other: &Garbage) -> bool {
        match (self, other) {
            (Garbage::Image(a) | Garbage::Spare(a), Garbage::Image(b) | Garbage::Spare(b)) => {
                a.name == b.name
            }
            (Garbage::Work(a), Garbage::Work(b))
            | (Garbage::Container(a), Garbage::Container(b)) => a == b,
            (Garbage::Snapshot(a), Garbage::Snapshot(b)) => a == b,
            (Garbage::Blob(a), Garbage::Blob(b)) => a == b,
            _ => false,
        }
    }
}

/// One step of a plan.
#[derive(Debug, Clone)]
pub struct Step {
    /// What to remove.
    pub garbage: Garbage,
    /// The space that it takes; space that several share is freed with the last of them.
    pub usage: Usage,
}

/// The result of a step.
#[derive(Debug)]
pub enum Outcome {
    /// So many bytes were freed.
    Freed(u64),
    /// It is in use by now, or was removed already.
    Kept(String),
    /// It could not be removed.
    Failed(Error),
}

impl Store {
    /// Makes a plan: images that have had no name for longer than `grace` and are not in use, and
    /// remains of killed processes. Clones come before their origins.
    ///
    /// # Errors
    /// [`Error`].
    pub fn garbage(&self, grace: SignedDuration) -> Result<Vec<Step>> {
        let scan = self.scan()?;
        let mut steps = Vec::new();
        let work = scan.work.into_iter().map(Garbage::Work).chain(
            self.backend
                .containers()?
                .1
                .into_iter()
                .map(Garbage::Container),
        );
        for garbage in work {
            let (Garbage::Work(name) | Garbage::Container(name)) = &garbage else {
                continue;
            };
            // A process that is working on it holds the lock.
            if self.locks.try_lock(name.as_str())?.is_some() {
                let usage = self.usage(&garbage);
                steps.push(Step { garbage, usage });
            }
        }
        for garbage in self.left_snapshots()?.into_iter().map(Garbage::Snapshot) {
            steps.push(Step {
                usage: self.usage(&garbage),
                garbage,
            });
        }
        let order = graph::order(&scan.images);
        for name in order.names.iter().rev() {
            let Some(image) = scan.images.iter().find(|i| i.name == *name) else {
                continue;
            };
            if image.facts.refs.is_empty() && is_old(image, grace) && self.users(image)?.is_empty()
            {
                let garbage = Garbage::Image(Box::new(image.clone()));
                steps.push(Step {
                    usage: self.usage(&garbage),
                    garbage,
                });
            }
        }
        // If nothing can be written there, nothing was fetched.
        let blobs = self
            .backend
            .temp_dir()
            .ok()
            .and_then(|dir| std::fs::read_dir(dir.join(registry::BLOBS)).ok());
        let blobs = blobs.into_iter().flatten().flatten();
        for path in blobs
            .map(|entry| entry.path())
            .filter(|path| old_blob(path, grace).is_some())
        {
            let garbage = Garbage::Blob(path);
            steps.push(Step {
                usage: self.usage(&garbage),
                garbage,
            });
        }
        Ok(steps)
    }

    /// What only the grace time keeps: it would be garbage without.
    ///
    /// # Errors
    /// [`Error`].
    pub fn kept_by_grace(&self, plan: &[Step]) -> Result<Vec<Step>> {
        let mut all = self.garbage(SignedDuration::ZERO)?;
        all.retain(|step| !plan.iter().any(|known| known.garbage.is(&step.garbage)));
        Ok(all)
    }

    /// Snapshots of containers that killed processes had taken in order to read them.
    pub(super) fn left_snapshots(&self) -> Result<Vec<Snapshot>> {
        let datasets = self
            .containers()?
            .into_iter()
            .filter_map(|container| container.dataset);
        let all: Vec<Vec<Snapshot>> = datasets
            .map(|dataset| leftovers(&dataset))
            .collect::<Result<_, _>>()?;
        Ok(all.into_iter().flatten().collect())
    }

    /// Removes the lock files of processes that were killed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sweep_locks(&self) -> Result<()> {
        for name in self.locks.names()? {
            // Dropping a lock removes its file.
            drop(self.locks.try_lock(&name)?);
        }
        Ok(())
    }

    /// Executes a step of a plan.
    pub fn collect(&self, step: &Step, grace: SignedDuration) -> Outcome {
        self.try_collect(&step.garbage, grace)
            .unwrap_or_else(Outcome::Failed)
    }

    fn try_collect(&self, garbage: &Garbage, grace: SignedDuration) -> Result<Outcome> {
        let _change;
        let _work: Option<Lock>;
        match garbage {
            Garbage::Image(image) => {
                _change = self.change()?;
                let found = self.scan()?.images.into_iter().find(|i| {
                    i.name == image.name && i.facts.root_digest == image.facts.root_digest
                });
                let Some(now) = found else {
                    return Ok(Outcome::Kept("it has been removed already".to_owned()));
                };
                if !now.facts.refs.is_empty() || !is_old(&now, grace) {
                    return Ok(Outcome::Kept("it has a name again".to_owned()));
                }
                self.remove_unused(&now)
            }
            Garbage::Spare(image) => {
                _change = self.change()?;
                let found = self.scan()?.images.into_iter().find(|i| {
                    i.name == image.name && i.facts.root_digest == image.facts.root_digest
                });
                match found {
                    None => Ok(Outcome::Kept("it has been removed already".to_owned())),
                    Some(now) if now.facts.refs != image.facts.refs => {
                        Ok(Outcome::Kept("it has another name".to_owned()))
                    }
                    Some(now) => self.remove_unused(&now),
                }
            }
            Garbage::Snapshot(snapshot) => {
                let usage = self.usage(garbage);
                snapshot.destroy()?;
                Ok(Outcome::Freed(usage.bytes))
            }
            Garbage::Blob(path) => {
                let Some(held) = old_blob(path, grace) else {
                    return Ok(Outcome::Kept("another process continues it".to_owned()));
                };
                let usage = extents::usage(&held).map_err(Io::at("looking at", path))?;
                std::fs::remove_file(path).map_err(Io::at("removing", path))?;
                Ok(Outcome::Freed(usage.own()))
            }
            Garbage::Work(name) | Garbage::Container(name) => {
                // Short work on images happens under this lock, without a lock of its own.
                _change = self.change()?;
                _work = self.locks.try_lock(name.as_str())?;
                if _work.is_none() {
                    return Ok(Outcome::Kept("another process is working on it".to_owned()));
                }
                if matches!(garbage, Garbage::Work(_)) {
                    return Ok(Outcome::Freed(self.backend.remove(name, None)?));
                }
                let usage = self.usage(garbage);
                self.backend.remove_container(name)?;
                Ok(Outcome::Freed(usage.own()))
            }
        }
    }

    fn remove_unused(&self, image: &StoredImage) -> Result<Outcome> {
        match self.remove_image(image, false) {
            Ok(freed) => Ok(Outcome::Freed(freed)),
            Err(Error::InUse { users, .. }) => Ok(Outcome::Kept(users.join(", "))),
            Err(error) => Err(error),
        }
    }

    /// The space that something takes; zero if it is unknown.
    pub(super) fn usage(&self, garbage: &Garbage) -> Usage {
        let usage = match garbage {
            Garbage::Image(image) | Garbage::Spare(image) => self.backend.usage(&image.name),
            Garbage::Work(name) => self.backend.usage(name),
            Garbage::Container(name) => self.backend.container_usage(name),
            Garbage::Snapshot(snapshot) => {
                let all = snapshot.dataset().snapshots().unwrap_or_default();
                let used = all
                    .into_iter()
                    .find(|info| info.snapshot == *snapshot)
                    .map_or(0, |info| info.used);
                Ok(Usage {
                    bytes: used,
                    shared: 0,
                })
            }
            Garbage::Blob(path) => File::open(path)
                .and_then(|file| extents::usage(&file))
                .map_err(|e| Io::at("looking at", path)(e).into()),
        };
        usage.unwrap_or_default()
    }
}

/// Opens and locks a part of a blob that is older than `grace` and that no process is fetching.
fn old_blob(path: &Path, grace: SignedDuration) -> Option<File> {
    let file = File::open(path).ok()?;
    let age = file.metadata().ok()?.modified().ok()?.elapsed().ok()?;
    (SignedDuration::try_from(age).ok()? >= grace && file.try_lock().is_ok()).then_some(file)
}

fn is_old(image: &StoredImage, grace: SignedDuration) -> bool {
    Timestamp::now().duration_since(image.facts.unnamed_since()) >= grace
}
