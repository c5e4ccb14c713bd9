//! A keeper goes on as another version of the program, in the same process and with the same descriptors.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use super::super::channel::Channel;
use super::super::error::{Error, Result};
use super::super::protocol::{Handover, KeeperStart};
use super::restarts::End;
use super::{Keeper, Service};

/// How long a worker that was killed may take to end.
const ENDING: Duration = Duration::from_secs(1);

impl Keeper {
    /// Replaces this program by `program`. Comes back only when that fails; then this one goes on.
    pub(super) fn upgrade(&mut self, program: &OwnedFd) -> Result<()> {
        if !self.replaceable {
            return Err(Error::NoResend);
        }
        let handover = Handover {
            request: self.request.clone(),
            place: self.place.clone(),
            control: self.control.is_some(),
            since: self.since,
            restarts: self.restarts.total,
            upgrades: self.upgrades + 1,
            replaceable: self.replaceable,
        };
        // What is sent waits in the socket, descriptors too, until the new program reads it.
        let (ours, stdin) = Channel::to_pass("keeper")?;
        let control = self.control.iter().map(AsFd::as_fd);
        let fds: Vec<BorrowedFd<'_>> =
            self.fuse.iter().map(AsFd::as_fd).chain(control).chain(self.images.iter().map(AsFd::as_fd)).collect();
        ours.send(&KeeperStart::Resume(handover), &fds)?;
        self.end_worker()?;
        rustix::stdio::dup2_stdin(stdin).map_err(Error::system("handing over"))?;
        tracing::info!("going on as another version");
        let error = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
            .arg0("lxcri-fs")
            .args(["keeper", "--log-style", self.style.name()])
            .exec();
        Err(Error::System { doing: "starting the new version", source: error })
    }

    /// Ends the worker, and all of it: another program could not wait for the rest. Requests wait for the next.
    fn end_worker(&mut self) -> Result<()> {
        let busy = Error::Timeout { peer: "worker", seconds: ENDING.as_secs() };
        let service = std::mem::replace(&mut self.service, Service::Restart(Instant::now()));
        let mut worker = match service {
            Service::Worker(worker) if self.departed.is_empty() => worker,
            // Nothing to hand over, or not now.
            other => {
                self.service = other;
                return Err(busy);
            }
        };
        let deadline = Instant::now() + ENDING;
        worker.kill();
        while worker.end()? == End::Dying {
            if Instant::now() > deadline {
                self.departed.push(worker);
                return Err(busy);
            }
        }
        Ok(())
    }

    /// The keeper that another version was.
    pub(super) fn resume(handover: Handover, fds: Vec<OwnedFd>, style: super::Style) -> Result<Self> {
        let Handover { request, place, control, since, restarts, upgrades, replaceable } = handover;
        let mut fds = fds.into_iter();
        let fuse = fds.next().ok_or(Error::Gone { peer: "keeper" })?;
        let control = if control { fds.next().map(Into::into) } else { None };
        let service = Service::Restart(Instant::now());
        let mut keeper = Self::assemble(request, fds.collect(), style, place, fuse, service, control, replaceable)?;
        (keeper.since, keeper.restarts.total, keeper.upgrades) = (since, restarts, upgrades);
        Ok(keeper)
    }
}
