//! Unmounting as a command does it: only what is ours, and until nothing of it is left.

use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::{Error, Result};
use super::mount::{self, Unmount};
use super::{mountinfo, state, users};

/// How long a keeper may take to end once its mount is gone.
const LIMIT: Duration = Duration::from_secs(10);

/// Unmounts what is mounted at `mountpoint` and waits until its processes are gone. Whether there was something.
///
/// # Errors
/// [`Error::Foreign`] when it is not ours, [`Error::Busy`] with its users, [`Error::Io`], [`Error::Timeout`].
pub fn unmount(mountpoint: &Path, how: Unmount) -> Result<bool> {
    let Some(mounted) = mountinfo::at(mountpoint)? else { return Ok(false) };
    if !mounted.is_ours() {
        return Err(Error::Foreign { path: mountpoint.to_owned(), fs_type: mounted.fs_type });
    }
    let keeper = state::keepers().unwrap_or_default().into_iter().find(|k| k.dev == mounted.dev);
    // A number may be given to another process once its own is gone; a descriptor is not.
    let pidfd = keeper.as_ref().and_then(|k| i32::try_from(k.pid).ok()).and_then(Pid::from_raw);
    let pidfd = pidfd.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    match mount::unmount(mountpoint, how) {
        Ok(()) => {}
        Err(Error::Busy { path, .. }) => {
            let own: Vec<u32> = keeper.iter().map(|k| k.pid).chain([std::process::id()]).collect();
            return Err(Error::Busy { path, users: users::of_device(mounted.dev, &own) });
        }
        // Somebody was quicker.
        Err(_) if mountinfo::at(mountpoint)?.is_none() => return Ok(false),
        Err(error) => return Err(error),
    }
    let elsewhere = mountinfo::all()?.iter().any(|m| m.dev == mounted.dev);
    if let Some(pidfd) = pidfd.filter(|_| !how.lazy && !elsewhere) {
        let limit = Timespec { tv_sec: i64::try_from(LIMIT.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).map_err(Error::system("waiting for the keeper"))?;
        if ended == 0 {
            return Err(Error::Timeout { peer: "keeper", seconds: LIMIT.as_secs() });
        }
    }
    Ok(true)
}
