//! One FUSE mount for all users of an image: the first starts its keeper, the others get bind
//! mounts, and it ends with the last.

use std::fmt::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::thread::{CapabilitySet, capabilities};

use super::channel::Channel;
use super::engine::{Engine, Wanted};
use super::error::{Error, Result};
use super::keeper;
use super::mountpoint::MountPoint;
use super::protocol::{KeeperReply, KeeperRequest, MountRequest};
use super::rundir::{Locked, RunDir};
use crate::error::{Io, chain};
use crate::sys::idmap::IdMap;
use crate::sys::mount_attr::{FlagChanges, MountFlags};
use crate::sys::mountinfo::MountInfo;
use crate::sys::{mount_attr, mountinfo};

/// How long a keeper may take to make a bind mount.
const LIMIT: Duration = Duration::from_secs(10);
/// Name of the lock that is held while a mount point is checked and used.
const ATTACHING: &str = "attaching";

/// Whether this process may make bind mounts.
pub fn is_possible() -> bool {
    capabilities(None).is_ok_and(|c| c.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// A detached mount. Its keeper stays as long as this exists.
#[derive(Debug)]
pub struct Detached {
    mount: OwnedFd,
    engine: Engine,
    lock: Locked,
}

/// Makes a mount of these images, from the keeper that has them mounted already, or from a new one.
///
/// # Errors
/// As [`keeper::start`], and if the keeper cannot be reached.
pub fn acquire(
    mut request: MountRequest,
    images: &[BorrowedFd<'_>],
    log_file: Option<&Path>,
) -> Result<Detached> {
    let name = identity(&request, images)?;
    let lock = RunDir::named(&name)?.lock()?;
    let dir = lock.dir();
    let channel = match dir.connect()? {
        Some(channel) => channel,
        None => {
            // Remains of a keeper that was killed, or from before a reboot.
            lock.clear()?;
            let mountpoint = dir.mountpoint();
            std::fs::create_dir_all(&mountpoint)
                .map_err(Io::at("making the directory", &mountpoint))?;
            request.mountpoint = mountpoint.into_os_string();
            request.shared = Some(name.into());
            if let Err(error) = keeper::start(&request, Some(&lock), images, log_file) {
                let _ = lock.remove();
                return Err(error);
            }
            dir.connect()?.ok_or(Error::Gone { peer: "keeper" })?
        }
    };
    let attached = attached(&channel, lock)?;
    // Somebody else had it mounted where either will do.
    if !request.engine.allows(attached.engine) {
        let reason = "it is mounted with FUSE alone, because EROFS cannot show it".to_owned();
        return Err(Error::Split { reason });
    }
    Ok(attached)
}

/// Makes another mount of the file system with this device, from its keeper.
///
/// # Errors
/// [`Error::Gone`] if it has no keeper any more.
pub fn another(dev: (u32, u32)) -> Result<Detached> {
    let dir = RunDir::of_mount(&mountinfo::all()?, dev)?;
    let lock = dir.lock()?;
    match dir.connect()? {
        Some(channel) => attached(&channel, lock),
        None => {
            let _ = lock.remove();
            Err(Error::Gone { peer: "keeper" })
        }
    }
}

fn attached(channel: &Channel, lock: Locked) -> Result<Detached> {
    channel.send(&KeeperRequest::Attach, &[])?;
    match channel.expect(LIMIT)? {
        (KeeperReply::Attached { engine }, mut fds) => {
            let mount = fds.pop().ok_or(Error::Gone { peer: "keeper" })?;
            Ok(Detached {
                mount,
                engine,
                lock,
            })
        }
        (KeeperReply::Failed(failure), _) => Err(Error::Failed(Box::new(failure))),
        _ => Err(Error::Gone { peer: "keeper" }),
    }
}

impl Detached {
    /// Attaches the mount at a directory, unless one of lxcri-fs is there already.
    ///
    /// # Errors
    /// [`Error::Mounted`], [`Error::Io`].
    pub fn attach(self, mountpoint: &MountPoint, flags: MountFlags) -> Result<()> {
        mount_attr::change(self.mount.as_fd(), flags.into())
            .map_err(Io::at("setting the mount options of", mountpoint.path()))?;
        attach(self.mount.as_fd(), mountpoint)
    }

    /// Makes it show the host's ids of this map instead of the ids in the image.
    ///
    /// # Errors
    /// [`Error::Io`] if the map cannot be made, or the kernel (before 6.12) cannot map ids.
    pub fn map_ids(&self, map: &IdMap) -> Result<()> {
        map_ids(self.mount.as_fd(), map)
    }

    /// What serves it.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// The mount: a directory descriptor.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }

    /// Attaches the mount in a hidden place, for as long as mounting an overlay over it takes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn hide(self) -> Result<Hidden> {
        let mut hidden = Hidden::lower(self.mount)?;
        hidden.keeper = Some(self.lock);
        Ok(hidden)
    }
}

/// A mount in a hidden place, to become a directory of an overlay. The overlay keeps what it needs
/// of it, and its options keep the name. It is unmounted when this is dropped or, if the process
/// was killed, when a command lists the mounts.
#[derive(Debug)]
pub struct Hidden {
    path: PathBuf,
    locked: Option<Locked>,
    mount: OwnedFd,
    /// Keeps the keeper alive.
    keeper: Option<Locked>,
}

impl Hidden {
    /// Attaches a detached mount, to become a lower directory.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn lower(mount: OwnedFd) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let dev = rustix::fs::fstat(&mount)
            .map_err(Io::doing("looking at a mount"))?
            .st_dev;
        let (major, minor, pid) = (
            rustix::fs::major(dev),
            rustix::fs::minor(dev),
            std::process::id(),
        );
        let name = format!(
            "{}{major}-{minor}-{pid}-{}",
            mountinfo::LOWER,
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        Self::named(&name, mount)
    }

    /// Attaches a detached mount in the directory of this name under /run.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn named(name: &str, mount: OwnedFd) -> Result<Self> {
        let locked = RunDir::named(name)?.lock()?;
        let path = locked.dir().mountpoint();
        std::fs::create_dir_all(&path).map_err(Io::at("making the directory", &path))?;
        let hidden = Self {
            path,
            locked: Some(locked),
            mount,
            keeper: None,
        };
        MountPoint::open(&hidden.path)?.attach(hidden.mount.as_fd())?;
        Ok(hidden)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its root directory.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.locked.take().map(Locked::remove) {
            tracing::warn!("{}", chain(&error));
        }
    }
}

/// Makes a detached mount show the host's ids of this map instead of the stored ids.
///
/// # Errors
/// [`Error::Io`] if the map cannot be made, or the file system cannot map ids.
pub fn map_ids(mount: BorrowedFd<'_>, map: &IdMap) -> Result<()> {
    let namespace = map.namespace()?;
    let mapped = mount_attr::map_ids(mount, namespace.as_fd());
    Ok(mapped.map_err(Io::doing("mapping ids (FUSE needs Linux 6.12)"))?)
}

/// Makes a mount read-only or writable.
///
/// # Errors
/// [`Error::Io`] with the kernel's error: EBUSY if a file is open for writing.
pub fn set_read_only(mount: &MountInfo, on: bool) -> Result<()> {
    let changes = FlagChanges {
        read_only: Some(on),
        ..FlagChanges::default()
    };
    remount(mount, changes)
}

/// Changes the flags of a mount, as `mount -o remount` does.
///
/// # Errors
/// [`Error::Io`].
pub fn remount(mount: &MountInfo, changes: FlagChanges) -> Result<()> {
    let root = MountPoint::of(mount)?.directory()?;
    let changed = mount_attr::change(root.as_fd(), changes);
    Ok(changed.map_err(Io::at("changing the options of", &mount.mountpoint))?)
}

/// Attaches a mount of another file system, unless one of lxcri-fs is there already.
///
/// # Errors
/// As [`Detached::attach`].
pub fn attach(mount: BorrowedFd<'_>, mountpoint: &MountPoint) -> Result<()> {
    let _one_at_a_time = RunDir::named(ATTACHING)?.lock()?;
    mountpoint.check_free()?;
    mountpoint.attach(mount)
}

/// The identity of a shared mount: the files of the images in their current state, the options, and
/// the keys, but not the paths.
fn identity(request: &MountRequest, images: &[BorrowedFd<'_>]) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for fd in images {
        let stat = rustix::fs::fstat(fd).map_err(Io::doing("looking at an image"))?;
        for number in [stat.st_dev, stat.st_ino, stat.st_size.cast_unsigned()] {
            hasher.update(&number.to_le_bytes());
        }
        for number in [stat.st_mtime, stat.st_ctime] {
            hasher.update(&number.to_le_bytes());
        }
        for number in [stat.st_mtime_nsec, stat.st_ctime_nsec] {
            hasher.update(&number.to_le_bytes());
        }
    }
    for image in &request.images {
        let key = image.key.as_ref().map_or(&[][..], |key| key.0.as_bytes());
        hasher.update(&[u8::from(image.key.is_some())]).update(key);
    }
    // A keeper ends with its pid namespace: if LXC starts one in a container's, no other container
    // may depend on it. A file system belongs to the user namespace in which it was mounted, and is
    // useless to users of another.
    for namespace in ["/proc/self/ns/pid", "/proc/self/ns/user"] {
        if let Ok(namespace) = std::fs::read_link(namespace) {
            hasher.update(namespace.as_os_str().as_encoded_bytes());
        }
    }
    let options = serde_json::to_vec(&request.options).map_err(|source| Error::Protocol {
        peer: "keeper",
        source,
    })?;
    hasher
        .update(&options)
        .update(&[u8::from(request.flags.allow_other)])
        .update(&[u8::from(request.engine == Wanted::Fuse)]);
    let mut name = String::from("image-");
    for byte in &hasher.finalize().as_bytes()[..16] {
        let _ = write!(name, "{byte:02x}");
    }
    Ok(name)
}
