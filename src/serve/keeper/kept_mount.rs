//! Where a keeper's file system is mounted, and who uses it there.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::CWD;
use rustix::mount::{MountPropagationFlags, OpenTreeFlags, mount_change, open_tree};
use serde::{Deserialize, Serialize};

use super::super::channel::Listener;
use super::super::error::{Error, Result};
use super::super::fuse_mount::{self, Unmount};
use super::super::mountpoint::{MountPoint, link};
use super::super::protocol::MountRequest;
use super::super::rundir::{Locked, RunDir, direct_name};
use super::super::unmount::unmount_unless_used;
use super::machine;
use crate::error::chain;
use crate::sys::mountinfo::{self, MountInfo};
use crate::sys::namespace;
use crate::sys::users::{self, Used};

/// A mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in super::super) struct KeptMount {
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
    /// Numbers of other mount namespaces where it may be seen, each with a process that is in it.
    elsewhere: BTreeMap<u64, u32>,
    /// The mount namespace of this process, when it is not the first one's: nobody may be left in
    /// it who sees anything.
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
    /// The place of a mount that was just made, and the socket of its keeper.
    pub(super) fn settle(
        request: &MountRequest,
        mounted: MountInfo,
    ) -> Result<(Self, Option<Listener>)> {
        let MountInfo {
            dev,
            source,
            mountpoint,
            ..
        } = mounted;
        let number = namespace::of_process(std::process::id());
        let own = number
            .filter(|number| namespace::of_process(1) != Some(*number))
            .map(|number| OwnNamespace {
                number,
                witness: None,
            });
        let shared = request.shared.is_some();
        let mut place = Self {
            dev,
            source,
            mountpoint,
            shared,
            dir: None,
            released: false,
            elsewhere: BTreeMap::new(),
            own,
        };
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
        open_tree(CWD, &self.mountpoint, flags)
            .map_err(Error::io("making a bind mount of", &self.mountpoint))
    }

    /// A process is about to attach the mount in its namespace.
    pub(super) fn is_wanted_by(&mut self, pid: Option<u32>) {
        let namespace = pid.and_then(namespace::of_process);
        let own = namespace::of_process(std::process::id());
        self.elsewhere
            .extend(namespace.filter(|_| namespace != own).zip(pid));
    }

    /// The mount is what a process in the foreground is there for, whoever sees it.
    pub(super) fn stay_alone(&mut self) {
        self.own = None;
    }

    /// How soon to look again whether it is used, when no event may tell.
    pub(super) fn look_again(&self) -> Option<Duration> {
        let elsewhere = (!self.elsewhere.is_empty()).then_some(machine::LONG_PAUSE);
        self.own.map(|_| machine::PAUSE).or(elsewhere)
    }

    /// Whether nobody but these processes is left in the keeper's mount namespace.
    fn is_alone(&mut self, processes: &[u32]) -> bool {
        let Some(own) = &mut self.own else {
            return false;
        };
        own.witness = namespace::some_process_in(own.number, own.witness, processes);
        own.witness.is_none() && !namespace::is_held(own.number)
    }

    /// Whether users see the file system anywhere: mounted, or as the lower directory of an
    /// overlay. `processes` are the keeper's own.
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

    /// The device alone would not do: once the file system is gone, another may have it.
    fn is_seen(&self, mount: &MountInfo) -> bool {
        mount.dev == self.dev
            && mount.is_ours()
            && mount.source == self.source
            && !(self.shared && mount.mountpoint == self.mountpoint)
    }

    /// Unmounts what users see, unless one of them (but `own`) uses it.
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

    /// Makes way for another keeper of the same image, unless somebody is just coming: takes the
    /// hidden mount away, and keeps listening under another name. Whether it was done, or had been
    /// before.
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

    /// Unmounts what only this process sees in its mount namespace, which it keeps alive, and
    /// nowhere else.
    fn take_away(&self) -> Result<()> {
        for mount in mountinfo::all()?.iter().rev().filter(|m| self.is_seen(m)) {
            let at = MountPoint::of(mount)?;
            // Others may see it where it came to from here.
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

    /// Has the kernel answer all requests with an error, as nobody else will any more, and makes
    /// way for another keeper. What users see stays.
    pub(super) fn disconnect(&mut self, processes: &[u32]) -> Result<()> {
        if self.shared {
            let _ = self.unmount(Unmount {
                lazy: false,
                force: true,
            });
        }
        self.release(processes).map(drop)
    }

    /// Takes everything away, also from users: the file system does not answer, or nobody knows of
    /// it. `locked` is its directory.
    pub(super) fn abandon(&mut self, locked: Option<Locked>) {
        // Somebody may have mounted something over it meanwhile.
        if mountinfo::at(&self.mountpoint)
            .is_ok_and(|mounted| mounted.is_some_and(|m| m.dev == self.dev))
        {
            let _ = self.unmount(Unmount {
                lazy: true,
                force: true,
            });
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

    fn unmount(&self, how: Unmount) -> Result<()> {
        fuse_mount::unmount(&MountPoint::open(&self.mountpoint)?, how)
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
