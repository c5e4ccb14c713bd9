//! An existing container, complete or not, and the [`steps`](super::steps) that remove it.

use std::io;
use std::path::Path;

use rustix::fs::Gid;

use super::directory::RuntimeDirectory;
use super::error::{Error, Result};
use super::record::{ContainerRecord, State, UpperLocation};
use super::root_mount;
use super::steps::{self, Recorded, Remains, Step};
use super::volumes;
use crate::store::{self, Container, Lock, Store};

/// A container in the store, and its record.
pub(super) struct Existing<'a> {
    store: &'a Store,
    pub(super) container: Container,
    pub(super) record: Option<ContainerRecord>,
    /// Whether things outside the store that the record names belong to this container.
    own: bool,
    /// The runtime's directory, when it was made or looked for, and is there.
    outside: Option<RuntimeDirectory>,
}

/// Waits until no other process creates or deletes a container of this name, and keeps others from
/// it.
///
/// # Errors
/// [`Error::Store`].
pub(super) fn lock(store: &Store, name: &str) -> Result<Lock> {
    Ok(store.lock_container(name, || {
        tracing::info!("waiting for another create or delete of {name}")
    })?)
}

impl<'a> Existing<'a> {
    /// Finds a container, and mounts its dataset for that.
    ///
    /// # Errors
    /// [`Error::Store`] if its dataset cannot be mounted, so that nothing is known about it; and
    /// those of [`ContainerRecord::read`].
    pub(super) fn find(store: &'a Store, name: &str) -> Result<Option<Self>> {
        let container = match store.container(name) {
            Err(store::Error::NotFound { .. }) => return Ok(None),
            other => other?,
        };
        let record = ContainerRecord::read(&container.path)?;
        let own = record
            .as_ref()
            .map_or(Ok(true), |record| record.is_of(store, &container.name))?;
        Ok(Some(Self {
            store,
            container,
            record,
            own,
            outside: None,
        }))
    }

    /// A container that was just created.
    pub(super) fn new(store: &'a Store, container: Container, record: ContainerRecord) -> Self {
        Self {
            store,
            container,
            record: Some(record),
            own: true,
            outside: None,
        }
    }

    /// Creates the directories outside the store.
    ///
    /// # Errors
    /// As [`RuntimeDirectory::make`].
    pub(super) fn make_outside(&mut self, group: Option<Gid>) -> Result<()> {
        if let Some(record) = &self.record {
            self.outside = Some(RuntimeDirectory::make(&record.runtime, group)?);
        }
        Ok(())
    }

    /// The runtime's directory, which is opened once; `None` if it does not exist, or belongs to
    /// another container.
    ///
    /// # Errors
    /// As [`RuntimeDirectory::find`].
    pub(super) fn outside(&mut self) -> Result<Option<&RuntimeDirectory>> {
        if let (None, true, Some(record)) = (&self.outside, self.own, &self.record) {
            self.outside = RuntimeDirectory::find(&record.runtime)?;
        }
        Ok(self.outside.as_ref())
    }

    /// The parts of it that exist.
    pub(super) fn found(&self) -> Remains {
        Remains {
            marked: self.container.unfinished,
            record: self
                .record
                .as_ref()
                .map(|record| recorded(record, self.own)),
        }
    }

    fn undo(&mut self) -> Result<()> {
        let Some(recorded) = self.found().record else {
            return Ok(());
        };
        self.take(&steps::undo(&recorded))?;
        match &self.record {
            Some(record) => volumes::forget_unfilled(self.store, record),
            None => Ok(()),
        }
    }

    /// Removes the parts of it that exist, because of this error, which is returned.
    pub(super) fn failed(&mut self, error: Error) -> Error {
        if let Err(undoing) = self.undo() {
            tracing::warn!("undoing it: {}", crate::error::chain(&undoing));
        }
        error
    }

    /// Takes steps, one after the other. What is not there is none of them.
    ///
    /// # Errors
    /// [`Error`]; the next call continues from there.
    pub(super) fn take(&mut self, steps: &[Step]) -> Result<()> {
        steps.iter().try_for_each(|&step| self.step(step))
    }

    fn step(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Mark => self.store.mark_unfinished(&self.container, true)?,
            Step::Unmark => self.store.mark_unfinished(&self.container, false)?,
            Step::RemoveContainer => self.store.remove_container(self.container.name.as_str())?,
            Step::Record(state) => {
                if let Some(record) = &mut self.record {
                    record.state = state;
                    match record.write(&self.container.path) {
                        // What is deleted gives space back. If that is interrupted, the container
                        // is there or not, and can be deleted.
                        Err(Error::Io(e))
                            if e.is_full() && state == State::Deleting && !record.found_upper => {}
                        written => written?,
                    }
                }
            }
            Step::Unmount => {
                if let Some(outside) = self.outside()? {
                    root_mount::unmount_ended_at(&outside.root())?;
                }
            }
            Step::RemoveConfiguration => {
                let found = self.record.as_ref().is_some_and(|record| record.found_dir);
                if let Some(outside) = self.outside()? {
                    outside.remove(found)?;
                }
            }
            Step::RemoveUpper => {
                if let Some(record) = &self.record {
                    remove_upper(record)?;
                }
            }
            Step::MakeContainer
            | Step::MakeDirectories
            | Step::WriteConfiguration
            | Step::Mount
            | Step::FillVolumes
            | Step::MakeWorkingDirectory => {}
        }
        Ok(())
    }
}

/// The part of a record that decides which steps to take.
fn recorded(record: &ContainerRecord, own: bool) -> Recorded {
    let elsewhere = matches!(record.upper, UpperLocation::Elsewhere(_));
    Recorded {
        state: record.state,
        own,
        keeps: record.found_upper && !elsewhere,
        new_upper: !record.found_upper && elsewhere,
    }
}

/// Removes the directory of an upper that `create` made, and that nobody has used.
fn remove_upper(record: &ContainerRecord) -> Result<()> {
    let UpperLocation::Elsewhere(place) = &record.upper else {
        return Ok(());
    };
    let place = Path::new(place);
    let name = place.file_name().and_then(|name| name.to_str());
    let (Some(parent), Some(name)) = (place.parent(), name) else {
        return Ok(());
    };
    match store::remove_tree(parent, name) {
        Err(store::Error::Io(e)) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => Ok(other?),
    }
}
