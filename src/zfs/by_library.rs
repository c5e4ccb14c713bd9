//! Operations on snapshots with libzfs_core. The command does what the library cannot (anything
//! recursive, setting properties, mounting).

use std::io;

use nvpair::NvList;
use zfs_core::Zfs;

use super::by_command;
use super::dataset::Children;
use super::error::{Cause, Error, Result};
use super::name::{Dataset, Snapshot};
use super::snapshot::Newer;

pub(super) fn snapshot(snapshot: &Snapshot) -> Result<()> {
    let name = snapshot.as_str();
    library("snapshot", name)?
        .snapshot([name])
        .map_err(|error| {
            let source = match error {
                zfs_core::Error::Io { source } => source,
                // One name was given, so there is one error.
                zfs_core::Error::List { source } => source
                    .iter()
                    .next()
                    .map_or_else(|| io::ErrorKind::Other.into(), |(_, error)| error),
            };
            failed("snapshot", name, &source)
        })
}

pub(super) fn rollback(snapshot: &Snapshot, newer: Newer) -> Result<()> {
    if newer == Newer::Destroy {
        return by_command::rollback(snapshot, newer);
    }
    let name = snapshot.as_str();
    library("roll back to", name)?
        .rollback_to(snapshot.dataset().as_str(), name)
        .map_err(|source| failed("roll back to", name, &source))
}

pub(super) fn clone(
    snapshot: &Snapshot,
    target: &Dataset,
    properties: &[(&str, &str)],
) -> Result<()> {
    let name = target.as_str();
    library("clone", name)?
        .clone_dataset(name, snapshot.as_str(), &mut NvList::new())
        .map_err(|source| failed("clone", name, &source))?;
    let finished = (if properties.is_empty() {
        Ok(())
    } else {
        target.set(properties)
    })
    .and_then(|()| match target.mountpoint() {
        Err(Error::NotMounted { .. }) => target.mount(),
        _ => Ok(()),
    });
    if finished.is_err() {
        let _ = destroy_dataset(target, Children::Keep);
    }
    finished
}

pub(super) fn destroy_snapshot(snapshot: &Snapshot) -> Result<()> {
    destroy(snapshot.as_str(), Cause::HasClones)
}

pub(super) fn destroy_dataset(dataset: &Dataset, children: Children) -> Result<()> {
    if children == Children::Destroy {
        return by_command::destroy_dataset(dataset, children);
    }
    dataset.unmount()?;
    destroy(dataset.as_str(), Cause::HasChildren)
}

fn destroy(name: &str, depends: Cause) -> Result<()> {
    library("destroy", name)?.destroy(name).map_err(|source| {
        match failed("destroy", name, &source) {
            Error::Command {
                doing,
                name,
                cause: Cause::Exists,
                ..
            } => {
                let what = if depends == Cause::HasClones {
                    "clones"
                } else {
                    "children or snapshots"
                };
                Error::Command {
                    doing,
                    name,
                    cause: depends,
                    message: format!("it has {what}"),
                }
            }
            other => other,
        }
    })
}

fn library(doing: &'static str, name: &str) -> Result<Zfs> {
    Zfs::new().map_err(|source| Error::Command {
        doing,
        name: name.to_owned(),
        cause: Cause::NotLoaded,
        message: source.to_string(),
    })
}

/// Converts an error number.
fn failed(doing: &'static str, name: &str, source: &io::Error) -> Error {
    let (cause, message) = match source.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => (Cause::NotFound, "it does not exist"),
        Some(libc::EEXIST) if doing == "roll back to" => {
            (Cause::NewerSnapshots, "more recent snapshots exist")
        }
        Some(libc::EEXIST) => (Cause::Exists, "it exists already"),
        Some(libc::EBUSY) => (Cause::Busy, "it is busy"),
        Some(libc::ENOSPC | libc::EDQUOT) => (Cause::NoSpace, "out of space"),
        Some(libc::EPERM | libc::EACCES) => (Cause::Permission, "permission denied"),
        Some(libc::EXDEV) => (Cause::Other, "it would be in another pool"),
        _ => (Cause::Other, ""),
    };
    let message = if message.is_empty() {
        source.to_string()
    } else {
        message.to_owned()
    };
    Error::Command {
        doing,
        name: name.to_owned(),
        cause,
        message,
    }
}
