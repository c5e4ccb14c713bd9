//! A container that is there, whole or not, and the [`steps`](super::steps) that take it away
//! again.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use super::error::{Error, Result};
use super::mount;
use super::record::{Place, Record, State};
use super::steps::{self, Found, Recorded, Step};
use crate::store::{self, Container, Store};
use crate::sys::files::open_directory_beneath;
use crate::sys::replace::unfinished;

/// How deep directories are looked for that runtimes have made as mount points.
const MAX_DEPTH: u32 = 64;

/// A container in the store, and what is written down of it.
pub(super) struct Existing<'a> {
    store: &'a Store,
    pub(super) container: Container,
    pub(super) record: Option<Record>,
    /// Whether what the record says is outside the store is this container's own.
    own: bool,
}

impl<'a> Existing<'a> {
    /// Looks for a container; its dataset is mounted for that.
    ///
    /// # Errors
    /// [`Error::Store`] when its dataset cannot be mounted: then nothing is known of it; and those
    /// of [`Record::read`].
    pub(super) fn find(store: &'a Store, name: &str) -> Result<Option<Self>> {
        let container = match store.container(name) {
            Err(store::Error::NotFound { .. }) => return Ok(None),
            other => other?,
        };
        let record = Record::read(&container.path)?;
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

    /// One that was just made.
    pub(super) fn new(store: &'a Store, container: Container, record: Record) -> Self {
        Self {
            store,
            container,
            record: Some(record),
            own: true,
        }
    }

    /// What there is of it.
    pub(super) fn found(&self) -> Found {
        Found {
            marked: self.container.unfinished,
            record: self
                .record
                .as_ref()
                .map(|record| recorded(record, self.own)),
        }
    }

    /// Takes away what was made of it, as far as that came.
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
    /// [`Error`]; whoever comes next goes on from there.
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
            (Step::Unmount, Some(record)) => mount::unmount_ended(&record.runtime.root()),
            (Step::RemoveConfiguration, Some(record)) => remove_configuration(record),
            (Step::RemoveUpper, Some(record)) => remove_upper(record),
            // Nothing is written down, so nothing was made.
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

/// What a record says, as far as steps go by it.
fn recorded(record: &Record, own: bool) -> Recorded {
    let elsewhere = matches!(record.upper, Place::Elsewhere(_));
    Recorded {
        state: record.state,
        own,
        keeps: record.found_upper && !elsewhere,
        new_upper: !record.found_upper && elsewhere,
    }
}

/// Removes the directory of an upper that `create` made.
fn remove_upper(record: &Record) -> Result<()> {
    let Place::Elsewhere(place) = &record.upper else {
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

/// Removes the runtime's directory, unless somebody has put something there.
fn remove_configuration(record: &Record) -> Result<()> {
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
    // Runtimes make mount points there when they are started without a mount.
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

/// Removes directories below `dir` that have no files in them, and nothing mounted on them. Its
/// owner may put symlinks there meanwhile, which lead nowhere.
fn remove_empty_directories(dir: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(CWD, dir, flags, Mode::empty()) {
        Err(Errno::NOENT) => {}
        other => remove_empty_below(&other.map_err(Error::io("opening", dir))?, MAX_DEPTH),
    }
    Ok(())
}

/// Deepest first. What is not empty, or a mount point, stays.
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
