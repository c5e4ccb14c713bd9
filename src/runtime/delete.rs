//! Removing a container.

use std::path::{Path, PathBuf};

use super::create::strange;
use super::error::{Error, Result};
use super::left::Existing;
use super::record::{ContainerRecord, UpperLocation};
use super::steps::{Recorded, Step};
use crate::serve::{self, mountpoint};
use crate::store::{self, Store};
use crate::sys::users::{self, Used, User};
use crate::upper;

/// Removes a container: its mount, its runtime's configuration and, unless `keep`, what it wrote in
/// the store. Returns its upper outside the store, if any, which stays.
///
/// # Errors
/// [`serve::Error::Busy`] if it is running, and others of [`Error`]. If this process is killed, the
/// next call completes the work.
pub fn delete(store: &Store, name: &str, keep: bool) -> Result<Option<String>> {
    let _lock = store.lock_container(name, || {
        tracing::info!("waiting for another create or delete of {name}")
    })?;
    let Some(mut existing) = Existing::find(store, name)? else {
        return store.container(name).map(|_| None).map_err(Error::from);
    };
    let found = existing.found();
    if let (Some(record), Some(Recorded { own: true, .. })) = (&existing.record, found.record) {
        refuse_running(record, &existing.container.path)?;
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
    Ok(elsewhere)
}

/// Refuses a container that runs.
fn refuse_running(record: &ContainerRecord, dir: &Path) -> Result<()> {
    let (root, users) = (record.runtime.root(), users(record)?);
    if !users.is_empty() {
        return Err(serve::Error::Busy { path: root, users }.into());
    }
    // Its mount may have been detached: a running container has it in its own mount namespace.
    let is_hidden =
        matches!(record.upper, UpperLocation::Store) && mountpoint::mounted_at(&root)?.is_none();
    if is_hidden && upper::in_use::is_known_in_use(dir) {
        return Err(upper::Error::InUse {
            path: dir.to_owned(),
            mountpoint: None,
        }
        .into());
    }
    Ok(())
}

/// The processes that use a container's root file system, in any mount namespace.
///
/// # Errors
/// [`Error::Serve`].
pub fn users(record: &ContainerRecord) -> Result<Vec<User>> {
    let Some(mounted) = mountpoint::mounted_at(&record.runtime.root())?.filter(|m| m.is_ours())
    else {
        return Ok(Vec::new());
    };
    Ok(users::of(Used::Device(mounted.dev), &[std::process::id()]))
}

/// Finds a container by its name, with its record and directory.
///
/// # Errors
/// [`store::Error::NotFound`], also for an unfinished container.
pub fn find(store: &Store, name: &str) -> Result<(ContainerRecord, PathBuf)> {
    let container = store.container(name)?;
    match ContainerRecord::read(&container.path)? {
        Some(record) => Ok((record, container.path)),
        None => Err(Error::Store(store::Error::NotFound {
            kind: "finished container",
            name: name.to_owned(),
            store: store.location().to_string(),
        })),
    }
}
