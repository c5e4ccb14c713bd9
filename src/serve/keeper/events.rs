//! The event loop of a keeper: passes events to its [`Machine`](super::Machine), and performs the
//! actions.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::error::{Error, Result};
use super::super::resume;
use super::machine::{Action, Event};
use super::process::{Said, Worker};
use super::restarts::End;
use super::{Keeper, LIMIT, source_of};
use crate::error::{Io, chain};

/// How long to wait after a connection could not be accepted.
pub(super) const SHORTAGE: Duration = Duration::from_millis(100);

/// What a readable descriptor means.
#[derive(Debug, Clone, Copy)]
enum Ready {
    /// A signal asks the keeper to end.
    Signal,
    /// Something was mounted or unmounted.
    Mounts,
    /// The worker does not answer any more.
    WorkerEnded,
    /// The worker has sent a message.
    WorkerSaid,
    /// The worker requests a temporary file.
    FileWanted,
    /// A replaced worker has ended.
    DepartedEnded,
    /// A command has connected.
    Connection,
}

impl Keeper {
    /// Handles events until the file system is unmounted.
    pub(super) fn keep(&mut self) -> Result<()> {
        loop {
            for ready in self.wait()? {
                if self.handle(ready)? {
                    return self.end();
                }
            }
            self.give_up_waiting();
            let now = Instant::now();
            if self.machine.next().is_some_and(|at| at <= now) {
                let in_hand = self
                    .worker
                    .as_ref()
                    .map(|worker| worker.in_hand().0)
                    .unwrap_or_default();
                if self.tell(Event::Time {
                    waiting: self.requests_wait(),
                    in_hand,
                }) {
                    return self.end();
                }
            }
        }
    }

    fn end(&mut self) -> Result<()> {
        self.place.leave();
        tracing::info!(image = %source_of(&self.request).display(), "unmounted");
        Ok(())
    }

    fn wait(&self) -> Result<Vec<Ready>> {
        let next = self
            .machine
            .next()
            .into_iter()
            .chain(self.waiting.iter().map(|(_, until)| *until))
            .min();
        let timeout = next.map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let read = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut fds = vec![
            read(self.signals.as_fd()),
            PollFd::new(&self.mounts, PollFlags::PRI),
        ];
        let mut events = vec![Ready::Signal, Ready::Mounts];
        let mut watch = |fd, event| {
            fds.push(read(fd));
            events.push(event);
        };
        if let Some(worker) = &self.worker {
            // Its messages come before its end.
            if let Some(control) = worker.control() {
                watch(control, Ready::WorkerSaid);
            }
            watch(worker.sentinel(), Ready::WorkerEnded);
            if let Some(spool) = worker.spool() {
                watch(spool, Ready::FileWanted);
            }
        }
        for worker in &self.departed {
            watch(worker.pidfd(), Ready::DepartedEnded);
        }
        if let Some(control) = &self.control {
            watch(control.as_fd(), Ready::Connection);
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Io::doing("waiting for something to happen")(e).into()),
        }
        Ok(events
            .into_iter()
            .zip(fds)
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|(event, _)| event)
            .collect())
    }

    /// Handles a readable descriptor. Returns whether the keeper must end.
    fn handle(&mut self, ready: Ready) -> Result<bool> {
        Ok(match ready {
            Ready::Signal => self.terminate(),
            Ready::Mounts => self.tell(Event::MountsChanged),
            Ready::Connection => self.serve_connections(),
            Ready::WorkerEnded => self.worker_ended()?,
            Ready::WorkerSaid => self.worker_said(),
            Ready::FileWanted => {
                if let Some(worker) = &mut self.worker {
                    worker.lend_file(&self.request.options.temp_dir);
                }
                false
            }
            Ready::DepartedEnded => {
                let before = self.departed.len();
                self.departed
                    .retain_mut(|worker| worker.end().is_ok_and(|end| end == End::Dying));
                (self.departed.len()..before).any(|_| self.tell(Event::Reaped))
            }
        })
    }

    /// Whether there are requests that no worker has read.
    fn requests_wait(&self) -> bool {
        let Some(fuse) = &self.fuse else { return false };
        let mut fds = [PollFd::new(fuse, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::IN)
    }

    fn worker_ended(&mut self) -> Result<bool> {
        let Some(worker) = &mut self.worker else {
            return Ok(false);
        };
        let end = worker.end()?;
        let (in_hand, pushing) = worker.in_hand();
        if end != End::Dying {
            self.worker = None;
        }
        Ok(self.tell(Event::Ended {
            end,
            in_hand,
            pushing,
        }))
    }

    fn worker_said(&mut self) -> bool {
        match self.worker.as_mut().map(Worker::receive) {
            Some(Said::Stats(stats)) => {
                self.answer_waiting(Some(stats));
                self.tell(Event::Answered)
            }
            // It is ending.
            Some(Said::Nothing) | None => false,
        }
    }

    /// Handles a request to end: ends if the mount is not in use, and otherwise logs its users.
    fn terminate(&mut self) -> bool {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            tracing::info!(signal = signal.ssi_signo, "asked to end by a signal");
        }
        match self.place.unmount_idle(&self.pids()) {
            Ok(()) => return self.tell(Event::LookNow),
            Err(error @ Error::Busy { .. }) => tracing::warn!("continuing: {error}"),
            Err(error) => tracing::error!("{}", chain(&error)),
        }
        false
    }

    /// Passes an event to the machine, performs its actions, and passes on the events that result.
    /// Returns whether the keeper must end.
    pub(super) fn tell(&mut self, event: Event) -> bool {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.machine.on(Instant::now(), event) {
                if action == Action::End {
                    return true;
                }
                events.extend(self.perform(action));
            }
        }
        false
    }

    /// Performs an action. Returns the resulting event, if there is one.
    fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Start => Some(match self.start_worker() {
                Ok(worker) => {
                    self.worker = Some(worker);
                    Event::Serving
                }
                Err(error) => Event::NotStarted(chain(&error)),
            }),
            Action::Ask => self
                .worker
                .as_ref()
                .is_some_and(Worker::ask_stats)
                .then_some(Event::Asked),
            Action::Replace => {
                self.departed.extend(self.worker.take().map(|mut worker| {
                    worker.kill();
                    worker
                }));
                None
            }
            Action::Resend => {
                if let Some(Err(error)) = self.fuse.as_ref().map(resume::resend) {
                    tracing::error!("{}", chain(&error));
                }
                None
            }
            Action::GiveUp(_) => {
                self.fuse = None;
                self.worker = None;
                self.answer_waiting(None);
                // New users of the image get a new keeper, which may work.
                if let Err(error) = self.place.disconnect(&self.pids()) {
                    tracing::warn!("{}", chain(&error));
                }
                None
            }
            Action::Look => Some(match self.place.is_used(&self.pids()) {
                Ok(used) => Event::Looked {
                    used,
                    again: self.place.look_again(),
                },
                // The host is short of descriptors or memory, which must not end the mount.
                Err(error) => {
                    tracing::warn!("{}", chain(&error));
                    Event::LookFailed
                }
            }),
            Action::Release => Some(match self.place.release(&self.pids()) {
                Ok(done) => Event::Released(done),
                Err(error) => {
                    tracing::warn!("{}", chain(&error));
                    Event::LookFailed
                }
            }),
            Action::End => None,
        }
    }

    /// Starts another worker on the connection.
    fn start_worker(&self) -> Result<Worker> {
        let fuse: &OwnedFd = self.fuse.as_ref().ok_or(Error::Gone { peer: "worker" })?;
        let mut worker = Worker::start(self.style)?;
        worker.open(&self.request, &self.images, LIMIT)?;
        // Before the worker reads requests, so that it gets none of them twice.
        resume::resend(fuse)?;
        let precautions = self.machine.suspects().precautions();
        worker.serve_again(fuse, precautions, self.place.engine(), LIMIT)?;
        Ok(worker)
    }
}
