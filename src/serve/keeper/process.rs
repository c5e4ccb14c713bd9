//! A worker as its keeper sees it: a process that is asked and may be gone.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::super::channel::Channel;
use super::super::error::{Error, Result};
use super::super::log::Style;
use super::super::protocol::{MountRequest, WorkerReply, WorkerRequest};
use super::SELF;

/// How much more the worker is to the out-of-memory killer's taste than its keeper.
const OOM_DISTANCE: i32 = 100;

/// The process that serves.
pub(super) struct Worker {
    process: Child,
    control: Channel,
    pidfd: OwnedFd,
}

impl Worker {
    /// Starts a worker, which does nothing yet.
    pub(super) fn start(style: Style) -> Result<Self> {
        let (control, stdin) = Channel::pair("worker")?;
        let process = Command::new(SELF)
            .arg0("lxcri-fs")
            .args(["worker", "--log-style", style.name()])
            .stdin(stdin)
            .stdout(Stdio::null())
            // A terminal's interrupt is for the keeper alone.
            .process_group(0)
            .spawn()
            .map_err(Error::system("starting the worker"))?;
        let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
        let pidfd = pid.ok_or(rustix::io::Errno::SRCH).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let worker = Self { process, control, pidfd: pidfd.map_err(Error::system("watching the worker"))? };
        worker.prefer_for_oom();
        Ok(worker)
    }

    /// Has the worker open the images.
    pub(super) fn open(&self, request: &MountRequest, images: &[OwnedFd], limit: Duration) -> Result<()> {
        let open = WorkerRequest::Open { images: request.images.clone(), options: request.options.clone(), threads: request.threads };
        let files: Vec<BorrowedFd<'_>> = images.iter().map(AsFd::as_fd).collect();
        self.ask(&open, &files, limit).map(drop)
    }

    /// Has the worker answer the requests of a connection.
    pub(super) fn serve(&self, fuse: &OwnedFd, resume: bool, limit: Duration) -> Result<()> {
        self.ask(&WorkerRequest::Serve { resume }, &[fuse.as_fd()], limit).map(drop)
    }

    /// Sends a request, and waits for its answer.
    pub(super) fn ask(&self, request: &WorkerRequest, fds: &[BorrowedFd<'_>], limit: Duration) -> Result<WorkerReply> {
        self.control.send(request, fds)?;
        match self.control.expect(limit)?.0 {
            WorkerReply::Failed(failure) => Err(Error::Failed(Box::new(failure))),
            reply => Ok(reply),
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Becomes readable when the process has ended.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// How the process ended, if it has.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.process.try_wait().map_err(Error::system("waiting for the worker"))
    }

    fn prefer_for_oom(&self) {
        let own = std::fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|t| t.trim().parse::<i32>().ok()).unwrap_or(0);
        let adjusted = (own + OOM_DISTANCE).min(1000);
        if let Err(error) = std::fs::write(format!("/proc/{}/oom_score_adj", self.pid()), adjusted.to_string()) {
            tracing::debug!(%error, "the worker's oom_score_adj stays as it is");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
