//! Where a keeper's file system is mounted, and who uses it there.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use serde::{Deserialize, Serialize};

use super::super::channel::Listener;
use super::super::error::{Error, Result, chain};
use super::super::mount::{self, Unmount};
use super::super::mountinfo::{self, MountInfo};
use super::super::mountpoint::MountPoint;
use super::super::namespace;
use super::super::protocol::MountRequest;
use super::super::rundir::{RunDir, direct_name};
use super::super::users::{self, Used};

/// A mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in super::super) struct Place {
    dev: (u32, u32),
    /// What mountinfo says is mounted.
    #[serde(with = "crate::fs::paths::path")]
    source: PathBuf,
    /// Where the file system itself is mounted.
    #[serde(with = "crate::fs::paths::path")]
    mountpoint: PathBuf,
    /// Whether that is out of sight, and what users see are bind mounts of it.
    shared: bool,
    /// Where commands find the keeper; none when it could not be made.
    dir: Option<RunDir>,
    /// Whether new users start a keeper of their own.
    released: bool,
    /// Numbers of other mount namespaces where it may be seen.
    elsewhere: BTreeSet<u64>,
}

impl Place {
    /// The place of a mount that was just made, and the socket of its keeper.
    pub(super) fn settle(request: &MountRequest, mounted: MountInfo) -> Result<(Self, Option<Listener>)> {
        let MountInfo { dev, source, mountpoint, .. } = mounted;
        let mut place =
            Self { dev, source, mountpoint, shared: request.shared.is_some(), dir: None, released: false, elsewhere: BTreeSet::new() };
        if let Some(name) = &request.shared {
            // Who asked for the mount holds the lock.
            let dir = RunDir::named(&name.to_string_lossy())?;
            let listener = Listener::bind(&dir.socket())?;
            place.dir = Some(dir);
            return Ok((place, Some(listener)));
        }
        // Without it the mount works, it is only harder to find.
        match settle_direct(dev) {
            Ok((dir, listener)) => {
                place.dir = Some(dir);
                Ok((place, Some(listener)))
            }
            Err(error) => {
                tracing::warn!("`lxcri-fs ps` will not show this mount: {}", chain(&error));
                Ok((place, None))
            }
        }
    }

    pub(super) fn dev(&self) -> (u32, u32) {
        self.dev
    }

    /// A mount of a shared file system, attached nowhere.
    pub(super) fn clone_mount(&self) -> Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(CWD, &self.mountpoint, flags).map_err(Error::io("making a bind mount of", &self.mountpoint))
    }

    /// A process is about to attach the mount in its namespace.
    pub(super) fn is_wanted_by(&mut self, pid: Option<u32>) {
        let namespace = pid.and_then(namespace::of_process);
        let own = namespace::of_process(std::process::id());
        self.elsewhere.extend(namespace.filter(|_| namespace != own));
    }

    /// Whether it is seen in other namespaces than the keeper's.
    pub(super) fn is_elsewhere(&self) -> bool {
        !self.elsewhere.is_empty()
    }

    /// Whether users see the file system anywhere: mounted, or as the lower directory of an overlay.
    pub(super) fn is_used(&mut self) -> Result<bool> {
        let seen = |mounts: Vec<MountInfo>| mounts.iter().any(|m| self.is_seen(m) || self.is_lower_of(m));
        if seen(mountinfo::all()?) {
            return Ok(true);
        }
        let used_in = |namespace: &u64| {
            let process = namespace::some_process_in(*namespace)?;
            mountinfo::of_process(&process).ok()
        };
        let elsewhere: BTreeSet<u64> = self.elsewhere.iter().copied().filter(|ns| used_in(ns).is_some_and(seen)).collect();
        self.elsewhere = elsewhere;
        Ok(self.is_elsewhere())
    }

    fn is_lower_of(&self, mount: &MountInfo) -> bool {
        self.shared && (users::is_over(mount, self.dev) || users::has_lower(mount, &self.mountpoint))
    }

    /// The device alone would not do: once the file system is gone, another may have it.
    fn is_seen(&self, mount: &MountInfo) -> bool {
        mount.dev == self.dev && mount.is_ours() && mount.source == self.source && !(self.shared && mount.mountpoint == self.mountpoint)
    }

    /// Unmounts what users see, unless one of them (but `own`) uses it.
    pub(super) fn unmount_idle(&self, own: &[u32]) -> Result<()> {
        let users = users::of(Used::Device(self.dev), own);
        if !users.is_empty() {
            return Err(Error::Busy { path: self.mountpoint.clone(), users });
        }
        for mount in mountinfo::all()?.iter().rev().filter(|m| self.is_seen(m)) {
            mount::unmount(&MountPoint::of(mount)?, Unmount::default())?;
        }
        Ok(())
    }

    /// Whether new users start a keeper of their own.
    pub(super) fn is_released(&self) -> bool {
        self.released
    }

    /// Makes way for another keeper of the same image, unless somebody is just coming: takes the hidden mount away, and keeps listening under
    /// another name. Whether it was done.
    pub(super) fn release(&mut self) -> Result<bool> {
        if let Some(dir) = self.dir.take_if(|_| self.shared) {
            let Some(locked) = dir.try_lock()? else {
                self.dir = Some(dir);
                return Ok(false);
            };
            self.dir = Some(locked.retire()?);
        }
        self.released = true;
        Ok(true)
    }

    /// Has the kernel answer all requests with an error, as nobody else will any more, and makes way for another keeper. What users see stays.
    pub(super) fn disconnect(&mut self) -> Result<()> {
        if self.shared {
            let _ = self.unmount(Unmount { lazy: false, force: true });
        }
        self.release().map(drop)
    }

    /// Takes everything away, also from users: the file system does not answer.
    pub(super) fn abandon(&mut self) {
        let _ = self.unmount(Unmount { lazy: true, force: true });
        self.leave();
    }

    fn unmount(&self, how: Unmount) -> Result<()> {
        mount::unmount(&MountPoint::open(&self.mountpoint)?, how)
    }

    /// Removes what is left under /run.
    pub(super) fn leave(&mut self) {
        let Some(dir) = self.dir.take() else { return };
        let result = match dir.try_lock() {
            Ok(Some(locked)) => locked.remove(),
            // Whoever has it locked found nobody listening and clears it away.
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::warn!("{}", chain(&error));
        }
    }
}

fn settle_direct(dev: (u32, u32)) -> Result<(RunDir, Listener)> {
    let dir = RunDir::named(&direct_name(dev))?;
    let locked = dir.lock()?;
    // Left by a keeper that was killed.
    locked.clear()?;
    let listener = Listener::bind(&dir.socket())?;
    Ok((dir, listener))
}
