//! The directories under /run through which commands find keepers: one for each keeper, with its
//! control socket and, if its mount is shared, the mount.
//!
//! The holder of a directory's lock may start, end or clean up its keeper. Nothing else is
//! recorded: mountinfo shows what is mounted where, and a keeper answers for itself.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use serde::{Deserialize, Serialize};

use super::channel::Channel;
use super::error::{Error, Result};
use super::fuse_mount::{self, Unmount};
use super::mountpoint::MountPoint;
use super::protocol::{KeeperReply, KeeperRequest, Status};
use super::stats::Stats;
use crate::error::Io;
use crate::sys::idmap::{self, in_user_namespace};
use crate::sys::lock::{Mode, lock_at};
use crate::sys::mountinfo::{self, MountInfo};

const SOCKET: &str = "control";
const MOUNT: &str = "mnt";
const DEVICES: &str = "devices";
/// Prefix of the name of a directory for the decoded devices of an EROFS whose keeper is dead, but
/// which is still mounted somewhere: they tell whether it is served. The numbers of its device
/// follow.
const LEFT: &str = "left-";
/// How long a keeper may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The directory of this user's keepers, which is created if it is missing.
///
/// # Errors
/// [`Error::Io`], also if the directory belongs to somebody else.
pub fn base() -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        let path = PathBuf::from("/run/lxcri-fs");
        match own_directory(&path) {
            // Root in a user's own namespace owns nothing in /run.
            Err(_) if in_user_namespace() => {}
            other => return other.map(|()| path),
        }
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR")
        .filter(|d| !d.is_empty())
        .map(|dir| Path::new(&dir).join("lxcri-fs"));
    if let Some(path) = runtime {
        return own_directory(&path).map(|()| path);
    }
    let uid = idmap::host_uid();
    let session = PathBuf::from(format!("/run/user/{uid}"));
    if is_own(&session) {
        let path = session.join("lxcri-fs");
        return own_directory(&path).map(|()| path);
    }
    in_public(&std::env::temp_dir(), &format!("lxcri-fs-{uid}"))
}

/// This user's directory of that name in a public directory. If another user has taken the name, it
/// gets an unpredictable one.
fn in_public(dir: &Path, name: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    if is_own(&path) {
        return Ok(path);
    }
    let prefix = format!("{name}-");
    let own = || -> Result<_> {
        let entries = std::fs::read_dir(dir)
            .map_err(Io::at("reading", dir))?
            .flatten();
        let named = entries.filter(|e| {
            e.file_name()
                .as_encoded_bytes()
                .starts_with(prefix.as_bytes())
        });
        Ok(named.map(|e| e.path()).filter(|path| is_own(path)).min())
    };
    // It holds keepers, so it is used even if the first name is free again.
    if let Some(path) = own()? {
        return Ok(path);
    }
    if own_directory(&path).is_ok() {
        return Ok(path);
    }
    let alone = std::fs::Permissions::from_mode(0o700);
    let made = tempfile::Builder::new()
        .prefix(&prefix)
        .permissions(alone)
        .tempdir_in(dir)
        .map_err(Io::at("making a directory in", dir))?;
    match own()? {
        // If two processes create it at the same time, both use the same one.
        Some(path) if path != made.path() => Ok(path),
        _ => Ok(made.keep()),
    }
}

/// Makes sure that a directory exists and that only this user can reach it.
fn own_directory(path: &Path) -> Result<()> {
    make_directory(path)?;
    if !is_own(path) {
        let refused = io::Error::from(rustix::io::Errno::PERM);
        return Err(Io::at(
            "using the directory, which must be accessible to its user alone,",
            path,
        )(refused)
        .into());
    }
    Ok(())
}

/// Whether only this user can reach a directory.
fn is_own(path: &Path) -> bool {
    let uid = rustix::process::geteuid().as_raw();
    std::fs::symlink_metadata(path)
        .is_ok_and(|m| m.is_dir() && m.uid() == uid && m.mode() & 0o077 == 0)
}

fn make_directory(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(Io::at("making the directory", path)(e).into())
        }
        _ => Ok(()),
    }
}

/// A keeper's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunDir(#[serde(with = "crate::fs::paths::path")] PathBuf);

impl RunDir {
    /// The directory of this name.
    ///
    /// # Errors
    /// As [`base`].
    pub fn named(name: &str) -> Result<Self> {
        Ok(Self(base()?.join(name)))
    }

    /// The directory of a mount's keeper, found by the place of the shared mount, by the device of
    /// a mount that is not shared, or else by asking the keepers.
    ///
    /// # Errors
    /// As [`base`].
    pub fn of_mount(mounts: &[MountInfo], dev: (u32, u32)) -> Result<Self> {
        let base = base()?;
        let shared = mounts.iter().filter(|m| m.dev == dev).find_map(|m| {
            let dir = m.mountpoint.parent()?;
            (dir.parent()? == base).then(|| Self(dir.to_owned()))
        });
        let direct = Self(base.join(direct_name(dev)));
        if let Some(dir) = shared
            .into_iter()
            .chain([direct.clone()])
            .find(|dir| dir.socket().exists())
        {
            return Ok(dir);
        }
        // The shared mount is in another mount namespace.
        let answers = |dir: &Self| {
            dir.status()
                .is_ok_and(|status| status.is_some_and(|s| s.dev == dev))
        };
        Ok(Self::all()?.into_iter().find(answers).unwrap_or(direct))
    }

    /// All directories, also those of dead keepers.
    ///
    /// # Errors
    /// As [`base`].
    pub fn all() -> Result<Vec<Self>> {
        let base = base()?;
        let entries = std::fs::read_dir(&base)
            .map_err(Io::at("reading", &base))?
            .flatten();
        let mut all: Vec<Self> = entries
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
            .map(|e| Self(e.path()))
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(all)
    }

    /// The directory's path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The keeper's socket.
    pub fn socket(&self) -> PathBuf {
        self.0.join(SOCKET)
    }

    /// Where a shared file system is mounted, hidden from users.
    pub fn mountpoint(&self) -> PathBuf {
        self.0.join(MOUNT)
    }

    /// Where the decoded devices of that file system are, if it is an EROFS.
    pub(super) fn devices(&self) -> PathBuf {
        self.0.join(DEVICES)
    }

    /// Creates the directory if necessary, and locks it. A holder keeps the lock no longer than a
    /// keeper may take to start.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn lock(&self) -> Result<Locked> {
        loop {
            make_directory(&self.0)?;
            if let Some(locked) = self.lock_with(Mode::Wait)? {
                return Ok(locked);
            }
        }
    }

    /// Locks the directory, unless it is locked or does not exist.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn try_lock(&self) -> Result<Option<Locked>> {
        self.lock_with(Mode::Try)
    }

    fn lock_with(&self, mode: Mode) -> Result<Option<Locked>> {
        let failed = |e: io::Error| Io::at("locking", &self.0)(e);
        let file = match File::open(&self.0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed)?,
        };
        // It may have been removed and created again before it was locked.
        let locked = lock_at(&self.0, &file, mode).map_err(failed)?;
        Ok(locked.then(|| Locked {
            dir: self.clone(),
            file,
        }))
    }

    /// Connects to the keeper; `None` if there is none.
    pub(super) fn connect(&self) -> Result<Option<Channel>> {
        Channel::connect(&self.socket(), "keeper")
    }

    /// The keeper's status; `None` if there is no keeper.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&self) -> Result<Option<Status>> {
        match self.ask(&KeeperRequest::Status)? {
            Some(KeeperReply::Status(status)) => Ok(Some(status)),
            None => Ok(None),
            Some(_) => Err(Error::Gone { peer: "keeper" }),
        }
    }

    /// The worker's statistics; `None` if there is no keeper or worker.
    ///
    /// # Errors
    /// When the keeper does not answer.
    pub fn stats(&self) -> Result<Option<Stats>> {
        match self.ask(&KeeperRequest::Stats)? {
            Some(KeeperReply::Stats(stats)) => Ok(stats),
            None => Ok(None),
            Some(_) => Err(Error::Gone { peer: "keeper" }),
        }
    }

    /// Makes the keeper continue as another program.
    pub(super) fn upgrade(&self, program: BorrowedFd<'_>) -> Result<()> {
        self.ask_with(&KeeperRequest::Upgrade, &[program]).map(drop)
    }

    /// The directory with a lock that another process has taken and passed on; it is held until
    /// both drop it.
    pub(super) fn locked_by(&self, lock: OwnedFd) -> Locked {
        Locked {
            dir: self.clone(),
            file: lock.into(),
        }
    }

    fn ask(&self, request: &KeeperRequest) -> Result<Option<KeeperReply>> {
        self.ask_with(request, &[])
    }

    fn ask_with(
        &self,
        request: &KeeperRequest,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Option<KeeperReply>> {
        let Some(keeper) = self.connect()? else {
            return Ok(None);
        };
        keeper.send(request, fds)?;
        Ok(Some(keeper.expect(PATIENCE)?.0))
    }
}

/// The mount of the decoded devices of the EROFS with this device; `None` if there is none, or if
/// it is not visible.
pub(super) fn devices_of(mounts: &[MountInfo], dev: (u32, u32)) -> Option<&MountInfo> {
    let base = base().ok()?;
    let hidden = mounts.iter().filter(|m| m.is_split && m.dev == dev);
    let beside = hidden.filter_map(|m| {
        let dir = m.mountpoint.parent()?;
        let is_place = m.mountpoint.file_name()? == MOUNT && dir.parent()? == base;
        is_place.then(|| dir.join(DEVICES))
    });
    let left = base.join(left_name(dev)).join(DEVICES);
    beside
        .chain([left])
        .find_map(|devices| mounts.iter().rfind(|m| m.mountpoint == devices))
}

fn left_name((major, minor): (u32, u32)) -> String {
    format!("{LEFT}{major}-{minor}")
}

/// The name of the directory of a keeper whose mount is not shared.
pub(super) fn direct_name((major, minor): (u32, u32)) -> String {
    format!("dev-{major}-{minor}")
}

/// A locked directory.
#[derive(Debug)]
pub struct Locked {
    dir: RunDir,
    file: File,
}

impl Locked {
    /// The directory.
    pub fn dir(&self) -> &RunDir {
        &self.dir
    }

    /// The lock, to be passed on.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Removes what a keeper left behind: its mount and its socket. The directory stays for the
    /// next keeper.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn clear(&self) -> Result<()> {
        self.leave_devices()?;
        self.unmount()?;
        let socket = self.dir.socket();
        match std::fs::remove_file(&socket) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Io::at("removing", &socket)(e).into())
            }
            _ => Ok(()),
        }
    }

    /// Unmounts the mount, and renames the directory, where the keeper keeps listening, to a name
    /// that nothing looks for.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn retire(self) -> Result<RunDir> {
        self.unmount()?;
        for path in [self.dir.mountpoint(), self.dir.devices()] {
            remove_directory(&path)?;
        }
        let mut name = self.dir.0.clone().into_os_string();
        name.push(format!(".{}", std::process::id()));
        let retired = PathBuf::from(name);
        std::fs::rename(&self.dir.0, &retired).map_err(Io::at("renaming", &self.dir.0))?;
        Ok(RunDir(retired))
    }

    /// Moves the decoded devices of an EROFS that users still see to a directory that is named
    /// after it, where they stay as long as that is so.
    fn leave_devices(&self) -> Result<()> {
        let mounts = mountinfo::all()?;
        let (hidden, devices) = (self.dir.mountpoint(), self.dir.devices());
        let at = |path: &Path| mounts.iter().rfind(|m| m.mountpoint == path);
        let Some(split) = at(&hidden).filter(|m| m.is_split && at(&devices).is_some()) else {
            return Ok(());
        };
        let shows = |m: &&MountInfo| {
            m.dev == split.dev
                || m.overlay()
                    .is_some_and(|overlay| overlay.lower == split.dev)
        };
        if mounts.iter().filter(shows).all(|m| m.mountpoint == hidden) {
            return Ok(());
        }
        let left = RunDir::named(&left_name(split.dev))?.lock()?;
        left.unmount()?;
        make_directory(&left.dir.devices())?;
        // Below a shared mount, as /run often is, no mount can be moved.
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let copy = open_tree(CWD, &devices, flags);
        let copy = copy.map_err(Io::at("making a bind mount of", &devices))?;
        MountPoint::open(&left.dir.devices())?.attach(copy.as_fd())
    }

    /// Whether it holds devices of an EROFS that is mounted somewhere.
    fn is_left_for_use(&self) -> Result<bool> {
        let name = self.dir.0.file_name().and_then(std::ffi::OsStr::to_str);
        let numbers = name.and_then(|name| name.strip_prefix(LEFT)?.split_once('-'));
        let Some((Ok(major), Ok(minor))) = numbers.map(|(a, b)| (a.parse(), b.parse())) else {
            return Ok(false);
        };
        let dev: (u32, u32) = (major, minor);
        let shows = |m: &MountInfo| {
            m.is_split && m.dev == dev || m.overlay().is_some_and(|overlay| overlay.lower == dev)
        };
        Ok(mountinfo::all()?.iter().any(shows))
    }

    fn unmount(&self) -> Result<()> {
        for mountpoint in [self.dir.mountpoint(), self.dir.devices()] {
            while mountinfo::at(&mountpoint)?.is_some() {
                fuse_mount::unmount(
                    &MountPoint::open(&mountpoint)?,
                    Unmount {
                        lazy: true,
                        force: false,
                    },
                )?;
            }
        }
        Ok(())
    }

    /// Removes everything, including the directory.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(self) -> Result<()> {
        if self.is_left_for_use()? {
            return Ok(());
        }
        self.clear()?;
        for path in [
            self.dir.mountpoint(),
            self.dir.devices(),
            self.dir.0.clone(),
        ] {
            remove_directory(&path)?;
        }
        Ok(())
    }
}

fn remove_directory(path: &Path) -> Result<()> {
    match std::fs::remove_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Io::at("removing", path)(e).into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_a_name_first_stops_nobody() {
        let public = tempfile::tempdir().unwrap();
        let taken = public.path().join("lxcri-fs-7");
        assert_eq!(in_public(public.path(), "lxcri-fs-7").unwrap(), taken);
        std::fs::remove_dir(&taken).unwrap();
        // A symlink, a file, a directory of somebody else's: nothing that is this user's alone.
        std::os::unix::fs::symlink("/etc", &taken).unwrap();
        let other = in_public(public.path(), "lxcri-fs-7").unwrap();
        assert!(is_own(&other) && other != taken);
        assert_eq!(in_public(public.path(), "lxcri-fs-7").unwrap(), other);
        std::fs::remove_file(&taken).unwrap();
        assert_eq!(in_public(public.path(), "lxcri-fs-7").unwrap(), other);
    }
}
