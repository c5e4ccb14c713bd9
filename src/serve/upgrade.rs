//! Live mounts go on as this version of the program.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::{Error, Result};
use super::overview::Mounted;
use super::protocol::VERSION;

/// How long a keeper may take to have a worker again.
const LIMIT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(10);
/// A keeper goes on as it is when its worker does not end in time, because it waits for the kernel.
const TRIES: u32 = 5;

/// Has the keeper of a mount go on as this program. Its users wait for a moment, and see no error.
///
/// # Errors
/// [`Error::NoResend`] when the kernel cannot, [`Error::Upgrade`] when the keeper cannot; nothing
/// is done then.  [`Error::Timeout`] when it does not.
pub fn upgrade(mounted: &Mounted) -> Result<()> {
    let before = &mounted.status;
    let refused = || Error::Upgrade {
        image: PathBuf::from(before.images.last().cloned().unwrap_or_default()),
        version: before.version.clone(),
    };
    if before.protocol != VERSION || before.failed.is_some() {
        return Err(refused());
    }
    if !before.replaceable {
        return Err(Error::NoResend);
    }
    let own = Path::new("/proc/self/exe");
    let program = File::open(own).map_err(Error::io("opening", own))?;
    for _ in 0..TRIES {
        mounted.dir.upgrade(program.as_fd())?;
        if served_again(mounted)? > before.upgrades {
            return Ok(());
        }
    }
    Err(refused())
}

/// Waits until a keeper has a worker; how often its program was replaced by then.
fn served_again(mounted: &Mounted) -> Result<u64> {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        // While it is being replaced, nobody answers.
        if let Ok(Some(now)) = mounted.dir.status()
            && now.worker.is_some()
        {
            return Ok(now.upgrades);
        }
        std::thread::sleep(PAUSE);
    }
    Err(Error::Timeout {
        peer: "keeper",
        seconds: LIMIT.as_secs(),
    })
}
