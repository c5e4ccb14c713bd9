//! Stops, starts and checks LXC containers with LXC's own programs.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::error::{Error, Result};
use super::record::{ContainerRecord, Runtime};
use crate::error::Io;

/// Name of the log of the start after an update, in LXC's directory of the container.
const START_LOG: &str = "update.log";
/// Name of the file with what the check printed, likewise.
const CHECK_LOG: &str = "update-check.log";
/// How long to wait between two attempts of a check.
const PAUSE: Duration = Duration::from_millis(500);
/// How often to look whether a check has ended.
const POLL: Duration = Duration::from_millis(20);

/// An LXC container, as LXC's programs name it.
#[derive(Debug, Clone)]
pub struct Lxc {
    path: PathBuf,
    name: String,
}

impl Lxc {
    /// The container with this record; `None` if it is not LXC's.
    pub fn of(record: &ContainerRecord) -> Option<Self> {
        let Runtime::Lxc { dir, .. } = &record.runtime else {
            return None;
        };
        let path = dir.parent()?.to_owned();
        let name = dir.file_name()?.to_str()?.to_owned();
        Some(Self { path, name })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-P").arg(&self.path).arg("-n").arg(&self.name);
        command.stdin(Stdio::null());
        command
    }

    /// The log of the last start after an update, and the file with what the last check printed.
    pub fn logs(&self) -> [PathBuf; 2] {
        [START_LOG, CHECK_LOG].map(|name| self.path.join(&self.name).join(name))
    }

    /// Whether it runs.
    ///
    /// # Errors
    /// [`Error::Io`] if LXC's programs cannot be started.
    pub fn is_running(&self) -> Result<bool> {
        let output = self.command("lxc-info").args(["-s", "-H"]).output();
        let output = output.map_err(Io::at("starting", Path::new("lxc-info")))?;
        Ok(output.status.success() && output.stdout.trim_ascii() != b"STOPPED")
    }

    /// Stops it; LXC kills it after its own time-out.
    ///
    /// # Errors
    /// [`Error::Unfit`] if it still runs, [`Error::Io`].
    pub fn stop(&self) -> Result<()> {
        let mut command = self.command("lxc-stop");
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        let status = status.map_err(Io::at("starting", Path::new("lxc-stop")))?;
        match status.success() || !self.is_running()? {
            true => Ok(()),
            false => Err(self.failed("lxc-stop", status, None)),
        }
    }

    /// Starts it.
    ///
    /// # Errors
    /// [`Error::Unfit`] with the log if it does not start, [`Error::Io`].
    pub fn start(&self) -> Result<()> {
        let [log, _] = self.logs();
        // LXC appends.
        match std::fs::remove_file(&log) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Io::at("removing", &log)(e).into());
            }
            _ => {}
        }
        let mut command = self.command("lxc-start");
        command.args(["-d", "-l", "INFO", "-o"]).arg(&log);
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        let status = status.map_err(Io::at("starting", Path::new("lxc-start")))?;
        match status.success() {
            true => Ok(()),
            false => Err(self.failed("lxc-start", status, Some(&log))),
        }
    }

    /// Runs a command line of a shell inside it again and again until it succeeds.
    ///
    /// # Errors
    /// [`Error::Unfit`] with the logs if it has not succeeded within this time, [`Error::Io`].
    pub fn check(&self, line: &str, limit: Duration) -> Result<()> {
        let (start, [started, log]) = (Instant::now(), self.logs());
        loop {
            let succeeded = self.attempt(line, limit.saturating_sub(start.elapsed()), &log)?;
            if succeeded {
                return Ok(());
            }
            // Another attempt would have no time, and what this one said would be lost.
            if start.elapsed() + PAUSE >= limit {
                let (started, log) = (started.display(), log.display());
                return Err(Error::Unfit {
                    what: format!(
                        "the check did not succeed within {} s in {}",
                        limit.as_secs(),
                        self.name
                    ),
                    hint: Some(format!("what it said is in {log}, LXC's log in {started}")),
                });
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Runs the check once; what still runs at the limit is killed.
    fn attempt(&self, line: &str, limit: Duration, log: &Path) -> Result<bool> {
        let out = File::create(log).map_err(Io::at("writing", log))?;
        let err = out.try_clone().map_err(Io::at("writing", log))?;
        let mut command = self.command("lxc-attach");
        command.args(["--", "/bin/sh", "-c", line]);
        // A group of its own, which can be killed as a whole.
        command.stdout(out).stderr(err).process_group(0);
        let child = command.spawn();
        let mut child = child.map_err(Io::at("starting", Path::new("lxc-attach")))?;
        let start = Instant::now();
        loop {
            let ended = child
                .try_wait()
                .map_err(Io::doing("waiting for the check"))?;
            if let Some(status) = ended {
                return Ok(status.success());
            }
            if start.elapsed() >= limit {
                let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
                if let Some(group) = group {
                    let _ = kill_process_group(group, Signal::KILL);
                }
                child.wait().map_err(Io::doing("waiting for the check"))?;
                return Ok(false);
            }
            std::thread::sleep(POLL);
        }
    }

    fn failed(&self, program: &str, status: ExitStatus, log: Option<&Path>) -> Error {
        Error::Unfit {
            what: format!("{program} failed for {} ({status})", self.name),
            hint: log.map(|log| format!("{} says why", log.display())),
        }
    }
}
