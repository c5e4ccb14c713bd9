//! Finds out whether mounts answer.
//!
//! mountinfo shows what is mounted, but not whether it is served. A process that asks a file system
//! whose worker hangs may hang too, and cannot be killed then. A separate process therefore asks,
//! and nothing waits for its end.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, statat};
use rustix::io::Errno;
use serde::Serialize;

use super::error::Result;
use super::mountpoint::MountPoint;
use super::rundir;
use crate::error::Io;
use crate::sys::mountinfo::{self, MountInfo};
use crate::sys::users;

/// This program, even if its file has been replaced or removed.
const SELF: &str = "/proc/self/exe";
/// The hidden command that runs [`main`].
pub const COMMAND: &str = "ask-mounts";
/// How long all mounts together may take to answer.
pub const LIMIT: Duration = Duration::from_secs(5);

/// What a mount answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It answers.
    Serving,
    /// No process serves it any more.
    Dead,
    /// It did not answer in time.
    Silent,
    /// It could not be asked, because it belongs to another user or another mount covers it.
    Unknown,
}

/// Asks the mounts with these numbers.
///
/// # Errors
/// [`Io`] if the process that asks cannot be started.
pub fn ask(mounts: &[u32]) -> Result<HashMap<u32, Answer>> {
    if mounts.is_empty() {
        return Ok(HashMap::new());
    }
    let mut asker = Command::new(SELF)
        .arg0("lxcri-fs")
        .arg(COMMAND)
        .args(mounts.iter().map(u32::to_string))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(Io::doing("starting a process that asks mounts"))?;
    let said = listen(&mut asker);
    // If it cannot be killed, it ends when the mount answers or is unmounted by force.
    let _ = asker.kill();
    let mut answers: HashMap<u32, Answer> = mounts.iter().map(|id| (*id, Answer::Silent)).collect();
    for line in said?.lines() {
        if let Some((id, errno)) = line.split_once(' ')
            && let (Ok(id), Ok(errno)) = (id.parse(), errno.parse())
        {
            answers.insert(id, meaning(errno));
        }
    }
    Ok(answers)
}

/// Reads the output of an asking process until it ends, or until the time is up.
fn listen(asker: &mut Child) -> Result<String> {
    let failed = "listening to a process that asks mounts";
    let Some(mut pipe) = asker.stdout.take() else {
        return Ok(String::new());
    };
    let (deadline, mut said) = (Instant::now() + LIMIT, Vec::new());
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(
            &mut [PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)],
            Some(&left),
        ) {
            Ok(0) => break,
            Err(Errno::INTR) => continue,
            other => other.map_err(Io::doing(failed))?,
        };
        let mut part = [0; 4096];
        match pipe.read(&mut part).map_err(Io::doing(failed))? {
            0 => {
                let _ = asker.wait();
                break;
            }
            len => said.extend_from_slice(&part[..len]),
        }
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}

fn meaning(errno: i32) -> Answer {
    match Errno::from_raw_os_error(errno) {
        // The errors of the kernel for a connection that was closed or aborted.
        Errno::NOTCONN | Errno::CONNABORTED => Answer::Dead,
        Errno::ACCESS | Errno::PERM | Errno::SRCH => Answer::Unknown,
        // Found, not found, or damaged: a worker answered.
        _ => Answer::Serving,
    }
}

/// The main function of the process that asks mounts: prints the number of each mount with the
/// number of its error, as soon as it answers.
///
/// # Errors
/// [`Io`] when the mounts cannot be read.
pub fn main(ids: &[u32]) -> Result<()> {
    users::only_look();
    let all = mountinfo::all()?;
    let mounts: Vec<&MountInfo> = all.iter().filter(|m| ids.contains(&m.id)).collect();
    let say = |id: u32, errno: Errno| {
        let line = format!("{id} {}\n", errno.raw_os_error());
        #[allow(clippy::disallowed_methods)] // Numbers, for the process that started this one.
        drop(std::io::stdout().lock().write_all(line.as_bytes()));
    };
    for id in ids.iter().filter(|id| !mounts.iter().any(|m| m.id == **id)) {
        say(*id, Errno::SRCH);
    }
    std::thread::scope(|scope| {
        for mount in mounts {
            // The kernel itself knows the names of an EROFS: what serves its bytes is asked.
            let dev = mount.overlay().map_or(mount.dev, |overlay| overlay.lower);
            let asked = rundir::devices_of(&all, dev).unwrap_or(mount);
            scope.spawn(move || say(mount.id, look(asked)));
        }
    });
    Ok(())
}

/// Looks up a name that does not exist, which no cache knows; an overlay passes it on to its lower
/// mount.
fn look(mount: &MountInfo) -> Errno {
    // Another mount covers it.
    let Ok(root) = MountPoint::of(mount).and_then(|at| at.directory()) else {
        return Errno::SRCH;
    };
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos());
    let name = format!(".lxcri-fs-{}-{now}", std::process::id());
    statat(&root, name, AtFlags::SYMLINK_NOFOLLOW)
        .err()
        .unwrap_or(Errno::NOENT)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn errors_mean_that_somebody_looked_or_that_nobody_is_there() {
        let answers = [
            Errno::NOENT,
            Errno::IO,
            Errno::NOTCONN,
            Errno::CONNABORTED,
            Errno::ACCESS,
        ]
        .map(|e| meaning(e.raw_os_error()));
        assert_eq!(
            answers,
            [
                Answer::Serving,
                Answer::Serving,
                Answer::Dead,
                Answer::Dead,
                Answer::Unknown
            ]
        );
        let proc = mountinfo::at(std::path::Path::new("/proc"))
            .unwrap()
            .unwrap();
        assert_eq!(meaning(look(&proc).raw_os_error()), Answer::Serving);
    }
}
