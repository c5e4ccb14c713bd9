//! Answers the requests of commands to a keeper.

use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::super::channel::Channel;
use super::super::engine::Engine;
use super::super::error::{Error, Failure, Result};
use super::super::protocol::{self, KeeperReply, KeeperRequest, Status};
use super::super::stats::Stats;
use super::events::SHORTAGE;
use super::machine::{Event, Service, UNANSWERED};
use super::process::Worker;
use super::{Keeper, failure_of};
use crate::erofs::Layout;
use crate::error::chain;

/// How long a process that connects may take to send its request.
const PATIENCE: Duration = Duration::from_secs(1);

impl Keeper {
    /// Answers all waiting connections. Returns whether the keeper must end.
    pub(super) fn serve_connections(&mut self) -> bool {
        let mut events = Vec::new();
        while let Some(control) = &self.control {
            let answered = match control.accept() {
                Ok(Some(channel)) => self.answer(channel),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!("{}", chain(&error));
                    // The host is short of descriptors or memory; the connections keep waiting.
                    std::thread::sleep(SHORTAGE);
                    break;
                }
            };
            match answered {
                Ok(event) => events.extend(event),
                Err(error) => {
                    tracing::warn!("could not answer a command: {}", chain(&error))
                }
            }
        }
        events.into_iter().any(|event| self.tell(event))
    }

    fn answer(&mut self, channel: Channel) -> Result<Option<Event>> {
        let (request, fds) = channel.expect(PATIENCE)?;
        match (request, self.machine.service()) {
            (KeeperRequest::Attach, Service::Failed(why)) => {
                let failure = Failure {
                    message: why.clone(),
                    hint: None,
                    exit: 1,
                    key_needed: None,
                };
                channel.send(&KeeperReply::Failed(failure), &[])?;
            }
            (KeeperRequest::Attach, _) => match self.place.clone_mount() {
                Ok(mount) => {
                    self.place.is_wanted_by(channel.peer_pid());
                    let engine = self.place.engine();
                    channel.send(&KeeperReply::Attached { engine }, &[mount.as_fd()])?;
                    // Until the mount is attached, the lock of the directory counts as a user. If
                    // it is never attached, this check finds out.
                    return Ok(Some(Event::MountsChanged));
                }
                Err(error) => channel.send(&KeeperReply::Failed(failure_of(&error)), &[])?,
            },
            (KeeperRequest::Look, _) => {
                let used = self.place.is_used(&self.pids())?;
                channel.send(&KeeperReply::Used(used), &[])?;
                return Ok(Some(Event::LookNow));
            }
            (KeeperRequest::Upgrade, _) if !self.machine.is_replaceable() => {
                channel.send(&KeeperReply::Failed(failure_of(&Error::NoResend)), &[])?;
            }
            (KeeperRequest::Upgrade, _) => {
                let program = fds.first().ok_or(Error::Gone { peer: "command" })?;
                channel.send(&KeeperReply::Upgrading, &[])?;
                self.upgrade(program)?;
            }
            (KeeperRequest::Stats, _) => return self.ask_for_stats(channel),
            (KeeperRequest::Status, _) => channel.send(&KeeperReply::Status(self.status()), &[])?,
        }
        Ok(None)
    }

    /// Requests statistics from the worker. The command gets them when they arrive.
    fn ask_for_stats(&mut self, channel: Channel) -> Result<Option<Event>> {
        let is_asked = self.machine.is_asked();
        if !is_asked && !self.worker.as_ref().is_some_and(Worker::ask_stats) {
            channel.send(&KeeperReply::Stats(None), &[])?;
            return Ok(None);
        }
        self.waiting.push((channel, Instant::now() + UNANSWERED));
        Ok((!is_asked).then_some(Event::Asked))
    }

    /// Sends the worker's statistics to the waiting commands.
    pub(super) fn answer_waiting(&mut self, stats: Option<Stats>) {
        for (channel, _) in self.waiting.drain(..) {
            // A command may have given up.
            let _ = channel.send(&KeeperReply::Stats(stats.clone()), &[]);
        }
    }

    /// Tells commands that have waited too long that the worker does not answer.
    pub(super) fn give_up_waiting(&mut self) {
        let now = Instant::now();
        self.waiting.retain(|(channel, until)| {
            let is_over = *until <= now;
            if is_over {
                let _ = channel.send(&KeeperReply::Stats(None), &[]);
            }
            !is_over
        });
    }

    fn status(&self) -> Status {
        let now = Instant::now();
        let in_hand = self
            .worker
            .as_ref()
            .map(|worker| worker.in_hand().0)
            .unwrap_or_default();
        let seconds = |at: SystemTime| at.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let wall = |since: Instant| seconds(SystemTime::now() - now.duration_since(since));
        Status {
            pid: std::process::id(),
            worker: self.worker.as_ref().map(Worker::pid),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: protocol::VERSION,
            layout: match self.place.engine() {
                Engine::Fuse => 0,
                Engine::Split => Layout::VERSION,
            },
            upgrades: self.upgrades,
            dev: self.place.dev(),
            engine: self.place.engine(),
            images: self.request.images.iter().map(|i| i.path.clone()).collect(),
            since: seconds(self.since),
            restarts: self.machine.restarts(),
            failed: if let Service::Failed(why) = self.machine.service() {
                Some(why.clone())
            } else {
                None
            },
            not_answering_since: self.machine.not_answering_since(now, &in_hand).map(wall),
            replaceable: self.machine.is_replaceable(),
            confinement: self.worker.as_ref().and_then(Worker::confinement),
        }
    }
}
