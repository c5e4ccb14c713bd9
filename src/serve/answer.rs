//! Whether what is mounted answers.
//!
//! mountinfo tells what is mounted, and not whether anybody serves it. Who asks a file system whose
//! worker hangs may hang with it, beyond being killed. So a process of its own asks, and nobody
//! waits for its end.

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

use super::error::{Error, Result};
use super::mountpoint::MountPoint;
use crate::sys::mountinfo::{self, MountInfo};
use crate::sys::users;

/// This program, also when its file has been replaced or removed.
const SELF: &str = "/proc/self/exe";
/// The hidden command that [`main`] is.
pub const COMMAND: &str = "ask-mounts";
/// How long mounts may take to answer, all at a time.
pub const LIMIT: Duration = Duration::from_secs(5);

/// What a mount answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Something.
    Serving,
    /// That nobody serves it any more.
    Dead,
    /// Nothing, for as long as was waited.
    Silent,
    /// It could not be asked: it is another user's, or covered by another mount.
    Unknown,
}

/// Asks these mounts, by their numbers.
///
/// # Errors
/// [`Error::Io`] when nobody can be sent to ask.
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
        .map_err(Error::system("starting a process that asks mounts"))?;
    let said = listen(&mut asker);
    // It may be beyond that. Then it ends when it is answered, or when this process has and the
    // mount is forced to.
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

/// What an asker says until it ends, or until nobody waits any longer.
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
            other => other.map_err(Error::system(failed))?,
        };
        let mut part = [0; 4096];
        match pipe.read(&mut part).map_err(Error::system(failed))? {
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
        // What the kernel says for a connection that is closed, or was forced to.
        Errno::NOTCONN | Errno::CONNABORTED => Answer::Dead,
        Errno::ACCESS | Errno::PERM | Errno::SRCH => Answer::Unknown,
        // It is there, or it is not, or the image is damaged: somebody looked.
        _ => Answer::Serving,
    }
}

/// The life of a process that asks mounts: says the number of each with that of the error that it
/// answered, as soon as it did.
///
/// # Errors
/// [`Error::Io`] when the mounts cannot be read.
pub fn main(ids: &[u32]) -> Result<()> {
    users::only_look();
    let mounts: Vec<MountInfo> = mountinfo::all()?
        .into_iter()
        .filter(|m| ids.contains(&m.id))
        .collect();
    let say = |id: u32, errno: Errno| {
        let line = format!("{id} {}\n", errno.raw_os_error());
        #[allow(clippy::disallowed_methods)] // Numbers, for the process that started this one.
        drop(std::io::stdout().lock().write_all(line.as_bytes()));
    };
    for id in ids.iter().filter(|id| !mounts.iter().any(|m| m.id == **id)) {
        say(*id, Errno::SRCH);
    }
    std::thread::scope(|scope| {
        for mount in &mounts {
            scope.spawn(move || say(mount.id, look(mount)));
        }
    });
    Ok(())
}

/// Looks for a name that nothing has, which no cache knows: an overlay asks what is below it, too.
fn look(mount: &MountInfo) -> Errno {
    // Covered by another mount, it is seen by nobody.
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
