//! Clones a container: a new one of the same image and configuration, with what the other has
//! written. A transaction like `create`.

use std::path::{Path, PathBuf};

use super::create::{Created, clear_away, outside_of};
use super::directory::{RuntimeDirectory, check_free};
use super::error::{Error, Result};
use super::left::{self, Existing};
use super::record::{self, ContainerRecord, Runtime, State, UpperLocation};
use super::root_mount::{self, RootMount};
use super::steps::{self, Step};
use super::{delete, reconfigure, update, volumes};
use crate::serve;
use crate::serve::mountpoint::MountPoint;
use crate::store::{self, Store};
use crate::upper::rebase;
use crate::upper::written::Written;

/// A request to clone a container.
#[expect(missing_debug_implementations, reason = "it has a closure")]
pub struct Request<'a> {
    /// The container's name.
    pub from: &'a str,
    /// The snapshot of it; `None` for its present state.
    pub snapshot: Option<&'a str>,
    /// The new container's name.
    pub name: &'a str,
    /// The directory of the new one's configuration, absolute; `None` for one beside the other's.
    pub dir: Option<PathBuf>,
    /// Host name; `None` for the container's name.
    pub hostname: Option<&'a str>,
    /// Is told how many bytes were copied, where the store cannot clone.
    pub done: &'a dyn Fn(u64),
}

/// Clones a container. On ZFS it may run meanwhile; elsewhere it must not, because its files are
/// copied, or share their blocks if the file system supports that.
///
/// # Errors
/// [`Error`]. Nothing is left behind then.
pub fn clone(store: &Store, request: &Request<'_>) -> Result<Created> {
    if request.from == request.name {
        return Err(Error::unfit("a container cannot be cloned over itself"));
    }
    // In one order, because another process may clone the other way.
    let mut names = [request.from, request.name];
    names.sort_unstable();
    let _locks = [left::lock(store, names[0])?, left::lock(store, names[1])?];
    let from = store::Name::new(request.from)?;
    let (_, dir) = delete::find(store, request.from)?;
    update::settle(store, &from, &dir)?;
    let (original, dir) = delete::find(store, request.from)?;
    if original.state != State::Ready {
        return Err(Error::unfit(format!(
            "{} is being created or deleted, or was deleted",
            request.from
        )));
    }
    if !original.is_of(store, &from)? {
        return Err(original.of_another());
    }
    let config = RuntimeDirectory::find(&original.runtime)?
        .ok_or_else(|| gone(&original))?
        .configuration()?;
    if clear_away(store, request.name)?.is_some() {
        return Err(Error::Unfit {
            what: format!(
                "what a container {} wrote was kept, and would be lost",
                request.name
            ),
            hint: Some(format!(
                "`lxcri-fs delete {}` removes it, `lxcri-fs create {0}` continues with it",
                request.name
            )),
        });
    }
    let mut record = original.successor(request.name, request.dir.as_deref());
    if let Some(settings) = &mut record.settings {
        settings.hostname = request.hostname.map(str::to_owned);
    }
    check_free(&record.runtime)?;
    let written = match &original.upper {
        UpperLocation::Store => Some(Written::find(dir.as_os_str())?),
        UpperLocation::Elsewhere(place) => Some(Written::find(place.as_ref())?),
        UpperLocation::Ephemeral { .. } => None,
    };
    // A clone of a dataset takes what is in it.
    let is_inside = original.upper == UpperLocation::Store;
    let snapshot = request.snapshot;
    if original.volumes.iter().any(|volume| volume.own) && written.is_none() {
        // What is in memory is not copied, but these are.
        let users = delete::users(&original)?;
        if !users.is_empty() {
            return Err(serve::Error::Busy {
                path: original.runtime.root(),
                users,
            }
            .into());
        }
    }
    // Before anything is made: it fails if there is no such snapshot, or the container runs.
    let is_dataset = written
        .as_ref()
        .is_some_and(|written| written.dataset.is_some());
    let still = match (&written, snapshot) {
        _ if is_inside && is_dataset => None,
        (Some(written), Some(snapshot)) if !is_dataset => Some(written.at_snapshot(snapshot)?),
        (_, Some(_)) => {
            return Err(Error::unfit(format!(
                "{} does not write into the store, and has no snapshots there",
                request.from
            )));
        }
        (Some(written), None) => Some(written.hold()?),
        (None, None) => None,
    };
    let (container, is_filled) =
        store.clone_container(&from, snapshot, request.name, record::FILE)?;
    let new_dir = container.path.clone();
    let mut begun = Existing::new(store, container, record);
    let made = steps::create(false).into_iter().try_for_each(|step| {
        let record = begun.record.clone().unwrap_or_else(|| original.clone());
        match step {
            Step::MakeContainer => {
                // A clone of a dataset has what the original can go back to.
                rebase::forget(&new_dir)?;
                let place = store.place(&begun.container.name)?;
                if let Some(record) = &mut begun.record {
                    record.place = Some(place);
                    volumes::relocate(store, &new_dir, &mut record.volumes)?;
                }
                Ok(())
            }
            Step::MakeDirectories => {
                let group = record.idmap.as_ref().and_then(root_mount::root_of);
                begun.make_outside(group.map(|(_, group)| group))
            }
            Step::WriteConfiguration => {
                // In a snapshot, or in the directory itself, its volumes are beside the upper.
                let beside: &[&str] = if is_inside {
                    &[volumes::DIRECTORY]
                } else {
                    &[]
                };
                if let Some(still) = &still {
                    still.copy_to(&new_dir, beside, request.done)?;
                }
                if !is_inside && !is_filled {
                    volumes::copy(&dir, &new_dir, request.done)?;
                }
                let text = reconfigure::rewritten(&config, &record, &new_dir, request)?;
                outside_of(&mut begun)?.configure(&text)
            }
            Step::Mount => RootMount::of(&record, &new_dir).mount().map(drop),
            Step::MakeWorkingDirectory => {
                let root = MountPoint::open(&record.runtime.root())?;
                root_mount::make_directory(&root, &record.cwd, record.idmap.as_ref())
            }
            Step::FillVolumes => {
                let root = MountPoint::open(&record.runtime.root())?;
                volumes::fill(store, &record, &root)
            }
            other => begun.take(&[other]),
        }
    });
    match (made, begun.record.clone()) {
        (Ok(()), Some(record)) => Ok(Created {
            record,
            dir: new_dir,
        }),
        (Ok(()), None) => Err(gone(&original)),
        (Err(error), _) => Err(begun.failed(error)),
    }
}

/// The error for a container without a configuration.
fn gone(record: &ContainerRecord) -> Error {
    Error::Unfit {
        what: format!(
            "something else removed {}, the container's configuration",
            record.runtime.config().display()
        ),
        hint: Some(format!(
            "`lxcri-fs delete --keep {0}` and then `lxcri-fs create {0}` make a container of what \
             it wrote",
            record.name
        )),
    }
}

impl ContainerRecord {
    /// The record of a clone, whose configuration is in `dir`, or else in a directory beside this
    /// one's.
    fn successor(&self, name: &str, dir: Option<&Path>) -> Self {
        let dir = match dir {
            Some(dir) => dir.to_owned(),
            None => self.runtime.dir().with_file_name(name),
        };
        let runtime = match &self.runtime {
            Runtime::Lxc { system, .. } => Runtime::Lxc {
                dir,
                system: *system,
            },
            Runtime::Bundle { .. } => Runtime::Bundle { dir },
        };
        let upper = match &self.upper {
            UpperLocation::Elsewhere(_) => UpperLocation::Store,
            other => other.clone(),
        };
        let idmap = self.idmap.clone();
        let mut new = Self::new(name, self.image.clone(), upper, idmap, runtime, &self.cwd);
        new.engine = self.engine;
        new.volumes.clone_from(&self.volumes);
        new.settings.clone_from(&self.settings);
        new
    }
}
