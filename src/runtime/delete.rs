//! Removing a container.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::create::strange;
use super::directory::RuntimeDirectory;
use super::error::{Error, Result};
use super::left::{self, Existing};
use super::record::{ContainerRecord, UpperLocation};
use super::steps::{Recorded, Step};
use super::update;
use crate::error::chain;
use crate::serve::mountpoint::MountPoint;
use crate::serve::{self, mountpoint, overview};
use crate::store::{self, Name, Store};
use crate::sys::mountinfo::MountInfo;
use crate::sys::users::{self, Used, User};
use crate::upper;
use crate::upper::in_use::is_known_in_use;
use crate::upper::written::Written;

/// Removes a container: its mount, its runtime's configuration and, unless `keep`, what it wrote in
/// the store. Returns its upper outside the store, if any, which stays.
///
/// # Errors
/// [`serve::Error::Busy`] if it is running, and others of [`Error`]. If this process is killed, the
/// next call completes the work.
pub fn delete(store: &Store, name: &str, keep: bool) -> Result<Option<String>> {
    let _lock = left::lock(store, name)?;
    overview::sweep();
    if let Ok((_, dir)) = find(store, name) {
        // What an update has left must not be mistaken for what was there before.
        let settled = update::settle(store, &Name::new(name)?, &dir);
        if let Err(error) = settled {
            tracing::warn!("{}", chain(&error));
        }
    }
    let Some(mut existing) = Existing::find(store, name)? else {
        return store.container(name).map(|_| None).map_err(Error::from);
    };
    let found = existing.found();
    if let Some(Recorded { own: true, .. }) = found.record {
        let root = existing.outside()?.map(RuntimeDirectory::root);
        refuse_running(&existing, root.as_ref())?;
    }
    let elsewhere = match existing.record.as_ref().map(|record| &record.upper) {
        Some(UpperLocation::Elsewhere(text)) => Some(text.clone()),
        _ => None,
    };
    let Some(steps) = found.delete(keep && elsewhere.is_none()) else {
        return Err(strange(store, name, false));
    };
    if steps.contains(&Step::RemoveContainer) {
        store.refuse_to_remove(&existing.container)?;
    }
    if let Some(record) = &mut existing.record {
        // From here on, the next call can continue.
        record.found_upper = keep;
    }
    existing.take(&steps)?;
    Ok(elsewhere.filter(|_| !steps.contains(&Step::RemoveUpper)))
}

/// Refuses a container that runs, or whose root file system is not ours.
pub(super) fn refuse_running(existing: &Existing<'_>, root: Option<&MountPoint>) -> Result<()> {
    let Some(record) = &existing.record else {
        return Ok(());
    };
    if let Some(mounted) = root.map(MountPoint::mounted).transpose()?.flatten() {
        if !mounted.is_ours() {
            // Before anything is removed: the next call would go on with that.
            return Err(serve::Error::Foreign {
                path: record.runtime.root(),
                fs_type: mounted.fs_type,
            }
            .into());
        }
        let users = users_of(&mounted);
        return match users.is_empty() {
            true => Ok(()),
            false => Err(busy(record, users)),
        };
    }
    let Some(upper) = detached(record, &existing.container.path)? else {
        return Ok(());
    };
    match users::of_upper(upper.id()?) {
        Some(user) => Err(busy(record, vec![user])),
        None => Err(upper::Error::InUse {
            path: upper.layout.place,
            mountpoint: None,
        }
        .into()),
    }
}

/// The upper of a container that is not mounted here, if something uses it: its mount may have been
/// detached, and a running container has it in its own mount namespace. `directory` is the
/// container's in the store.
///
/// # Errors
/// [`Error::Serve`], [`Error::Upper`].
pub fn detached(record: &ContainerRecord, directory: &Path) -> Result<Option<Written>> {
    let text = match &record.upper {
        UpperLocation::Store => directory.as_os_str(),
        UpperLocation::Elsewhere(text) => OsStr::new(text),
        UpperLocation::Ephemeral { .. } => return Ok(None),
    };
    // An upper that does not exist is not in use.
    let Ok(upper) = Written::find(text) else {
        return Ok(None);
    };
    let elsewhere = record.upper != UpperLocation::Store;
    // An upper outside the store may be mounted without the container.
    let unused = !is_known_in_use(&upper.layout.place) || elsewhere && !upper.mounts()?.is_empty();
    Ok(Some(upper).filter(|_| !unused))
}

fn busy(record: &ContainerRecord, users: Vec<User>) -> Error {
    serve::Error::Busy {
        path: record.runtime.root(),
        users,
    }
    .into()
}

/// The processes that use a container's root file system, in any mount namespace.
///
/// # Errors
/// [`Error::Serve`].
pub fn users(record: &ContainerRecord) -> Result<Vec<User>> {
    let mounted = mountpoint::mounted_at(&record.runtime.root())?;
    Ok(mounted.as_ref().map(users_of).unwrap_or_default())
}

fn users_of(mounted: &MountInfo) -> Vec<User> {
    match mounted.is_ours() {
        true => users::of(Used::Device(mounted.dev), &[std::process::id()]),
        false => Vec::new(),
    }
}

/// Finds a container by its name, with its record and directory.
///
/// # Errors
/// [`store::Error::NotFound`], also for an unfinished container.
pub fn find(store: &Store, name: &str) -> Result<(ContainerRecord, PathBuf)> {
    let container = store.container(name)?;
    finished(store, name, container.path)
}

/// As [`find`], without a look at the other containers.
///
/// # Errors
/// As [`find`].
pub(super) fn find_named(store: &Store, name: &Name) -> Result<(ContainerRecord, PathBuf)> {
    finished(store, name.as_str(), store.directory_of(name)?)
}

fn finished(store: &Store, name: &str, dir: PathBuf) -> Result<(ContainerRecord, PathBuf)> {
    match ContainerRecord::read(&dir)? {
        Some(record) => Ok((record, dir)),
        None => Err(Error::Store(store::Error::NotFound {
            kind: "finished container",
            name: name.to_owned(),
            store: store.location().to_string(),
        })),
    }
}
