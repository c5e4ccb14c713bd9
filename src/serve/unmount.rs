//! Unmounting as a command does it: only what is ours, and until nothing of it is left.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::{Error, Result};
use super::mount::{self, Unmount};
use super::mountinfo;
use super::protocol::{KeeperReply, KeeperRequest};
use super::rundir::RunDir;
use super::users::{self, Used};

/// How long a keeper may take to end once nobody sees its mount.
const LIMIT: Duration = Duration::from_secs(5);
/// How long a keeper may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a mount that is busy without any users is tried again, and how soon.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(25);

/// What became of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmounted {
    /// There was none.
    Nothing,
    /// It is gone, and with it its processes unless others use them.
    Done,
    /// It is out of sight, and in use somewhere: lazily unmounted, or in another mount namespace.
    StillUsed,
}

/// Unmounts what is mounted at `mountpoint`, and waits for its processes to end when it was their last user.
///
/// # Errors
/// [`Error::Foreign`] when it is not ours, [`Error::Busy`] with its users, [`Error::Io`].
pub fn unmount(mountpoint: &Path, how: Unmount) -> Result<Unmounted> {
    let mounts = mountinfo::all()?;
    let Some(mounted) = mounts.iter().rfind(|m| m.mountpoint == mountpoint) else { return Ok(Unmounted::Nothing) };
    if !mounted.is_ours() {
        return Err(Error::Foreign { path: mountpoint.to_owned(), fs_type: mounted.fs_type.clone() });
    }
    // The directory has another name once the mount is gone.
    let dir = RunDir::of_mount(&mounts, mounted.overlay().map_or(mounted.dev, |overlay| overlay.lower))?;
    let keeper = dir.connect().ok().flatten();
    let mut tries = TRIES;
    loop {
        match mount::unmount(mountpoint, how) {
            Ok(()) => break,
            Err(Error::Busy { path, .. }) => {
                let status = dir.status().ok().flatten();
                let own = status.iter().flat_map(|s| [Some(s.pid), s.worker]).flatten().chain([std::process::id()]);
                let users = users::of(Used::Mount(mounted.id), &own.collect::<Vec<_>>());
                tries -= 1;
                if !users.is_empty() || tries == 0 {
                    return Err(Error::Busy { path, users });
                }
                // Somebody has just ended, or only looked.
                std::thread::sleep(PAUSE);
            }
            // Somebody was quicker.
            Err(_) if mountinfo::at(mountpoint)?.is_none() => return Ok(Unmounted::Nothing),
            Err(error) => return Err(error),
        }
    }
    let Some(keeper) = keeper else { return Ok(Unmounted::Done) };
    let pid = keeper.peer_pid();
    // A number may be given to another process once its own is gone; a descriptor is not.
    let pidfd = pid.and_then(|pid| Pid::from_raw(pid.cast_signed())).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let look = keeper.send(&KeeperRequest::Look, &[]).and_then(|()| keeper.expect(PATIENCE));
    let (Ok((KeeperReply::Used(false), _)), Some(pidfd)) = (look, pidfd) else { return Ok(Unmounted::Done) };
    let limit = if how.lazy { Duration::ZERO } else { LIMIT };
    let limit = Timespec { tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).map_err(Error::system("waiting for the keeper"))?;
    Ok(if ended == 0 { Unmounted::StillUsed } else { Unmounted::Done })
}

/// A directory as mountinfo has it. A mount point itself is not looked at: it may belong to a daemon that is dead.
pub fn mountpoint(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let is_mounted = |path: &Path| mountinfo::at(path).is_ok_and(|mounted| mounted.is_some());
    if is_mounted(&absolute) {
        return absolute;
    }
    if let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name())
        && let Ok(parent) = parent.canonicalize()
        && is_mounted(&parent.join(name))
    {
        return parent.join(name);
    }
    absolute.canonicalize().unwrap_or(absolute)
}
