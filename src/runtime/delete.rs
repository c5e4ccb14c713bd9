//! Taking a container away.

use super::create::remove_configuration;
use super::error::{Error, Result};
use super::mount;
use super::record::{Place, Record, State};
use crate::serve::users::{self, Used, User};
use crate::serve::{self, mountpoint};
use crate::store::{self, Store};

/// Removes a container: its mount, its runtime's configuration and, unless `keep`, what it wrote in the store. Where it wrote elsewhere is returned: that stays.
///
/// # Errors
/// [`serve::Error::Busy`] when it runs, and others of [`Error`]. Whoever is killed here is finished by the next call.
pub fn delete(store: &Store, name: &str, keep: bool) -> Result<Option<String>> {
    let _lock = store.lock_container(name, || tracing::info!("waiting for another create or delete of {name}"))?;
    let container = store.container(name)?;
    let Some(mut record) = Record::read(&container.path)? else {
        // A `create` was cut off before anything was made.
        return Ok(store.remove_container(name).map(|()| None)?);
    };
    let root = record.runtime.root();
    let users = users(&record)?;
    if !users.is_empty() {
        return Err(serve::Error::Busy { path: root, users }.into());
    }
    let elsewhere = match &record.upper {
        Place::Elsewhere(text) => Some(text.clone()),
        _ => None,
    };
    // From here on, the next call goes on.
    record.found_upper = keep;
    record.state = State::Deleting;
    record.write(&container.path)?;
    mount::unmount_ended(&root)?;
    remove_configuration(&record)?;
    if keep && elsewhere.is_none() {
        record.state = State::Kept;
        record.write(&container.path)?;
        return Ok(None);
    }
    store.remove_container(name)?;
    Ok(elsewhere)
}

/// The processes that use a container's root file system, in whatever mount namespace.
///
/// # Errors
/// [`Error::Serve`].
pub fn users(record: &Record) -> Result<Vec<User>> {
    let Some(mounted) = mountpoint::mounted_at(&record.runtime.root())?.filter(|m| m.is_ours()) else { return Ok(Vec::new()) };
    Ok(users::of(Used::Device(mounted.dev), &[std::process::id()]))
}

/// A container by its name, with its record and directory.
///
/// # Errors
/// [`store::Error::NotFound`], also for a container that was never finished.
pub fn find(store: &Store, name: &str) -> Result<(Record, std::path::PathBuf)> {
    let container = store.container(name)?;
    match Record::read(&container.path)? {
        Some(record) => Ok((record, container.path)),
        None => Err(Error::Store(store::Error::NotFound {
            kind: "finished container",
            name: name.to_owned(),
            store: store.location().to_string(),
        })),
    }
}
