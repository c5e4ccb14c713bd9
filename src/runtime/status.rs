//! What a store's containers are doing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::delete::detached;
use super::error::{Error, Result};
use super::record::{ContainerRecord, State, UpperLocation};
use crate::serve::answer::{self, Answer};
use crate::store::{Container, Reference, Store, StoredImage};
use crate::sys::mountinfo::{self, MountInfo};
use crate::sys::users;

/// What a container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It is not mounted, as after a reboot.
    Created,
    /// Its root file system is mounted, and no process uses it.
    Mounted,
    /// Processes use its root file system.
    Running,
    /// No process serves its mount any more.
    Dead,
    /// Its mount does not answer.
    Hung,
    /// Its runtime's configuration was removed by somebody else.
    Gone,
    /// It is being created, or its `create` was killed.
    Unfinished,
    /// It is being deleted, or its `delete` was killed.
    Deleting,
    /// It was deleted, and what it wrote was kept.
    Kept,
    /// Its record cannot be read.
    Damaged,
}

impl Status {
    /// One word for it.
    pub fn name(self) -> &'static str {
        match self {
            Status::Created => "created",
            Status::Mounted => "mounted",
            Status::Running => "running",
            Status::Dead => "dead",
            Status::Hung => "hung",
            Status::Gone => "gone",
            Status::Unfinished => "unfinished",
            Status::Deleting => "deleting",
            Status::Kept => "kept",
            Status::Damaged => "damaged",
        }
    }
}

/// A container of a store.
#[derive(Debug)]
pub struct Listed {
    /// The container in the store.
    pub container: Container,
    /// Its record, or why there is none.
    pub record: Result<ContainerRecord>,
    /// What it is doing.
    pub status: Status,
    /// How many processes use its root file system, as far as this user may see them.
    pub processes: usize,
    /// Whether the name that it was created from still means its image; `None` if that was a file.
    pub is_current: Option<bool>,
}

/// The containers of a store, ordered by name. Asks each mount whether it answers.
///
/// # Errors
/// [`Error::Store`], [`Error::Serve`]; what is wrong with one container is in its entry.
pub fn all(store: &Store) -> Result<Vec<Listed>> {
    let mounts = mountinfo::all()?;
    let mounts: HashMap<&Path, &MountInfo> = mounts
        .iter()
        .map(|mount| (mount.mountpoint.as_path(), mount))
        .collect();
    let images = store.images()?;
    let found: Vec<_> = store
        .containers()?
        .into_iter()
        .map(|container| {
            let record = read(store, &container);
            let mount = record
                .as_ref()
                .ok()
                .and_then(|(record, _)| root_of(record, &mounts));
            (container, record, mount)
        })
        .collect();
    let ids: Vec<u32> = found
        .iter()
        .filter_map(|(.., mount)| Some(mount.as_ref()?.id))
        .collect();
    let answers = answer::ask(&ids)?;
    let users = users::count_by_device();
    let listed = found.into_iter().map(|(container, record, mount)| {
        let processes = mount
            .and_then(|mount| users.get(&mount.dev))
            .copied()
            .unwrap_or(0);
        let answer = mount.and_then(|mount| answers.get(&mount.id)).copied();
        let status = match &record {
            Err(_) if container.unfinished => Status::Unfinished,
            Err(_) => Status::Damaged,
            Ok((record, dir)) => of(record, dir, answer, processes),
        };
        Listed {
            is_current: record
                .as_ref()
                .ok()
                .and_then(|(record, _)| is_current(record, &images)),
            record: record.map(|(record, _)| record),
            container,
            status,
            processes,
        }
    });
    Ok(listed.collect())
}

fn read(store: &Store, container: &Container) -> Result<(ContainerRecord, PathBuf)> {
    let dir = store.reach(container)?;
    let record = ContainerRecord::read(&dir)?;
    let record = record.ok_or_else(|| Error::unfit("it has no record of a container"))?;
    Ok((record, dir))
}

/// What lxcri-fs has mounted as a container's root file system. Touches no mount.
fn root_of<'a>(
    record: &ContainerRecord,
    mounts: &HashMap<&Path, &'a MountInfo>,
) -> Option<&'a MountInfo> {
    let root = record.runtime.root();
    let dir = root.parent()?.canonicalize().ok()?;
    let mount = mounts.get(dir.join(root.file_name()?).as_path())?;
    mount.is_ours().then_some(*mount)
}

/// What a container with this record, whose directory is `dir`, is doing. `answer` is what its
/// mount answered, if it is mounted; `processes` use it.
pub fn of(
    record: &ContainerRecord,
    dir: &Path,
    answer: Option<Answer>,
    processes: usize,
) -> Status {
    match (record.state, answer) {
        (State::Creating, _) => Status::Unfinished,
        (State::Deleting, _) => Status::Deleting,
        (State::Kept, _) => Status::Kept,
        (State::Ready, Some(Answer::Dead)) => Status::Dead,
        (State::Ready, Some(Answer::Silent)) => Status::Hung,
        (State::Ready, Some(_)) if processes > 0 => Status::Running,
        // It runs on a root that was detached from here.
        (State::Ready, None) if matches!(detached(record, dir), Ok(Some(_))) => Status::Running,
        (State::Ready, _) if matches!(record.runtime.config().try_exists(), Ok(false)) => {
            Status::Gone
        }
        (State::Ready, Some(_)) => Status::Mounted,
        (State::Ready, None) => Status::Created,
    }
}

/// The containers of a store whose image has this name, which means another image now.
///
/// # Errors
/// [`Error::Store`].
pub fn behind(store: &Store, name: &Reference) -> Result<Vec<String>> {
    let images = store.images()?;
    let mut behind = Vec::new();
    for container in store.containers()? {
        // One that cannot be read is told of by `containers`.
        let Ok((record, _)) = read(store, &container) else {
            continue;
        };
        let is_of = record
            .image
            .name
            .parse::<Reference>()
            .is_ok_and(|of| of == *name);
        if is_of && is_current(&record, &images) == Some(false) {
            behind.push(container.name.to_string());
        }
    }
    Ok(behind)
}

/// Whether the name that a container was created from still means its image.
fn is_current(record: &ContainerRecord, images: &[StoredImage]) -> Option<bool> {
    let digest = record
        .image
        .root_digest
        .as_deref()?
        .trim_start_matches("blake3:");
    let name: Reference = record.image.name.parse().ok()?;
    let own = images.iter().any(|image| image.path == record.image.path);
    let named = images.iter().find(|image| image.facts.refs.contains(&name));
    match named {
        Some(image) => Some(image.facts.root_digest == digest),
        // It was created from the digest.
        None if digest.starts_with(record.image.name.trim_start_matches("blake3:")) => None,
        None => own.then_some(false),
    }
}

impl Listed {
    /// How much it has written, bytes; `None` if that is in memory or not in the store.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn written(&self, store: &Store) -> Result<Option<u64>> {
        match self.record.as_ref().map(|record| &record.upper) {
            Ok(UpperLocation::Elsewhere(_) | UpperLocation::Ephemeral { .. }) => Ok(None),
            _ => Ok(Some(store.usage_of_container(&self.container)?.bytes)),
        }
    }
}
