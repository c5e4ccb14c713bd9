//! Upgrades a keeper to another version of the program, in the same process and with the same
//! descriptors.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use super::super::channel::Channel;
use super::super::error::{Error, Result};
use super::super::secrets;
use super::Keeper;
use super::machine::{Event, Machine};
use super::restarts::End;
use super::start::{Handover, KeeperStart};
use crate::error::Io;

/// How long a worker that was killed may take to end.
const ENDING: Duration = Duration::from_secs(1);

impl Keeper {
    /// Replaces this program by `program`. Returns only on failure; this program then continues.
    pub(super) fn upgrade(&mut self, program: &OwnedFd) -> Result<()> {
        let handover = Handover {
            request: self.request.clone(),
            place: self.place.clone(),
            control: self.control.is_some(),
            since: self.since,
            restarts: self.machine.restarts(),
            upgrades: self.upgrades + 1,
            replaceable: self.machine.is_replaceable(),
        };
        // Message and descriptors wait in the socket until the new program reads them.
        let (ours, stdin) = Channel::to_pass("keeper")?;
        let control = self.control.iter().map(AsFd::as_fd);
        let fds: Vec<BorrowedFd<'_>> = self
            .fuse
            .iter()
            .map(AsFd::as_fd)
            .chain(control)
            .chain(self.images.iter().map(AsFd::as_fd))
            .collect();
        ours.send(&KeeperStart::Resume(handover), &fds)?;
        self.end_worker()?;
        rustix::stdio::dup2_stdin(stdin).map_err(Io::doing("handing over"))?;
        tracing::info!("continuing as another version");
        let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
        let error = secrets::clear_environment(&mut command)
            .arg0("lxcri-fs")
            .args(["keeper", "--log-style", self.style.name()])
            .exec();
        Err(Io::doing("starting the new version")(error).into())
    }

    /// Ends the worker completely, because the new program could not wait for it. Requests wait for
    /// the next worker.
    fn end_worker(&mut self) -> Result<()> {
        let busy = Error::Timeout {
            peer: "worker",
            seconds: ENDING.as_secs(),
        };
        if !self.machine.can_be_upgraded() {
            return Err(busy);
        }
        let Some(mut worker) = self.worker.take() else {
            return Err(busy);
        };
        let deadline = Instant::now() + ENDING;
        worker.kill();
        let gone = loop {
            if worker.end()? != End::Dying {
                break true;
            }
            if Instant::now() > deadline {
                self.departed.push(worker);
                break false;
            }
        };
        // If the new program does not start, this one continues.
        self.tell(Event::TakenDown { gone });
        if gone { Ok(()) } else { Err(busy) }
    }

    /// Continues as the keeper that another version was.
    pub(super) fn resume(
        handover: Handover,
        fds: Vec<OwnedFd>,
        style: super::Style,
    ) -> Result<Self> {
        let Handover {
            request,
            place,
            control,
            since,
            restarts,
            upgrades,
            replaceable,
        } = handover;
        let mut fds = fds.into_iter();
        let fuse = fds.next().ok_or(Error::Gone { peer: "keeper" })?;
        let control = if control {
            fds.next().map(Into::into)
        } else {
            None
        };
        let machine = Machine::new(Instant::now(), false, replaceable, restarts);
        let mut keeper = Self::assemble(
            machine,
            request,
            fds.collect(),
            style,
            place,
            fuse,
            None,
            control,
        )?;
        (keeper.since, keeper.upgrades) = (since, upgrades);
        Ok(keeper)
    }
}
