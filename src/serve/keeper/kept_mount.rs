//! Where a keeper's file system is mounted, and whether it is used there.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::CWD;
use rustix::mount::{MountPropagationFlags, OpenTreeFlags, mount_change, open_tree};
use serde::{Deserialize, Serialize};

use super::super::channel::Listener;
use super::super::engine::Engine;
use super::super::error::{Error, Result};
use super::super::fuse_mount::{self, Unmount};
use super::super::mountpoint::MountPoint;
use super::super::protocol::MountRequest;
use super::super::rundir::{Locked, RunDir, direct_name};
use super::super::unmount::unmount_unless_used;
use super::machine;
use crate::error::{Io, chain};
use crate::sys::directory::link;
use crate::sys::idmap::in_user_namespace;
use crate::sys::mountinfo::{self, MountInfo};
use crate::sys::namespace;
use crate::sys::users::{self, Used};

/// A mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in super::super) struct KeptMount {
    dev: (u32, u32),
    /// The source in mountinfo.
    #[serde(with = "crate::fs::paths::path")]
    source: PathBuf,
    /// Where the file system itself is mounted.
    #[serde(with = "crate::fs::paths::path")]
    mountpoint: PathBuf,
    /// Whether that place is hidden, and users see bind mounts of it.
    shared: bool,
    /// What serves it.
    #[serde(default)]
    engine: Engine,
    /// The keeper's directory; `None` if it could not be created.
    dir: Option<RunDir>,
    /// Whether new users start a keeper of their own.
    released: bool,
    /// Numbers of other mount namespaces where it may be visible, each with a process in it.
    elsewhere: BTreeMap<u64, u32>,
    /// The mount namespace of this process, if it is not the first process's: the keeper must not
    /// be the last process in it.
    own: Option<OwnNamespace>,
}

/// A mount namespace that the keeper is in, and in which it must not be alone.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct OwnNamespace {
    number: u64,
    /// Another process that is in it.
    witness: Option<u32>,
}

impl KeptMount {
    /// Sets up the place of a new mount, and the socket of its keeper.
    pub(super) fn settle(
        request: &MountRequest,
        mounted: MountInfo,
    ) -> Result<(Self, Option<Listener>)> {
        let engine = if mounted.is_split {
            Engine::Split
        } else {
            Engine::Fuse
        };
        let MountInfo {
            dev,
            source,
            mountpoint,
            ..
        } = mounted;
        let number = namespace::of_process(std::process::id());
        // Users may not ask for process 1's. They have mount namespaces of their own in user
        // namespaces only; in any other, they could not see who else is there, as root can.
        let is_own = |number: &u64| match namespace::is_of_init(*number) {
            Some(is_of_init) => !is_of_init,
            None => rustix::process::geteuid().is_root() || in_user_namespace(),
        };
        let own = number.filter(is_own).map(|number| OwnNamespace {
            number,
            witness: None,
        });
        let shared = request.shared.is_some();
        let mut place = Self {
            dev,
            source,
            mountpoint,
            shared,
            engine,
            dir: None,
            released: false,
            elsewhere: BTreeMap::new(),
            own,
        };
        if let Some(name) = &request.shared {
            // The process that requested the mount holds the lock.
            let dir = RunDir::named(&name.to_string_lossy())?;
            let listener = Listener::bind(&dir.socket())?;
            place.dir = Some(dir);
            return Ok((place, Some(listener)));
        }
        // Without it, the mount works, but commands do not find its keeper.
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

    pub(super) fn engine(&self) -> Engine {
        self.engine
    }

    /// A detached mount of a shared file system.
    pub(super) fn clone_mount(&self) -> Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = open_tree(CWD, &self.mountpoint, flags);
        Ok(mount.map_err(Io::at("making a bind mount of", &self.mountpoint))?)
    }

    /// A process is about to attach the mount in its namespace.
    pub(super) fn is_wanted_by(&mut self, pid: Option<u32>) {
        let namespace = pid.and_then(namespace::of_process);
        let own = namespace::of_process(std::process::id());
        self.elsewhere
            .extend(namespace.filter(|_| namespace != own).zip(pid));
    }

    /// Keeps the mount even if it is the last user of the namespace, for a keeper in the
    /// foreground.
    pub(super) fn stay_alone(&mut self) {
        self.own = None;
    }

    /// When to check its use again, if there may be no event.
    pub(super) fn look_again(&self) -> Option<Duration> {
        let elsewhere = (!self.elsewhere.is_empty()).then_some(machine::LONG_PAUSE);
        self.own.map(|_| machine::PAUSE).or(elsewhere)
    }

    /// Whether only these processes are left in the keeper's mount namespace.
    fn is_alone(&mut self, processes: &[u32]) -> bool {
        let Some(own) = &mut self.own else {
            return false;
        };
        own.witness = namespace::some_process_in(own.number, own.witness, processes);
        own.witness.is_none() && !namespace::is_held(own.number)
    }

    /// Whether the file system is visible to users anywhere: mounted, or as the lower directory of
    /// an overlay. `processes` are the keeper's own.
    pub(super) fn is_used(&mut self, processes: &[u32]) -> Result<bool> {
        let seen = |mounts: Vec<MountInfo>| {
            mounts
                .iter()
                .any(|m| self.is_seen(m) || self.is_lower_of(m))
        };
        if seen(mountinfo::all()?) && !self.is_alone(processes) {
            return Ok(true);
        }
        let mut elsewhere = std::mem::take(&mut self.elsewhere);
        elsewhere.retain(|namespace, witness| {
            let Some(process) = namespace::some_process_in(*namespace, Some(*witness), processes)
            else {
                return false;
            };
            *witness = process;
            let mounts = mountinfo::of_process(Path::new(&format!("/proc/{process}")));
            mounts.is_ok_and(|mounts| {
                mounts
                    .iter()
                    .any(|m| self.is_seen(m) || self.is_lower_of(m))
            })
        });
        self.elsewhere = elsewhere;
        Ok(!self.elsewhere.is_empty())
    }

    fn is_lower_of(&self, mount: &MountInfo) -> bool {
        self.shared
            && (users::is_over(mount, self.dev) || users::has_lower(mount, &self.mountpoint))
    }

    /// Whether a mount shows the file system. The device number alone is not enough: it may be
    /// reused.
    fn is_seen(&self, mount: &MountInfo) -> bool {
        mount.dev == self.dev
            && mount.is_ours()
            && mount.source == self.source
            && !(self.shared && mount.mountpoint == self.mountpoint)
    }

    /// Unmounts what users see, unless a process other than `own` uses it.
    pub(super) fn unmount_idle(&self, own: &[u32]) -> Result<()> {
        let users = || users::of(Used::Device(self.dev), own);
        let found = users();
        if !found.is_empty() {
            return Err(Error::Busy {
                path: self.mountpoint.clone(),
                users: found,
            });
        }
        for mount in mountinfo::all()?.iter().rev().filter(|m| self.is_seen(m)) {
            unmount_unless_used(&MountPoint::of(mount)?, Unmount::default(), users)?;
        }
        Ok(())
    }

    /// Makes way for another keeper of the same image, unless a new user is just coming: unmounts
    /// the hidden mount, and keeps listening under another name. Returns whether it has made way,
    /// now or before.
    pub(super) fn release(&mut self, processes: &[u32]) -> Result<bool> {
        if self.released {
            return Ok(true);
        }
        if let Some(dir) = self.dir.take_if(|_| self.shared) {
            let Some(locked) = dir.try_lock()? else {
                self.dir = Some(dir);
                return Ok(false);
            };
            self.dir = Some(locked.retire()?);
        }
        self.released = true;
        if self.is_alone(processes) {
            self.take_away()?;
        }
        Ok(true)
    }

    /// Unmounts the hidden mount only in this process's mount namespace, which it keeps alive.
    fn take_away(&self) -> Result<()> {
        for mount in mountinfo::all()?.iter().rev().filter(|m| self.is_seen(m)) {
            let at = MountPoint::of(mount)?;
            // It may have propagated to other namespaces.
            let _ = mount_change(
                link(at.directory()?.as_fd()),
                MountPropagationFlags::PRIVATE,
            );
            fuse_mount::unmount(
                &at,
                Unmount {
                    lazy: true,
                    force: false,
                },
            )?;
        }
        Ok(())
    }

    /// Makes the kernel answer all requests with an error, and makes way for another keeper. The
    /// mounts of users stay.
    pub(super) fn disconnect(&mut self, processes: &[u32]) -> Result<()> {
        if self.shared {
            let how = Unmount {
                lazy: false,
                force: true,
            };
            let _ = Self::unmount(&self.connection(), how);
        }
        self.release(processes).map(drop)
    }

    /// Unmounts everything, also for users, because the file system does not answer or is unknown.
    /// `locked` is its directory.
    pub(super) fn abandon(&mut self, locked: Option<Locked>) {
        let how = Unmount {
            lazy: true,
            force: true,
        };
        // Something may have been mounted over it meanwhile.
        if mountinfo::at(&self.mountpoint)
            .is_ok_and(|mounted| mounted.is_some_and(|m| m.dev == self.dev))
        {
            let _ = Self::unmount(&self.mountpoint, how);
        }
        if self.engine == Engine::Split {
            let _ = Self::unmount(&self.connection(), how);
        }
        match locked {
            Some(locked) => {
                self.dir = None;
                if let Err(error) = locked.remove() {
                    tracing::warn!("{}", chain(&error));
                }
            }
            None => self.leave(),
        }
    }

    /// Where the FUSE file system is mounted. To unmount it by force closes the connection.
    fn connection(&self) -> PathBuf {
        match (self.engine, &self.dir) {
            (Engine::Split, Some(dir)) => dir.devices(),
            _ => self.mountpoint.clone(),
        }
    }

    fn unmount(path: &Path, how: Unmount) -> Result<()> {
        fuse_mount::unmount(&MountPoint::open(path)?, how)
    }

    /// Removes the remains under /run.
    pub(super) fn leave(&mut self) {
        let Some(dir) = self.dir.take() else { return };
        let result = match dir.try_lock() {
            Ok(Some(locked)) => locked.remove(),
            // The process that holds the lock will find no keeper, and clean up.
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
    // Remains of a killed keeper.
    locked.clear()?;
    let listener = Listener::bind(&dir.socket())?;
    Ok((dir, listener))
}
