//! Mounts the root file systems of containers.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use super::error::{Error, Result};
use super::record::{ContainerRecord, ImageRecord, Runtime, State, UpperLocation};
use super::update;
use crate::error::Io;
use crate::fs::ImageOptions;
use crate::image::{self, secret};
use crate::serve::answer::{self, Answer};
use crate::serve::engine::Wanted as Engine;
use crate::serve::fuse_mount::Unmount;
use crate::serve::mountpoint::{self, MountPoint};
use crate::serve::protocol::{self, ImageKey};
use crate::serve::unmount::{unmount, unmount_at};
use crate::serve::{self, worker};
use crate::store::{self, Config, Container, Store};
use crate::sys::idmap::IdMap;
use crate::sys::mount_attr::MountFlags;
use crate::sys::users::{self, Used};
use crate::upper::{self, Upper};
use crate::zfs::recorded;

/// How often, and how soon, to retry unmounting a file system that is busy right after its
/// container's end.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// What to mount, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootMount {
    /// The image.
    pub image: ImageRecord,
    /// The upper; `None` for a read-only mount.
    pub upper: Option<Writable>,
    /// The map of ids, if any.
    pub idmap: Option<IdMap>,
    /// What may serve the image; `None` for what is configured.
    pub engine: Option<Engine>,
    /// Where.
    pub root: PathBuf,
}

/// Where a container writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Writable {
    /// An upper, as `--upper` takes it.
    Upper(OsString),
    /// Memory, and its limit in bytes.
    Ephemeral(Option<u64>),
}

impl Writable {
    /// The place that a record names, for the container in this directory.
    pub fn of(record: &ContainerRecord, container: &Path) -> Self {
        match &record.upper {
            UpperLocation::Store => Self::Upper(container.into()),
            UpperLocation::Elsewhere(text) => Self::Upper(text.into()),
            UpperLocation::Ephemeral { size } => Self::Ephemeral(*size),
        }
    }

    /// Converts it to an upper.
    ///
    /// # Errors
    /// [`Error::Upper`] when it names no dataset.
    pub fn upper(&self) -> Result<Upper> {
        Ok(match self {
            Self::Upper(text) => Upper::parse(text).map_err(upper::Error::from)?,
            Self::Ephemeral(size) => Upper::Ephemeral { size: *size },
        })
    }
}

impl RootMount {
    /// The mount that a record describes, for the container in this directory.
    pub fn of(record: &ContainerRecord, container: &Path) -> Self {
        let upper = Some(Writable::of(record, container));
        Self {
            image: record.image.clone(),
            upper,
            idmap: record.idmap.clone(),
            engine: record.engine,
            root: record.runtime.root(),
        }
    }

    /// Mounts it, unless it is mounted and served already. Returns whether it mounted. Removes a
    /// dead mount first.
    ///
    /// The keeper does not become a child of this process: runtimes wait for all their children.
    ///
    /// # Errors
    /// [`Error`], and those of [`is_served`]; nothing is mounted then.
    pub fn mount(&self) -> Result<bool> {
        if is_served(&self.root)? {
            return Ok(false);
        }
        match self.mount_now() {
            Ok(()) => Ok(true),
            // Another process was quicker.
            Err(_) if is_served(&self.root)? => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// As [`RootMount::mount`], with the working directory that the container's process has.
    ///
    /// # Errors
    /// As [`RootMount::mount`], and those of [`make_directory`].
    pub fn mount_ready(&self, record: &ContainerRecord) -> Result<()> {
        // A volume of the store may be a dataset that is not mounted.
        for volume in record.volumes.iter().filter(|volume| volume.name.is_some()) {
            if let Some(dir) = volume.source.parent().filter(|_| !volume.source.exists()) {
                recorded::reach_directory(dir).map_err(store::Error::from)?;
            }
        }
        self.mount()?;
        let root = MountPoint::open(&self.root)?;
        make_directory(&root, &record.cwd, record.idmap.as_ref())
    }

    fn mount_now(&self) -> Result<()> {
        let mut mount = image::Mount::of(&self.image.path)?;
        mount.secret = secret_of(&self.image)?;
        mount.upper = self.upper.as_ref().map(Writable::upper).transpose()?;
        mount.idmap.clone_from(&self.idmap);
        mount.engine = engine_of(self.engine)?;
        mount.flags = container_flags();
        mount.orphan = true;
        Ok(mount.at(&self.root)?)
    }
}

/// The password or key of a container's image, if it has one.
///
/// # Errors
/// [`Error::Image`] if its file cannot be read.
pub fn secret_of(image: &ImageRecord) -> Result<Option<bfc::Secret>> {
    Ok(match (&image.key_file, &image.password_file) {
        (Some(path), _) => Some(secret::key_file(path)?),
        (None, Some(path)) => Some(secret::password_file(path)?),
        (None, None) => secret::from_environment(),
    })
}

/// What may serve a container's image.
///
/// # Errors
/// [`Error::Store`] when the configuration cannot be read.
pub(super) fn engine_of(wanted: Option<Engine>) -> Result<Engine> {
    match wanted {
        Some(engine) => Ok(engine),
        None => Ok(Config::load(None)?.engine.value),
    }
}

/// The flags for a mount that only the container can reach.
fn container_flags() -> MountFlags {
    MountFlags::of_container(rustix::process::geteuid().is_root())
}

/// Mounts a container's root file system; the keeper becomes a child of this process. `prepare`
/// runs while the server starts.
///
/// # Errors
/// [`Error::Upper`], and those of `prepare`; nothing is mounted then.
pub fn mount<T>(
    record: &ContainerRecord,
    file: &File,
    key: Option<ImageKey>,
    prepare: impl FnOnce() -> Result<(Upper, MountPoint, T)>,
) -> Result<T> {
    let request = upper::Request {
        images: vec![protocol::MountedImage {
            path: record.image.path.clone().into_os_string(),
            key,
        }],
        files: std::slice::from_ref(file),
        options: ImageOptions::default(),
        threads: worker::default_threads(),
        engine: engine_of(record.engine)?,
        idmap: record.idmap.clone(),
        flags: container_flags(),
        log_file: None,
        orphan: false,
    };
    upper::mount_under(&request, prepare, false)
}

/// Mounts the root file systems of all ready containers, except those that a hook mounts when they
/// start. Returns those that could not be mounted, and why.
///
/// # Errors
/// [`Error::Store`] when the containers cannot be listed.
pub fn mount_all(store: &Store) -> Result<Vec<(String, Error)>> {
    let mut failures = Vec::new();
    for container in store.containers()? {
        let mounted = mount_listed(store, &container);
        failures.extend(
            mounted
                .err()
                .map(|error| (container.name.to_string(), error)),
        );
    }
    Ok(failures)
}

/// Mounts the root file system of a container, unless a hook does.
fn mount_listed(store: &Store, container: &Container) -> Result<()> {
    let _lock = store.lock_container_soon(container.name.as_str())?;
    let dir = match store.reach(container) {
        // It was removed after it was listed.
        Err(store::Error::NotFound { .. }) => return Ok(()),
        other => other?,
    };
    update::settle(store, &container.name, &dir)?;
    match ContainerRecord::read(&dir)? {
        Some(record) if !record.is_of(store, &container.name)? => Err(record.of_another()),
        Some(record)
            if record.state == State::Ready && matches!(record.runtime, Runtime::Bundle { .. }) =>
        {
            RootMount::of(&record, &dir).mount_ready(&record)
        }
        _ => Ok(()),
    }
}

/// Whether a file system of lxcri-fs is mounted at a path.
///
/// # Errors
/// [`serve::Error::Foreign`] if another file system is mounted there.
pub fn is_mounted(root: &Path) -> Result<bool> {
    match mountpoint::mounted_at(root)? {
        None => Ok(false),
        Some(mounted) if mounted.is_ours() => Ok(true),
        Some(mounted) => Err(serve::Error::Foreign {
            path: root.to_owned(),
            fs_type: mounted.fs_type,
        }
        .into()),
    }
}

/// Whether a file system of lxcri-fs is mounted at a path, and served. Unmounts a dead one, unless
/// it is in use.
///
/// # Errors
/// [`serve::Error::Foreign`], [`serve::Error::Silent`] when it does not answer,
/// [`serve::Error::Busy`] when it is dead and in use.
pub fn is_served(root: &Path) -> Result<bool> {
    while is_mounted(root)? {
        let Some(mounted) = mountpoint::mounted_at(root)? else {
            break;
        };
        match answer::ask(&[mounted.id])?.get(&mounted.id) {
            Some(Answer::Dead) => {}
            Some(Answer::Silent) => {
                return Err(serve::Error::Silent {
                    path: root.to_owned(),
                }
                .into());
            }
            _ => return Ok(true),
        }
        // A container that runs on it has it in its own mount namespace.
        let users = users::of(Used::Device(mounted.dev), &[std::process::id()]);
        if !users.is_empty() {
            return Err(serve::Error::Busy {
                path: root.to_owned(),
                users,
            }
            .into());
        }
        tracing::warn!(
            "no process serves the mount on {}: unmounting it",
            root.display()
        );
        unmount(root, Unmount::default())?;
    }
    Ok(false)
}

/// Unmounts a root file system that should not be in use any more, and detaches it if it still is.
/// Succeeds if nothing is mounted.
///
/// # Errors
/// [`Error::Serve`].
pub fn unmount_ended(root: &Path) -> Result<()> {
    match MountPoint::open(root) {
        Err(serve::Error::Io(e)) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => unmount_ended_at(&other?),
    }
}

/// As [`unmount_ended`], where a directory was found before.
///
/// # Errors
/// [`Error::Serve`].
pub(super) fn unmount_ended_at(root: &MountPoint) -> Result<()> {
    for _ in 0..TRIES {
        match unmount_at(root, Unmount::default()) {
            Err(serve::Error::Busy { .. }) => std::thread::sleep(PAUSE),
            other => return Ok(other.map(drop)?),
        }
    }
    Ok(unmount_at(
        root,
        Unmount {
            lazy: true,
            force: false,
        },
    )
    .map(drop)?)
}

/// Creates the directory at `path` in a mounted root file system, and those above it, as the
/// container's root would: symlinks are resolved inside the root file system.
///
/// # Errors
/// [`Error::Io`], also when something else is there, or no root file system.
pub fn make_directory(root: &MountPoint, path: &str, idmap: Option<&IdMap>) -> Result<()> {
    let failed = |e: Errno| {
        Io::at(
            "making the directory",
            &root.path().join(path.trim_start_matches('/')),
        )(e)
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if !root.mounted()?.is_some_and(|mounted| mounted.is_ours()) {
        return Err(failed(Errno::NOENT).into());
    }
    let top = root.directory()?;
    let open = |path: &str| {
        rustix::fs::openat2(
            &top,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    };
    let mut parent: OwnedFd = top
        .as_fd()
        .try_clone_to_owned()
        .map_err(Io::at("opening", root.path()))?;
    let mut at = String::new();
    for name in path.split('/').filter(|n| !n.is_empty()) {
        at.push('/');
        at.push_str(name);
        parent = match open(&at) {
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)).map_err(failed)?;
                if let Some((uid, gid)) = idmap.and_then(root_of) {
                    rustix::fs::chownat(
                        &parent,
                        name,
                        Some(uid),
                        Some(gid),
                        AtFlags::SYMLINK_NOFOLLOW,
                    )
                    .map_err(failed)?;
                }
                // The caller's umask must not affect the container.
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made =
                    rustix::fs::openat(&parent, name, flags, Mode::empty()).map_err(failed)?;
                rustix::fs::fchmod(&made, Mode::from_raw_mode(0o755)).map_err(failed)?;
                open(&at).map_err(failed)?
            }
            other => other.map_err(failed)?,
        };
    }
    Ok(())
}

/// The ids that the container's root has on the host.
pub(super) fn root_of(map: &IdMap) -> Option<(Uid, Gid)> {
    let zero = |mut ranges: Box<dyn Iterator<Item = (u32, u32, u32)> + '_>| {
        ranges
            .find(|(inside, ..)| *inside == 0)
            .map(|(_, outside, _)| outside)
    };
    Some((
        Uid::from_raw(zero(Box::new(map.uids()))?),
        Gid::from_raw(zero(Box::new(map.gids()))?),
    ))
}
