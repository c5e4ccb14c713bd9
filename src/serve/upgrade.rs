//! Upgrades live mounts to this version of the program.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::{Error, Result};
use super::overview::Mounted;
use super::protocol::VERSION;
use crate::erofs::Layout;
use crate::error::Io;

/// How long a keeper may take to start a worker again.
const LIMIT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(10);
/// How often to try: a keeper continues unchanged if its worker does not end in time because it
/// waits for the kernel.
const TRIES: u32 = 5;

/// Makes the keeper of a mount continue as this program. Users of the mount wait for a moment, and
/// see no error.
///
/// # Errors
/// [`Error::NoResend`] if the kernel cannot, [`Error::Upgrade`] if the keeper cannot; nothing
/// changes then. [`Error::Timeout`] if it does not finish.
pub fn upgrade(mounted: &Mounted) -> Result<()> {
    let before = &mounted.status;
    let refused = || Error::Upgrade {
        image: PathBuf::from(before.images.last().cloned().unwrap_or_default()),
        version: before.version.clone(),
    };
    // Another layout would serve other bytes than those that the kernel has metadata of.
    let same_layout = matches!(before.layout, 0 | Layout::VERSION);
    if before.protocol != VERSION || !same_layout || before.failed.is_some() {
        return Err(refused());
    }
    if !before.replaceable {
        return Err(Error::NoResend);
    }
    let own = Path::new("/proc/self/exe");
    let program = File::open(own).map_err(Io::at("opening", own))?;
    for _ in 0..TRIES {
        mounted.dir.upgrade(program.as_fd())?;
        if served_again(mounted)? > before.upgrades {
            return Ok(());
        }
    }
    Err(refused())
}

/// Waits until a keeper has a worker. Returns how often its program has been replaced.
fn served_again(mounted: &Mounted) -> Result<u64> {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        // While the program is being replaced, it does not answer.
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
