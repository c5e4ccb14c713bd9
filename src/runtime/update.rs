//! Gives a container another image, with what it wrote, and the way back.
//!
//! Everything that changes is made beside the container's upper first: the new upper, the new
//! record, the new configuration. One step decides for them ([`crate::upper::rebase`]); after it,
//! whoever works on the container next completes the update before anything else.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::carry::carried;
use super::configuration::{configuration, is_system};
use super::delete::{self, refuse_running};
use super::directory::RuntimeDirectory;
use super::error::{Error, Result};
use super::image::ContainerImage;
use super::left::{self, Existing};
use super::process::Process;
use super::record::{self, ContainerRecord, ImageRecord, Previous, Runtime, State, UpperLocation};
use super::root_mount::{self, RootMount};
use super::volumes;
use crate::error::chain;
use crate::fs::{ImageFile, ImageOptions, Rootfs};
use crate::image::{Events, Judged, Rebase, open_file};
use crate::serve::mountpoint::MountPoint;
use crate::serve::overview;
use crate::store::{Name, Store};
use crate::sys::directory::replace;
use crate::sys::files;
use crate::update::{self, Judgement};
use crate::upper::rebase::{self, Stage};
use crate::upper::written::Written;
use crate::upper::{self, Upper};

/// Name of the runtime's configuration beside an upper.
const CONFIG: &str = "config";

/// A request to update a container.
#[expect(missing_debug_implementations, reason = "it has a receiver of events")]
pub struct Request<'a> {
    /// The container's name.
    pub name: &'a str,
    /// The new image, open.
    pub rootfs: &'a Rootfs,
    /// Its file, open for reading.
    pub file: &'a File,
    /// How to find it again.
    pub image: ImageRecord,
    /// How to merge.
    pub options: update::Options,
    /// Is told of the progress.
    pub events: &'a dyn Events,
}

/// Where a container writes; `None` if that is memory.
///
/// # Errors
/// [`Error::Upper`] if its dataset cannot be mounted.
fn place_of(record: &ContainerRecord, dir: &Path) -> Result<Option<PathBuf>> {
    Ok(match &record.upper {
        UpperLocation::Store => Some(dir.to_owned()),
        UpperLocation::Elsewhere(text) => {
            match Upper::parse(text.as_ref()).map_err(upper::Error::from)? {
                Upper::Zfs { dataset, .. } => Some(dataset.reach().map_err(upper::Error::from)?),
                _ => Some(PathBuf::from(text)),
            }
        }
        UpperLocation::Ephemeral { .. } => None,
    })
}

/// A container that is to be updated or to go back.
struct Found<'a> {
    existing: Existing<'a>,
    record: ContainerRecord,
    dir: PathBuf,
    place: PathBuf,
}

impl<'a> Found<'a> {
    /// Finds a container, whose lock is held, and completes what was begun.
    fn find(store: &'a Store, name: &str) -> Result<Self> {
        let (_, dir) = delete::find(store, name)?;
        if let Err(error) = settle(store, &Name::new(name)?, &dir) {
            // It may be what keeps the update from being completed that makes somebody go back.
            tracing::warn!("{}", chain(&error));
        }
        let missing = || Error::unfit(format!("{name} has been removed"));
        let existing = Existing::find(store, name)?.ok_or_else(missing)?;
        let record = existing.record.clone().ok_or_else(missing)?;
        if record.state != State::Ready {
            return Err(Error::unfit(format!(
                "{name} is being created or deleted, or was deleted"
            )));
        }
        if !record.is_of(store, &existing.container.name)? {
            return Err(record.of_another());
        }
        let place = place_of(&record, &dir)?.ok_or_else(|| Error::Unfit {
            what: format!("{name} writes to memory, and has nothing to keep"),
            hint: Some(format!(
                "`lxcri-fs delete {name}` and `lxcri-fs create {name} --ephemeral` make it again \
                 of another image"
            )),
        })?;
        Ok(Self {
            existing,
            record,
            dir,
            place,
        })
    }

    /// The runtime's directory.
    fn outside(&mut self) -> Result<&RuntimeDirectory> {
        let gone = Error::Unfit {
            what: format!(
                "something else removed {}, the container's configuration",
                self.record.runtime.config().display()
            ),
            hint: None,
        };
        self.existing.outside()?.ok_or(gone)
    }

    /// Refuses a running container, and unmounts it. Returns whether it was mounted.
    fn unmount(&mut self) -> Result<bool> {
        let root = self.outside()?.root();
        if let Err(error) = refuse_running(&self.existing, Some(&root)) {
            let stop = match self.record.runtime {
                Runtime::Lxc { .. } => "lxc-stop stops it".to_owned(),
                Runtime::Bundle { .. } => "stop it with its runtime, and start it again \
                                           afterwards, because only that knows how"
                    .to_owned(),
            };
            return Err(match error {
                Error::Serve(busy @ crate::serve::Error::Busy { .. }) => Error::Running {
                    name: self.record.name.clone(),
                    stop,
                    source: busy,
                },
                other => other,
            });
        }
        let was = root_mount::is_mounted(&self.record.runtime.root())?;
        if was {
            root_mount::unmount_ended_at(&root)?;
        }
        Ok(was)
    }
}

/// Says what an update would do.
///
/// # Errors
/// [`Error`].
pub fn judge(store: &Store, request: &Request<'_>) -> Result<Judged> {
    let _lock = left::lock(store, request.name)?;
    let found = Found::find(store, request.name)?;
    ContainerImage::open(request.rootfs)?;
    Ok(rebase_of(&found, request)?.judge()?)
}

fn rebase_of(found: &Found<'_>, request: &Request<'_>) -> Result<Rebase> {
    let path = request.image.path.clone();
    let file = request.file.try_clone();
    let file = file.map_err(crate::error::Io::at("opening the image", &path))?;
    let place = match &found.record.upper {
        UpperLocation::Elsewhere(text) => text.as_ref(),
        _ => found.dir.as_os_str(),
    };
    Ok(Rebase {
        written: Written::find(place)?,
        old: Some(found.record.image.path.clone()),
        old_secret: root_mount::secret_of(&found.record.image)?,
        new: (path, file),
        new_secret: root_mount::secret_of(&request.image)?,
        engine: root_mount::engine_of(found.record.engine)?,
        options: request.options.clone(),
        orphan: false,
    })
}

/// Updates a container that does not run. `check` may refuse the judgement.
///
/// # Errors
/// [`Error`], and [`Error::Running`]. The container is as it was then, except that it may be
/// unmounted; or it is updated, and the next command completes that.
pub fn update(
    store: &Store,
    request: &Request<'_>,
    check: &dyn Fn(&Judgement) -> Result<()>,
) -> Result<Judged> {
    let _lock = left::lock(store, request.name)?;
    overview::sweep();
    let mut found = Found::find(store, request.name)?;
    let image = ContainerImage::open(request.rootfs)?;
    let was_mounted = found.unmount()?;
    let made = staged(store, &mut found, request, &image, check);
    if made.is_err() && was_mounted {
        let mount = RootMount::of(&found.record, &found.dir).mount();
        if let Err(error) = mount {
            tracing::warn!("it stays unmounted: {}", chain(&error));
        }
    }
    let judged = made?;
    settle(store, &found.existing.container.name, &found.dir)?;
    Ok(judged)
}

/// Makes everything new, and decides for it.
fn staged(
    store: &Store,
    found: &mut Found<'_>,
    request: &Request<'_>,
    image: &ContainerImage<'_>,
    check: &dyn Fn(&Judgement) -> Result<()>,
) -> Result<Judged> {
    let rebase = rebase_of(found, request)?;
    let (judged, stage) = rebase.stage(request.events)?;
    check(&judged.judgement)?;
    let current = found.outside()?.configuration()?;
    let (record, config) = renewed(store, found, request, image, &current)?;
    record.write(&stage.path())?;
    replace(&stage.path().join(CONFIG), config.as_bytes())?;
    keep(&stage.old()?, &found.record, &current)?;
    needs(store, found, &[&record, &found.record])?;
    Stage::commit(stage)?;
    Ok(judged)
}

/// Keeps a container's files as they are now in a directory.
fn keep(dir: &Path, record: &ContainerRecord, config: &[u8]) -> Result<()> {
    record.write(dir)?;
    Ok(replace(&dir.join(CONFIG), config)?)
}

/// Tells the store which images a container needs: those of these records.
fn needs(store: &Store, found: &Found<'_>, records: &[&ContainerRecord]) -> Result<()> {
    let digests = records.iter().filter_map(|record| {
        let digest = record.image.root_digest.as_deref()?;
        Some(digest.trim_start_matches("blake3:"))
    });
    let name = &found.existing.container.name;
    Ok(store.set_images(name, &digests.collect::<Vec<_>>())?)
}

/// The record and the configuration for the new image.
fn renewed(
    store: &Store,
    found: &Found<'_>,
    request: &Request<'_>,
    image: &ContainerImage<'_>,
    current: &[u8],
) -> Result<(ContainerRecord, String)> {
    let (old, dir) = (&found.record, &found.dir);
    let mut record = ContainerRecord {
        image: ImageRecord {
            root_digest: image.root_digest.clone(),
            ..request.image.clone()
        },
        previous: Some(Previous {
            image: old.image.clone(),
            left: record::now(),
        }),
        ..old.clone()
    };
    let Some(settings) = &old.settings else {
        // Nobody knows what of it was asked for.
        let text = String::from_utf8(current.to_vec());
        let text = text.map_err(|_| Error::unfit("the container's configuration is not UTF-8"))?;
        tracing::warn!(
            "{} was created by an earlier version: its configuration stays as it is",
            old.name
        );
        return Ok((record, text));
    };
    let process = Process::of(image, &settings.overrides)?;
    if settings.read_only {
        process.check_volumes()?;
    }
    record.cwd.clone_from(&process.cwd);
    if let Runtime::Lxc { system, .. } = &mut record.runtime {
        *system = is_system(image, &process, &settings.overrides)?;
    }
    let wanted = volumes::wanted(image, &process, &settings.volumes, true)?;
    let mut volumes = volumes::places(store, dir, &wanted)?;
    // What the new image does not declare any more stays where it is.
    let is_new = |volume: &&volumes::VolumeRecord| {
        volumes
            .iter()
            .all(|known| known.destination != volume.destination)
    };
    let kept: Vec<_> = old.volumes.iter().filter(is_new).cloned().collect();
    volumes.extend(kept);
    volumes.sort_by(|a, b| a.destination.cmp(&b.destination));
    record.volumes = volumes;
    let base = old_configuration(store, found)?;
    let theirs = configuration(store, settings, image, &process, &record, dir)?;
    let text = carried(&record.runtime, &base, current, &theirs)?;
    Ok((record, text))
}

/// What `create` wrote for the image that a container has now.
fn old_configuration(store: &Store, found: &Found<'_>) -> Result<String> {
    let record = &found.record;
    let Some(settings) = &record.settings else {
        return Ok(String::new());
    };
    let path = record.image.path.clone();
    let file = ImageFile {
        file: open_file(&path)?,
        path,
        secret: root_mount::secret_of(&record.image)?,
    };
    let rootfs = Rootfs::open(vec![file], &ImageOptions::default())?;
    let image = ContainerImage::open(&rootfs)?;
    let process = Process::of(&image, &settings.overrides)?;
    configuration(store, settings, &image, &process, record, &found.dir)
}

/// Goes back to before the last update: what the container wrote since then is kept, and the next
/// `rollback` goes back to that. Returns the image that it has now.
///
/// # Errors
/// [`Error`]; [`upper::Error::NoUpdate`] if there is nothing to go back to.
pub fn rollback(store: &Store, name: &str) -> Result<ImageRecord> {
    let _lock = left::lock(store, name)?;
    overview::sweep();
    let mut found = Found::find(store, name)?;
    let none = || upper::Error::NoUpdate {
        path: found.place.clone(),
    };
    if found.record.previous.is_none() || !rebase::can_go_back(&found.place)? {
        return Err(none().into());
    }
    let was = ContainerRecord::read(&found.place.join(rebase::PREVIOUS))?;
    let was = was.filter(|was| was.name == found.record.name && was.place == found.record.place);
    let was = was.ok_or_else(none)?;
    // Before anything is unmounted.
    drop(open_file(&was.image.path)?);
    let current = found.outside()?.configuration()?;
    let was_mounted = found.unmount()?;
    let restored = ContainerRecord {
        previous: Some(Previous {
            image: found.record.image.clone(),
            left: record::now(),
        }),
        auto_update: found.record.auto_update,
        ..was
    };
    needs(store, &found, &[&restored, &found.record])?;
    let decided = rebase::back(&found.place, |previous, old| {
        restored.write(previous)?;
        keep(old, &found.record, &current)
    });
    if decided.is_err() && was_mounted {
        RootMount::of(&found.record, &found.dir).mount()?;
    }
    decided?;
    settle(store, &found.existing.container.name, &found.dir)?;
    Ok(restored.image)
}

/// Removes what a container can go back to, whose image is not needed any more then. Returns
/// whether there was anything.
///
/// # Errors
/// [`Error`].
pub fn forget(store: &Store, name: &str) -> Result<bool> {
    let _lock = left::lock(store, name)?;
    let found = match Found::find(store, name) {
        // It is unfinished, or writes to memory.
        Err(Error::Unfit { .. }) => return Ok(false),
        other => other?,
    };
    if found.record.previous.is_none() {
        return Ok(false);
    }
    let record = ContainerRecord {
        previous: None,
        ..found.record.clone()
    };
    record.write(&found.dir)?;
    rebase::forget(&found.place)?;
    needs(store, &found, &[&record])?;
    Ok(true)
}

/// Sets whether `update --all --auto` updates a container.
///
/// # Errors
/// [`Error`].
pub fn set_auto(store: &Store, name: &str, auto: bool) -> Result<()> {
    let _lock = left::lock(store, name)?;
    let found = Found::find(store, name)?;
    let record = ContainerRecord {
        auto_update: auto,
        ..found.record
    };
    record.write(&found.dir)
}

/// Completes an update of a container that has been decided, and removes what one that was not has
/// left. The container's lock is held. Returns whether there was one to complete.
///
/// # Errors
/// [`Error`]; the next call continues.
pub(super) fn settle(store: &Store, name: &Name, dir: &Path) -> Result<bool> {
    let Some(record) = ContainerRecord::read(dir)? else {
        return Ok(false);
    };
    // A copy of a container has no part in what is outside the store.
    if record.state != State::Ready || !record.is_of(store, name)? {
        return Ok(false);
    }
    let Some(place) = place_of(&record, dir)? else {
        return Ok(false);
    };
    let Some(update) = rebase::pending(&place)? else {
        rebase::sweep(&place)?;
        return Ok(false);
    };
    let Some(new) = ContainerRecord::read(&update)?.filter(|new| new.name == record.name) else {
        // All but the last steps were taken.
        rebase::complete(&place)?;
        return Ok(false);
    };
    rebase::finish_parts(&place)?;
    if let Some(outside) = RuntimeDirectory::find(&new.runtime)? {
        let config = files::read(&update.join(CONFIG), super::bundle::MAX_CONFIG)?;
        outside.configure(&String::from_utf8_lossy(&config))?;
    }
    new.write(dir)?;
    let ready = make_ready(store, &new, dir);
    rebase::complete(&place)?;
    ready?;
    Ok(true)
}

/// Mounts a container, and makes what its configuration needs in it.
fn make_ready(store: &Store, record: &ContainerRecord, dir: &Path) -> Result<()> {
    RootMount::of(record, dir).mount_ready(record)?;
    let root = MountPoint::open(&record.runtime.root())?;
    volumes::fill(store, record, &root)
}

/// As [`settle`], for a hook: a runtime has read the configuration already, so a container whose
/// update was completed only now cannot start with it.
///
/// # Errors
/// As [`settle`], and [`Error::Unfit`] if there was one to complete.
pub(super) fn settle_before_start(store: &Store, name: &Name, dir: &Path) -> Result<()> {
    match settle(store, name, dir)? {
        false => Ok(()),
        true => Err(Error::Unfit {
            what: format!("an update of {name} was interrupted, and has been completed now"),
            hint: Some("start the container again".to_owned()),
        }),
    }
}

/// Completes an update of the container of this name, if one was interrupted.
///
/// # Errors
/// As for an update.
pub fn finish(store: &Store, name: &str) -> Result<()> {
    let name = Name::new(name)?;
    let dir = store.container(name.as_str())?.path;
    // Nothing to wait for.
    let is_pending = match ContainerRecord::read(&dir)? {
        Some(record) => match place_of(&record, &dir)? {
            Some(place) => rebase::pending(&place)?.is_some(),
            None => false,
        },
        None => false,
    };
    if is_pending {
        let _lock = left::lock(store, name.as_str())?;
        settle(store, &name, &dir)?;
    }
    Ok(())
}
