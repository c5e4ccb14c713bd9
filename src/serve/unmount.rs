//! Unmounts for commands: only mounts of lxcri-fs, and completely.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::{Error, Result};
use super::fuse_mount::{self, Unmount};
use super::mountpoint::MountPoint;
use super::protocol::{KeeperReply, KeeperRequest};
use super::rundir::RunDir;
use crate::error::Io;
use crate::sys::mountinfo;
use crate::sys::users::{self, Used, User};

/// How long a keeper may take to end after its last mount.
const LIMIT: Duration = Duration::from_secs(20);
/// How long a keeper may take to answer: on a busy machine, others run before it.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often, and how soon, to retry a mount that is busy without visible users.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(25);

/// The result of unmounting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmounted {
    /// There was none.
    Nothing,
    /// It was unmounted, and its processes have ended, unless other mounts use them.
    Done,
    /// It is detached here and still in use: lazily unmounted, or mounted in another namespace.
    StillUsed,
}

/// Unmounts what is mounted at `mountpoint`, and waits for its processes to end, if it was their
/// last mount.
///
/// # Errors
/// [`Error::Foreign`] if it is not a mount of lxcri-fs, [`Error::Busy`] with its users,
/// [`Error::Io`].
pub fn unmount(mountpoint: &Path, how: Unmount) -> Result<Unmounted> {
    match MountPoint::open(mountpoint) {
        Ok(at) => unmount_at(&at, how),
        Err(Error::Io(e)) if e.kind() == ErrorKind::NotFound => Ok(Unmounted::Nothing),
        Err(error) => Err(error),
    }
}

/// Like [`unmount`], for a mount point that is open.
///
/// # Errors
/// As [`unmount`].
pub fn unmount_at(at: &MountPoint, how: Unmount) -> Result<Unmounted> {
    let limit = if how.lazy { Duration::ZERO } else { LIMIT };
    unmount_and_wait(at, how, limit)
}

/// Like [`unmount_at`], while the caller keeps the image mounted: nothing will end with this mount.
///
/// # Errors
/// As [`unmount`].
pub(crate) fn unmount_one_of(at: &MountPoint) -> Result<Unmounted> {
    unmount_and_wait(at, Unmount::default(), Duration::ZERO)
}

/// Unmounts, and waits for the keeper, if it has no other mount.
fn unmount_and_wait(at: &MountPoint, how: Unmount, limit: Duration) -> Result<Unmounted> {
    let Some(mounted) = at.mounted()? else {
        return Ok(Unmounted::Nothing);
    };
    if !mounted.is_ours() {
        return Err(Error::Foreign {
            path: at.path().to_owned(),
            fs_type: mounted.fs_type,
        });
    }
    // Found now, because the directory is renamed when the mount ends. Without a keeper, unmounting
    // works as well.
    let dir = RunDir::of_mount(
        &mountinfo::all()?,
        mounted
            .overlay()
            .map_or(mounted.dev, |overlay| overlay.lower),
    )
    .ok();
    let keeper = dir.as_ref().and_then(|dir| dir.connect().ok().flatten());
    if mounted.overlay().is_some() && !how.lazy && !how.force {
        // A container has it in its own mount namespace, so the kernel does not consider it busy
        // here.
        let users = users::of(Used::Device(mounted.dev), &[std::process::id()]);
        if !users.is_empty() {
            return Err(Error::Busy {
                path: at.path().to_owned(),
                users,
            });
        }
    }
    let users = || {
        let status = dir.as_ref().and_then(|dir| dir.status().ok().flatten());
        let own = status
            .iter()
            .flat_map(|s| [Some(s.pid), s.worker])
            .flatten()
            .chain([std::process::id()]);
        users::of(Used::Mount(mounted.id), &own.collect::<Vec<_>>())
    };
    match unmount_unless_used(at, how, users) {
        Ok(()) => {}
        Err(error @ Error::Busy { .. }) => return Err(error),
        // Another process was quicker.
        Err(_) if at.mounted()?.is_none() => return Ok(Unmounted::Nothing),
        Err(error) => return Err(error),
    }
    let Some(keeper) = keeper else {
        return Ok(Unmounted::Done);
    };
    let pid = keeper.peer_pid();
    // A process number can be reused after the process has ended; a descriptor cannot.
    let pidfd = pid
        .and_then(|pid| Pid::from_raw(pid.cast_signed()))
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let look = keeper
        .send(&KeeperRequest::Look, &[])
        .and_then(|()| keeper.expect(PATIENCE));
    let (Ok((KeeperReply::Used(false), _)), Some(pidfd)) = (look, pidfd) else {
        return Ok(Unmounted::Done);
    };
    let limit = Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit))
        .map_err(Io::doing("waiting for the keeper"))?;
    Ok(if ended == 0 {
        Unmounted::StillUsed
    } else {
        Unmounted::Done
    })
}

/// Unmounts a mount that has no users. The kernel also considers a mount busy whose last user has
/// just ended, or that a process only examines, so this retries.
pub(super) fn unmount_unless_used(
    at: &MountPoint,
    how: Unmount,
    users: impl Fn() -> Vec<User>,
) -> Result<()> {
    let mut tries = TRIES;
    loop {
        match fuse_mount::unmount(at, how) {
            Err(Error::Busy { path, .. }) => {
                let users = users();
                tries -= 1;
                if !users.is_empty() || tries == 0 {
                    return Err(Error::Busy { path, users });
                }
                std::thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
}

/// The path of a directory as in mountinfo. No request goes to the mount, which may be dead.
pub fn mountpoint(path: &Path) -> PathBuf {
    match MountPoint::open(path) {
        Ok(at) => at.path().to_owned(),
        Err(_) => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
    }
}
