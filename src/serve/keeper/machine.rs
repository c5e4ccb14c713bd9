//! What a keeper does when something happens: events in, actions out. Nothing here touches a
//! process, a mount or the clock.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::restarts::{End, Restarts};
use super::suspects::Suspects;

/// How long until a look at the mounts is taken that nobody waits for: mounts often come and go in
/// numbers.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// How often it is looked after users that no event tells of; and after a look that failed.
pub(super) const LONG_PAUSE: Duration = Duration::from_secs(5);
/// How often it is looked whether requests wait that the worker does not take or answer.
const CHECK: Duration = Duration::from_secs(5);
/// How long a worker may take to answer before it is said that it does not.
pub(super) const UNANSWERED: Duration = Duration::from_secs(1);
/// How long a request may be in hand before it is said that it is not answered: its image's disk,
/// or the network to it, may hang.
const STUCK: Duration = Duration::from_secs(10);
/// A worker that has not answered its keeper for so long, while requests wait, is replaced. Threads
/// that wait for a disk do not keep the one that answers the keeper from it: only a process that is
/// stopped, or cannot run at all, says nothing.
pub(super) const HUNG: Duration = Duration::from_secs(10);

/// What has happened.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// The worker that was to be started serves.
    Serving,
    /// It could not be started: why.
    NotStarted(String),
    /// The worker answers no requests any more. What it had in hand.
    Ended {
        /// How.
        end: End,
        /// The numbers of the requests that it was answering.
        in_hand: Vec<u64>,
        /// Whether it was decoding what nobody had asked for.
        pushing: bool,
    },
    /// The keeper has ended its worker, to go on as another program, and could not. Whether the
    /// worker is gone already.
    TakenDown {
        /// Whether it is.
        gone: bool,
    },
    /// A worker that was replaced is gone.
    Reaped,
    /// The worker was asked something.
    Asked,
    /// It has answered.
    Answered,
    /// The time of [`Machine::next`] has come.
    Time {
        /// Whether requests wait that no worker has read.
        waiting: bool,
        /// The requests that the worker is answering.
        in_hand: Vec<u64>,
    },
    /// The mounts may have changed.
    MountsChanged,
    /// Somebody wants to know now whether the mount is used.
    LookNow,
    /// Whether it is used.
    Looked {
        /// Whether it is.
        used: bool,
        /// How soon to look again, when it may be used where no event comes from.
        again: Option<Duration>,
    },
    /// It could not be found out.
    LookFailed,
    /// Whether the keeper could make way for another.
    Released(bool),
}

/// What is to be done about it, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Start a worker on the connection; [`Event::Serving`] or [`Event::NotStarted`] tells what
    /// became of it.
    Start,
    /// Ask the worker anything.
    Ask,
    /// Kill the worker, and wait for its end beside the next one: [`Event::Reaped`].
    Replace,
    /// Have the kernel send again what the worker that is gone had read.
    Resend,
    /// Close the connection: there will be no other worker, for this reason.
    GiveUp(String),
    /// Find out whether the mount is used.
    Look,
    /// Make way for another keeper of the same images.
    Release,
    /// The end.
    End,
}

/// Whether there is somebody to answer requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Service {
    /// There is.
    Serving,
    /// A worker is being started.
    Starting,
    /// One will be, then.
    Waiting(Instant),
    /// There will be none any more: why. Requests are answered "not connected" by the kernel.
    Failed(String),
    /// The file system is gone.
    Ended,
}

/// All that a keeper goes by.
#[derive(Debug)]
pub(super) struct Machine {
    service: Service,
    /// Whether the kernel lets another worker take over.
    replaceable: bool,
    restarts: Restarts,
    suspects: Suspects,
    /// How many workers were replaced and are not gone yet.
    departed: usize,
    /// Whether new users start a keeper of their own.
    released: bool,
    /// When to look whether the mount still has users.
    look: Option<Instant>,
    /// When to look whether requests are answered.
    check: Instant,
    /// Since when the worker owes an answer.
    asked: Option<Instant>,
    /// Since when requests are known to be in hand.
    in_hand: BTreeMap<u64, Instant>,
}

impl Machine {
    /// For a worker that serves already, or is to be started.
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
            // Who had it mounted may be gone before he attached it anywhere.
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

    /// Whether the worker may be ended for a moment: there is one, and no other that the next
    /// program could not wait for.
    pub(super) fn can_be_upgraded(&self) -> bool {
        self.replaceable && self.service == Service::Serving && self.departed == 0
    }

    /// Whether the worker owes an answer.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// What the next worker is told of requests that ended others.
    pub(super) fn suspects(&self) -> &Suspects {
        &self.suspects
    }

    /// Since when the worker has not answered; `None` while it does. `in_hand`: the requests that
    /// it is answering.
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

    /// What is to be done.
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
                // What its last threads had read was not sent again when the others' was.
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
            // Somebody is about to use it.
            Event::Released(false) => self.look_at(now + PAUSE),
            Event::Ended { .. } => Vec::new(),
        }
    }

    /// Nobody sees the mount in the namespaces that are looked at. It continues in others, if it is
    /// used there, until the kernel tells the worker that it ends; where there is none, that is not
    /// told.
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

    /// Nothing is owed any more: by an answer, or because there is another worker.
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
                self.suspects.ended(in_hand, &End::Dying);
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
            // It may not have been a request: the next worker does nothing else, and is told by
            // that.
            self.suspects.do_not_push();
        } else {
            self.suspects.ended(in_hand, &end);
        }
        actions.extend(self.after(now, &end, why));
        actions
    }

    /// Decides what comes after a worker that is gone.
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
                // Its users may be gone already.
                self.look_at(now + PAUSE);
                vec![Action::GiveUp(why)]
            }
        }
    }
}
