//! An existing container, complete or not, and the [`steps`](super::steps) that remove it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use super::error::{Error, Result};
use super::record::{ContainerRecord, State, UpperLocation};
use super::root_mount;
use super::steps::{self, Found, Recorded, Step};
use crate::store::{self, Container, Store};
use crate::sys::files::open_directory_beneath;
use crate::sys::replace::unfinished;

/// Deepest directories that runtimes have created as mount points, below the root.
const MAX_DEPTH: u32 = 64;

/// A container in the store, and its record.
pub(super) struct Existing<'a> {
    store: &'a Store,
    pub(super) container: Container,
    pub(super) record: Option<ContainerRecord>,
    /// Whether things outside the store that the record names belong to this container.
    own: bool,
}

impl<'a> Existing<'a> {
    /// Finds a container, and mounts its dataset for that.
    ///
    /// # Errors
    /// [`Error::Store`] if its dataset cannot be mounted, so that nothing is known about it; and
    /// those of [`Record::read`].
    pub(super) fn find(store: &'a Store, name: &str) -> Result<Option<Self>> {
        let container = match store.container(name) {
            Err(store::Error::NotFound { .. }) => return Ok(None),
            other => other?,
        };
        let record = ContainerRecord::read(&container.path)?;
        let own = record
            .as_ref()
            .map_or(Ok(true), |record| record.is_of(store, &container))?;
        Ok(Some(Self {
            store,
            container,
            record,
            own,
        }))
    }

    /// A container that was just created.
    pub(super) fn new(store: &'a Store, container: Container, record: ContainerRecord) -> Self {
        Self {
            store,
            container,
            record: Some(record),
            own: true,
        }
    }

    /// The parts of it that exist.
    pub(super) fn found(&self) -> Found {
        Found {
            marked: self.container.unfinished,
            record: self
                .record
                .as_ref()
                .map(|record| recorded(record, self.own)),
        }
    }

    /// Removes the parts of it that exist.
    ///
    /// # Errors
    /// [`Error`].
    pub(super) fn undo(&mut self) -> Result<()> {
        let Some(recorded) = self.found().record else {
            return Ok(());
        };
        self.take(&steps::undo(&recorded))
    }

    /// Takes steps, one after the other. What is not there is none of them.
    ///
    /// # Errors
    /// [`Error`]; the next call continues from there.
    pub(super) fn take(&mut self, steps: &[Step]) -> Result<()> {
        steps.iter().try_for_each(|&step| self.step(step))
    }

    fn step(&mut self, step: Step) -> Result<()> {
        let dir = &self.container.path;
        let record = self.record.as_mut();
        match (step, record) {
            (Step::Mark, _) => Ok(self.store.mark_unfinished(&self.container, true)?),
            (Step::Unmark, _) => Ok(self.store.mark_unfinished(&self.container, false)?),
            (Step::RemoveContainer, _) => {
                Ok(self.store.remove_container(self.container.name.as_str())?)
            }
            (Step::Record(state), Some(record)) => {
                record.state = state;
                record.write(dir)
            }
            (Step::Unmount, Some(record)) => root_mount::unmount_ended(&record.runtime.root()),
            (Step::RemoveConfiguration, Some(record)) => remove_configuration(record),
            (Step::RemoveUpper, Some(record)) => remove_upper(record),
            // There is no record, so nothing outside the store was created.
            (
                Step::Record(_) | Step::Unmount | Step::RemoveConfiguration | Step::RemoveUpper,
                None,
            ) => Ok(()),
            (
                Step::MakeContainer
                | Step::MakeDirectories
                | Step::WriteConfiguration
                | Step::Mount
                | Step::MakeWorkingDirectory,
                _,
            ) => Ok(()),
        }
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

/// Removes the directory of an upper that `create` made.
fn remove_upper(record: &ContainerRecord) -> Result<()> {
    let UpperLocation::Elsewhere(place) = &record.upper else {
        return Ok(());
    };
    let place = Path::new(place);
    match (
        place.parent(),
        place.file_name().and_then(|name| name.to_str()),
    ) {
        (Some(parent), Some(name)) if place.exists() && record.state == State::Creating => {
            Ok(store::remove_tree(parent, name)?)
        }
        _ => Ok(()),
    }
}

/// Removes the runtime's directory, unless it holds foreign files.
fn remove_configuration(record: &ContainerRecord) -> Result<()> {
    let (config, root, dir) = (
        record.runtime.config(),
        record.runtime.root(),
        record.runtime.dir(),
    );
    let ignored = [io::ErrorKind::NotFound, io::ErrorKind::DirectoryNotEmpty];
    for path in [&config, &unfinished(&config)] {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("removing", path)(e));
            }
            _ => {}
        }
    }
    // A runtime that starts without a mount creates mount points there.
    remove_empty_directories(&root)?;
    let dir = Some(dir).filter(|_| !record.found_dir);
    for path in [Some(&*root), dir].into_iter().flatten() {
        match std::fs::remove_dir(path) {
            Err(e) if !ignored.contains(&e.kind()) => return Err(Error::io("removing", path)(e)),
            _ => {}
        }
    }
    Ok(())
}

/// Removes directories below `dir` that contain no files and are no mount points. Symlinks that its
/// owner creates meanwhile are not followed.
fn remove_empty_directories(dir: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(CWD, dir, flags, Mode::empty()) {
        Err(Errno::NOENT) => {}
        other => remove_empty_below(&other.map_err(Error::io("opening", dir))?, MAX_DEPTH),
    }
    Ok(())
}

/// Removes the deepest first. Directories that are not empty, and mount points, stay.
fn remove_empty_below(dir: &OwnedFd, depth: u32) {
    let Ok(entries) = Dir::read_from(dir) else {
        return;
    };
    let may_be = |kind| matches!(kind, FileType::Directory | FileType::Unknown);
    let entries = entries.flatten().filter(|entry| {
        may_be(entry.file_type()) && !matches!(entry.file_name().to_bytes(), b"." | b"..")
    });
    for name in entries
        .map(|entry| entry.file_name().to_owned())
        .collect::<Vec<_>>()
    {
        if depth > 0
            && let Ok(inner) = open_directory_beneath(dir, &name)
        {
            remove_empty_below(&inner, depth - 1);
        }
        let _ = unlinkat(dir, &name, AtFlags::REMOVEDIR);
    }
}
