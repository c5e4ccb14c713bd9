//! The decisions of a keeper: events become actions. Nothing here touches a process, a mount or the
//! clock.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::restarts::{End, Restarts};
use super::suspects::Suspects;

/// How long to wait before the mounts are checked, if nothing waits for the result: mounts often
/// come and go in numbers.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// How often to check for users without events, and how long to wait after a failed check.
pub(super) const LONG_PAUSE: Duration = Duration::from_secs(5);
/// How often to check for requests that the worker does not read or answer.
const CHECK: Duration = Duration::from_secs(5);
/// How long a worker may take to answer before it is reported as not answering.
pub(super) const UNANSWERED: Duration = Duration::from_secs(1);
/// How long a request may be in hand before it is reported as not answered: the image's disk, or
/// the network to it, may hang.
const STUCK: Duration = Duration::from_secs(10);
/// A worker that has not answered its keeper for this long, while requests wait, is replaced.
/// Threads that wait for a disk do not affect the one that answers the keeper: only a process that
/// is stopped or cannot run does not answer.
pub(super) const HUNG: Duration = Duration::from_secs(10);

/// An event.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// The new worker serves.
    Serving,
    /// It could not be started, for this reason.
    NotStarted(String),
    /// The worker does not answer requests any more.
    Ended {
        /// How.
        end: End,
        /// The numbers of the requests that it had in hand.
        in_hand: Vec<u64>,
        /// Whether it was decoding ahead of requests.
        pushing: bool,
    },
    /// The keeper ended its worker in order to continue as another program, but could not.
    TakenDown {
        /// Whether the worker has ended already.
        gone: bool,
    },
    /// A replaced worker has ended.
    Reaped,
    /// A request was sent to the worker.
    Asked,
    /// It has answered.
    Answered,
    /// The time of [`Machine::next`] has come.
    Time {
        /// Whether there are requests that no worker has read.
        waiting: bool,
        /// The requests that the worker has in hand.
        in_hand: Vec<u64>,
    },
    /// The mounts may have changed.
    MountsChanged,
    /// A command needs to know now whether the mount is in use.
    LookNow,
    /// The result of a check whether the mount is in use.
    Looked {
        /// Whether it is in use.
        used: bool,
        /// When to check again, if it may be used where no events come from.
        again: Option<Duration>,
    },
    /// The check failed.
    LookFailed,
    /// Whether the keeper made way for another one.
    Released(bool),
}

/// Actions, to be performed in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Start a worker on the connection; [`Event::Serving`] or [`Event::NotStarted`] follows.
    Start,
    /// Ask the worker anything.
    Ask,
    /// Kill the worker; [`Event::Reaped`] follows when it has ended, while the next one works.
    Replace,
    /// Make the kernel repeat the requests that the former worker had read.
    Resend,
    /// Close the connection: for this reason, there will be no other worker.
    GiveUp(String),
    /// Check whether the mount is in use.
    Look,
    /// Make way for another keeper of the same images.
    Release,
    /// End.
    End,
}

/// Whether a worker answers requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Service {
    /// There is.
    Serving,
    /// A worker is being started.
    Starting,
    /// A worker will be started at this time.
    Waiting(Instant),
    /// There will be no worker any more, for this reason. The kernel answers requests with
    /// ENOTCONN.
    Failed(String),
    /// The file system was unmounted.
    Ended,
}

/// The state of a keeper's decisions.
#[derive(Debug)]
pub(super) struct Machine {
    service: Service,
    /// Whether the kernel lets another worker take over.
    replaceable: bool,
    restarts: Restarts,
    suspects: Suspects,
    /// How many replaced workers have not ended yet.
    departed: usize,
    /// Whether new users start a keeper of their own.
    released: bool,
    /// When to check whether the mount still has users.
    look: Option<Instant>,
    /// When to check whether requests are answered.
    check: Instant,
    /// Since when the worker owes an answer.
    asked: Option<Instant>,
    /// Since when requests are known to be in hand.
    in_hand: BTreeMap<u64, Instant>,
}

impl Machine {
    /// A machine for a worker that serves already, or will be started.
    pub(super) fn new(now: Instant, serving: bool, replaceable: bool, restarts: u64) -> Self {
        Self {
            service: if serving {
                Service::Serving
            } else {
                Service::Waiting(now)
            },
            replaceable,
            restarts: Restarts::new(now, restarts),
            suspects: Suspects::default(),
            departed: 0,
            released: false,
            // The mounting process may have ended before it attached the mount.
            look: Some(now + PAUSE),
            check: now + CHECK,
            asked: None,
            in_hand: BTreeMap::new(),
        }
    }

    /// Whether there is a worker.
    pub(super) fn service(&self) -> &Service {
        &self.service
    }

    /// How often a worker was started again.
    pub(super) fn restarts(&self) -> u64 {
        self.restarts.total
    }

    /// Whether the kernel lets another worker take over.
    pub(super) fn is_replaceable(&self) -> bool {
        self.replaceable
    }

    /// Whether the worker may be ended for an upgrade: there is one, and no replaced one, for which
    /// the next program could not wait.
    pub(super) fn can_be_upgraded(&self) -> bool {
        self.replaceable && self.service == Service::Serving && self.departed == 0
    }

    /// Whether the worker owes an answer.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// What the next worker must know about requests that ended others.
    pub(super) fn suspects(&self) -> &Suspects {
        &self.suspects
    }

    /// Since when the worker has not answered; `None` while it does. `in_hand` are the requests
    /// that it has in hand.
    pub(super) fn not_answering_since(&self, now: Instant, in_hand: &[u64]) -> Option<Instant> {
        let overdue =
            |since: Instant, limit| Some(since).filter(|since| now.duration_since(*since) >= limit);
        let asked = self.asked.and_then(|since| overdue(since, UNANSWERED));
        let stuck = in_hand
            .iter()
            .filter_map(|unique| self.in_hand.get(unique))
            .min()
            .and_then(|since| overdue(*since, STUCK));
        [asked, stuck]
            .into_iter()
            .flatten()
            .min()
            .filter(|_| self.service == Service::Serving)
    }

    /// When [`Event::Time`] is due.
    pub(super) fn next(&self) -> Option<Instant> {
        let service = match self.service {
            Service::Waiting(at) => Some(at),
            Service::Serving => Some(self.check),
            _ => None,
        };
        [service, self.look]
            .into_iter()
            .flatten()
            .min()
            .filter(|_| self.service != Service::Ended)
    }

    /// Handles an event, and returns the actions.
    pub(super) fn on(&mut self, now: Instant, event: Event) -> Vec<Action> {
        if self.service == Service::Ended {
            return Vec::new();
        }
        match event {
            Event::Serving => {
                self.restarts.started(now);
                self.service = Service::Serving;
                self.heard(now);
                Vec::new()
            }
            Event::NotStarted(why) => {
                self.restarts.started(now);
                self.after(
                    now,
                    &End::NotStarted,
                    format!("no worker could be started: {why}"),
                )
            }
            Event::Ended {
                end,
                in_hand,
                pushing,
            } if self.service == Service::Serving => self.ended(now, end, &in_hand, pushing),
            Event::TakenDown { gone } => {
                self.departed += usize::from(!gone);
                self.service = Service::Waiting(now);
                self.heard(now);
                Vec::new()
            }
            Event::Reaped => {
                self.departed = self.departed.saturating_sub(1);
                // Requests that its last threads had read were not repeated with the others.
                if self.service == Service::Serving {
                    vec![Action::Resend]
                } else {
                    Vec::new()
                }
            }
            Event::Asked => {
                self.asked.get_or_insert(now);
                self.check = self.check.min(now + UNANSWERED);
                Vec::new()
            }
            Event::Answered => {
                self.asked = None;
                Vec::new()
            }
            Event::Time { waiting, in_hand } => self.time(now, waiting, &in_hand),
            Event::MountsChanged => self.look_at(now + PAUSE),
            Event::LookNow => self.look_at(now),
            Event::LookFailed => self.look_at(now + LONG_PAUSE),
            Event::Looked { used: true, again } => {
                again.map_or_else(Vec::new, |pause| self.look_at(now + pause))
            }
            Event::Looked { used: false, .. } if !self.released => vec![Action::Release],
            Event::Looked { used: false, .. } => self.unused(),
            Event::Released(true) => {
                self.released = true;
                self.unused()
            }
            // A new user is about to come.
            Event::Released(false) => self.look_at(now + PAUSE),
            Event::Ended { .. } => Vec::new(),
        }
    }

    /// The mount is not visible in the examined namespaces. It may still be used in others, until
    /// the kernel tells the worker that it has ended; without a worker, the keeper would not learn
    /// that.
    fn unused(&mut self) -> Vec<Action> {
        if matches!(self.service, Service::Failed(_)) {
            self.end()
        } else {
            Vec::new()
        }
    }

    fn end(&mut self) -> Vec<Action> {
        self.service = Service::Ended;
        vec![Action::End]
    }

    fn look_at(&mut self, at: Instant) -> Vec<Action> {
        self.look = Some(self.look.map_or(at, |before| before.min(at)));
        Vec::new()
    }

    /// The worker owes no answer any more, because it has answered, or because there is another
    /// worker.
    fn heard(&mut self, now: Instant) {
        self.asked = None;
        self.in_hand.clear();
        self.check = now + CHECK;
    }

    fn time(&mut self, now: Instant, waiting: bool, in_hand: &[u64]) -> Vec<Action> {
        let mut actions = Vec::new();
        match self.service {
            Service::Waiting(at) if at <= now => {
                self.service = Service::Starting;
                actions.push(Action::Start);
            }
            Service::Serving if self.check <= now => {
                actions.extend(self.check(now, waiting, in_hand))
            }
            _ => {}
        }
        if self.look.is_some_and(|at| at <= now) {
            self.look = None;
            actions.push(Action::Look);
        }
        actions
    }

    /// Whether requests are answered.
    fn check(&mut self, now: Instant, waiting: bool, in_hand: &[u64]) -> Vec<Action> {
        self.in_hand.retain(|unique, _| in_hand.contains(unique));
        for unique in in_hand {
            self.in_hand.entry(*unique).or_insert(now);
        }
        self.check = now + CHECK;
        let wanted = waiting || !in_hand.is_empty();
        match self.asked {
            Some(since) if now.duration_since(since) >= HUNG && wanted && self.replaceable => {
                let mut actions = vec![Action::Replace];
                self.departed += 1;
                self.suspect(in_hand, &End::Dying);
                actions.extend(self.after(
                    now,
                    &End::Dying,
                    format!("the worker has not answered for {} s", HUNG.as_secs()),
                ));
                actions
            }
            Some(since) => {
                if let Some(left) = HUNG.checked_sub(now.duration_since(since)) {
                    self.check = now + left.clamp(UNANSWERED, CHECK);
                }
                Vec::new()
            }
            None if wanted => vec![Action::Ask],
            None => Vec::new(),
        }
    }

    fn ended(&mut self, now: Instant, end: End, in_hand: &[u64], pushing: bool) -> Vec<Action> {
        let why = match end {
            End::Status(status) if status.success() => return self.end(),
            End::Status(status) => format!("the worker ended: {status}"),
            End::Dying | End::NotStarted => "the worker is ending".to_owned(),
        };
        let mut actions = Vec::new();
        if end == End::Dying {
            self.departed += 1;
            actions.push(Action::Replace);
        }
        if pushing && end.is_crash() {
            // The cause may not have been a request: the next worker does not decode ahead.
            self.suspects.do_not_push();
        } else {
            self.suspect(in_hand, &end);
        }
        actions.extend(self.after(now, &end, why));
        actions
    }

    /// Records what was in hand when a worker ended. Many bad requests, one after the other, must
    /// not end the mount for the users of all others.
    fn suspect(&mut self, in_hand: &[u64], end: &End) {
        if self.suspects.ended(in_hand, end) {
            self.restarts.explained();
        }
    }

    /// Decides what follows the end of a worker.
    fn after(&mut self, now: Instant, end: &End, why: String) -> Vec<Action> {
        self.heard(now);
        let delay = if self.replaceable {
            self.restarts.died(now, end)
        } else {
            None
        };
        match delay {
            Some(delay) => {
                tracing::warn!(
                    delay_ms = delay.as_millis(),
                    restarts = self.restarts.total,
                    "{why}; starting another"
                );
                self.service = Service::Waiting(now + delay);
                Vec::new()
            }
            None => {
                let why = if self.replaceable {
                    why
                } else {
                    format!("{why}; before Linux 6.9, no other worker can take over")
                };
                tracing::error!("{why}; giving up: programs on the mount get ENOTCONN");
                self.service = Service::Failed(why.clone());
                // Its users may have ended already.
                self.look_at(now + PAUSE);
                vec![Action::GiveUp(why)]
            }
        }
    }
}
