//! Finds out whether a store is sound.

use std::fs::File;

use serde::Serialize;

use super::backend::StoredImage;
use super::error::Result;
use super::facts::Facts;
use super::{Store, graph};
use crate::error::chain;
use crate::error::{Io, Report};

/// Severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// All is well.
    Good,
    /// Worth knowing; nothing is broken.
    Note,
    /// Something is broken.
    Bad,
}

/// A fact, and what follows from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about, such as `store`.
    pub about: &'static str,
    /// Its severity.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What follows from it, or what to do.
    pub so: String,
}

impl Finding {
    /// Something that was found.
    pub fn new(
        about: &'static str,
        level: Level,
        found: impl Into<String>,
        so: impl Into<String>,
    ) -> Self {
        Self {
            about,
            level,
            found: found.into(),
            so: so.into(),
        }
    }
}

impl Store {
    /// Examines everything in the store except the contents of images, which `verify --all` reads.
    /// Remains of interrupted work are never a [`Level::Bad`].
    ///
    /// # Errors
    /// [`super::Error`] if the store cannot be examined at all.
    pub fn examine(&self) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        let mut add =
            |level, found: String, so: &str| findings.push(Finding::new("store", level, found, so));
        let scan = self.scan()?;
        let (containers, unfinished) = self.backend.containers()?;
        add(
            Level::Good,
            format!(
                "{} (images: {}, containers: {})",
                self.location,
                scan.images.len(),
                containers.len()
            ),
            "the store can be used",
        );
        for container in containers.iter().filter(|c| c.images.is_none()) {
            add(
                Level::Bad,
                format!(
                    "the list of images of container {} is damaged",
                    container.name
                ),
                "no image can be removed until `lxcri-fs delete` has removed the container",
            );
        }
        for (name, error) in &scan.broken {
            // Only an image that was read and is wrong is reported as damaged.
            let (found, so) = match error {
                _ if error.is_out_of_reach() => (
                    format!("image {name} cannot be reached: {}", chain(error)),
                    remedy(error)
                        .unwrap_or_else(|| "nothing is known about it until then".to_owned()),
                ),
                _ if error.is_wrong() => (
                    format!("image {name}: {}", chain(error)),
                    "it cannot be used: remove its directory or dataset, and pull or build it again"
                        .to_owned(),
                ),
                _ => (
                    format!("image {name} cannot be read: {}", chain(error)),
                    "nothing is known about it until then".to_owned(),
                ),
            };
            add(Level::Bad, found, &so);
        }
        for image in &scan.images {
            if let Some(wrong) = disagrees(image) {
                add(
                    Level::Bad,
                    format!("image {}: {wrong}", image.name),
                    "its file was changed in place: pull or build it again",
                );
            }
        }
        for name in &scan.strange {
            add(
                Level::Note,
                format!("{name:?} is among the images, but is not an image"),
                "it is ignored",
            );
        }
        let order = graph::order(&scan.images);
        for (name, parent) in &order.missing {
            add(
                Level::Note,
                format!("image {name} was cloned from {parent}, which was removed"),
                "it is complete without it",
            );
        }
        for names in &order.loops {
            let names: Vec<&str> = names.iter().map(|n| n.as_str()).collect();
            add(
                Level::Bad,
                format!(
                    "images claim to be cloned from each other: {}",
                    names.join(" from ")
                ),
                "their recorded facts were changed",
            );
        }
        for name in scan.work.iter().chain(&unfinished) {
            let (found, so) = match self.locks.try_lock(name.as_str())? {
                Some(_) => (
                    format!("{name} was left by a process that was killed"),
                    "`lxcri-fs gc` removes it",
                ),
                None => (
                    format!("{name} is being written or removed"),
                    "another process is working on it",
                ),
            };
            add(Level::Note, found, so);
        }
        for snapshot in self.left_snapshots().unwrap_or_default() {
            add(
                Level::Note,
                format!("snapshot {snapshot} was left by a process that was killed"),
                "`lxcri-fs gc` or the next commit removes it",
            );
        }
        for container in &containers {
            if container.unfinished {
                let so = "the next `lxcri-fs create` or `delete` of this name completes or removes \
                          it";
                add(
                    Level::Note,
                    format!(
                        "container {} is being created or removed, or a process was killed while \
                         doing so",
                        container.name
                    ),
                    so,
                );
            }
            if let Err(error) = self.reach(container) {
                let so = remedy(&error)
                    .unwrap_or_else(|| "nothing is known about what is in it".to_owned());
                add(
                    Level::Bad,
                    format!(
                        "container {} cannot be reached: {}",
                        container.name,
                        chain(&error)
                    ),
                    &so,
                );
            }
            let known = |digest: &str| scan.images.iter().any(|i| i.facts.root_digest == digest);
            let is_hidden = |name: &str| {
                scan.broken
                    .iter()
                    .any(|(broken, error)| broken.as_str() == name && !error.is_wrong())
            };
            for used in container
                .images
                .iter()
                .flatten()
                .filter(|used| !known(&used.root_digest) && !is_hidden(&used.name))
            {
                let digest = used.root_digest.get(..12).unwrap_or(&used.root_digest);
                add(
                    Level::Bad,
                    format!(
                        "container {} needs image {} ({digest}), which was removed",
                        container.name, used.name
                    ),
                    "pull or build that image again",
                );
            }
        }
        Ok(findings)
    }
}

/// What the user can do about an error.
fn remedy(error: &super::Error) -> Option<String> {
    match error {
        super::Error::Zfs(error) => error.hint(),
        _ => None,
    }
}

/// How an image differs from its recorded facts, if it does.
fn disagrees(image: &StoredImage) -> Option<String> {
    let found = File::open(&image.path)
        .map_err(|e| Io::at("opening the image", &image.path)(e).into())
        .and_then(|f| Facts::of(&image.path, f));
    match found {
        Err(error) => Some(chain(&error)),
        Ok(found) if found.root_digest != image.facts.root_digest => Some(format!(
            "it has the root digest {}, but should have {}",
            found.root_digest, image.facts.root_digest
        )),
        Ok(found) if found.size != image.facts.size => Some(format!(
            "it has {} bytes, but should have {}",
            found.size, image.facts.size
        )),
        Ok(_) => None,
    }
}
