//! A worker as its keeper sees it: a process that may end at any time.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::super::channel::Channel;
use super::super::confine::Confinement;
use super::super::engine::Engine;
use super::super::error::{Error, Result};
use super::super::in_hand::Page;
use super::super::log::Style;
use super::super::protocol::{
    MountRequest, Precautions, TemporaryFile, WorkerReply, WorkerRequest,
};
use super::super::secrets;
use super::super::split::{Draft, Metadata};
use super::super::stats::Stats;
use super::SELF;
use super::restarts::End;
use crate::error::{Io, chain};
use crate::fs::{Spool, TempDir};

/// How long an ending process takes, unless it waits for something.
const DYING: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};
/// `PIDFD_THREAD`, since Linux 6.9.
const THREAD: PidfdFlags = PidfdFlags::from_bits_retain(0o200);

/// Messages of a worker that serves.
pub(super) enum Said {
    /// Its statistics.
    Stats(Stats),
    /// It has closed the connection.
    Nothing,
}

/// A worker process.
pub(super) struct Worker {
    process: Child,
    control: Channel,
    /// Whether it may still send messages.
    talks: bool,
    /// The page in which it records the requests that it has in hand.
    page: Page,
    /// The socket through which it requests temporary files.
    spool: Option<Channel>,
    spool_end: Option<OwnedFd>,
    /// The descriptor of the process: readable when all its threads have ended.
    pidfd: OwnedFd,
    /// The descriptor of a thread that only waits, and so ends at once with the process. Another
    /// thread may stay until the answer to a read, which comes from the next worker, unlocks a
    /// page.
    sentinel: Option<OwnedFd>,
    /// How it is confined.
    confinement: Option<Confinement>,
}

impl Worker {
    /// Starts a worker, which does nothing yet.
    pub(super) fn start(style: Style) -> Result<Self> {
        let (control, stdin) = Channel::pair("worker")?;
        let process = secrets::clear_environment(&mut Command::new(SELF))
            .arg0("lxcri-fs")
            .args(["worker", "--log-style", style.name()])
            .stdin(stdin)
            .stdout(Stdio::null())
            // An interrupt from a terminal must reach only the keeper.
            .process_group(0)
            .spawn()
            .map_err(Io::doing("starting the worker"))?;
        let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
        let pidfd = pid
            .ok_or(Errno::SRCH)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let pidfd = pidfd.map_err(Io::doing("watching the worker"))?;
        let (spool, spool_end) = Channel::to_pass("worker")?;
        Ok(Self {
            process,
            control,
            talks: true,
            page: Page::new()?,
            spool: Some(spool),
            spool_end: Some(spool_end),
            pidfd,
            sentinel: None,
            confinement: None,
        })
    }

    /// Makes the worker open the images. Returns what they say identifies them.
    pub(super) fn open(
        &mut self,
        request: &MountRequest,
        images: &[OwnedFd],
        limit: Duration,
    ) -> Result<Vec<String>> {
        let spool = self.spool_end.take();
        let open = WorkerRequest::Open {
            images: request.images.clone(),
            options: request.options.clone(),
            threads: request.threads,
        };
        let files: Vec<BorrowedFd<'_>> = spool.iter().chain(images).map(AsFd::as_fd).collect();
        match self.ask(&open, &files, limit)? {
            WorkerReply::Opened { digests } => Ok(digests),
            _ => Err(Error::Gone { peer: "worker" }),
        }
    }

    /// Makes the worker write the EROFS metadata of the images, and checks them.
    pub(super) fn metadata(&self, limit: Duration) -> Result<Metadata> {
        let draft = Draft::new()?;
        match self.ask(&WorkerRequest::Metadata, &[draft.as_fd()], limit)? {
            WorkerReply::Metadata { len, devices } => draft.checked(len, devices),
            WorkerReply::Unsayable(reason) => Err(Error::Split { reason }),
            _ => Err(Error::Gone { peer: "worker" }),
        }
    }

    /// Makes the worker serve a new connection. Returns whether the kernel can send requests again.
    pub(super) fn serve_first(
        &mut self,
        fuse: &OwnedFd,
        engine: Engine,
        limit: Duration,
    ) -> Result<bool> {
        let precautions = Precautions {
            refused: Vec::new(),
            suspects: Vec::new(),
            push: true,
        };
        Ok(self
            .serve(fuse, false, precautions, engine, limit)?
            .unwrap_or_default())
    }

    /// Makes the worker serve a connection that another worker has served.
    pub(super) fn serve_again(
        &mut self,
        fuse: &OwnedFd,
        precautions: Precautions,
        engine: Engine,
        limit: Duration,
    ) -> Result<()> {
        self.serve(fuse, true, precautions, engine, limit).map(drop)
    }

    fn serve(
        &mut self,
        fuse: &OwnedFd,
        resume: bool,
        precautions: Precautions,
        engine: Engine,
        limit: Duration,
    ) -> Result<Option<bool>> {
        let request = WorkerRequest::Serve {
            resume,
            precautions,
            engine,
        };
        let (sentinel, resends, confinement) =
            match self.ask(&request, &[fuse.as_fd(), self.page.as_fd()], limit)? {
                WorkerReply::Serving {
                    sentinel,
                    resends,
                    confinement,
                } => (sentinel, resends, confinement),
                WorkerReply::Unsayable(reason) => return Err(Error::Split { reason }),
                _ => return Err(Error::Gone { peer: "worker" }),
            };
        // A kernel that cannot watch a thread cannot pass requests to another worker either.
        self.sentinel = Pid::from_raw(sentinel).and_then(|thread| pidfd_open(thread, THREAD).ok());
        self.confinement = Some(confinement);
        Ok(resends)
    }

    /// How the worker is confined, once it serves.
    pub(super) fn confinement(&self) -> Option<Confinement> {
        self.confinement
    }

    /// Sends a request, and waits for its answer.
    fn ask(
        &self,
        request: &WorkerRequest,
        fds: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<WorkerReply> {
        self.control.send(request, fds)?;
        match self.control.expect(limit)?.0 {
            WorkerReply::Failed(failure) => Err(Error::Failed(Box::new(failure))),
            reply => Ok(reply),
        }
    }

    /// Requests the worker's statistics; [`Worker::receive`] gets the answer. Returns whether the
    /// request was sent.
    pub(super) fn ask_stats(&self) -> bool {
        self.control.send(&WorkerRequest::Stats, &[]).is_ok()
    }

    /// Receives a message of the worker; called when [`Worker::control`] is readable.
    pub(super) fn receive(&mut self) -> Said {
        match self.control.receive() {
            Ok(Some((WorkerReply::Stats(stats), _))) => Said::Stats(stats),
            _ => {
                self.talks = false;
                Said::Nothing
            }
        }
    }

    /// Becomes readable when the worker has sent a message.
    pub(super) fn control(&self) -> Option<BorrowedFd<'_>> {
        Some(self.control.as_fd()).filter(|_| self.talks)
    }

    /// The requests that it has in hand, or had when it ended, and whether it was decoding ahead of
    /// requests.
    pub(super) fn in_hand(&self) -> (Vec<u64>, bool) {
        self.page.read()
    }

    /// Makes a temporary file in `directory`, which the worker has requested.
    pub(super) fn lend_file(&mut self, directory: &Path) {
        let Some(spool) = &self.spool else { return };
        let lent = spool.receive::<TemporaryFile>().and_then(|request| {
            let Some((TemporaryFile { size }, _)) = request else {
                return Err(Error::Gone { peer: "worker" });
            };
            match TempDir(directory.to_owned()).file(size) {
                Ok(file) => spool.send(&0, &[file.as_fd()]),
                Err(error) => spool.send(
                    &error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()),
                    &[],
                ),
            }
        });
        if let Err(error) = lent {
            tracing::debug!("the worker gets no more temporary files: {}", chain(&error));
            self.spool = None;
        }
    }

    /// Becomes readable when the worker requests a temporary file.
    pub(super) fn spool(&self) -> Option<BorrowedFd<'_>> {
        self.spool.as_ref().map(AsFd::as_fd)
    }

    /// Kills the process, without waiting for its end.
    pub(super) fn kill(&mut self) {
        let _ = self.process.kill();
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Becomes readable when the process answers no more requests.
    pub(super) fn sentinel(&self) -> BorrowedFd<'_> {
        self.sentinel.as_ref().unwrap_or(&self.pidfd).as_fd()
    }

    /// Becomes readable when the process has ended.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// How the process ended; called after its sentinel has.
    pub(super) fn end(&mut self) -> Result<End> {
        let failed = || Io::doing("waiting for the worker");
        let _ = poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&DYING));
        Ok(self
            .process
            .try_wait()
            .map_err(failed())?
            .map_or(End::Dying, End::Status))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
        let _ = self.end();
    }
}
