//! The machine against a simple world: whatever happens in whatever order, what a keeper promises
//! holds.

#![allow(clippy::expect_used, clippy::panic)]
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::machine::{Action, Event, HUNG, LONG_PAUSE, Machine, PAUSE, Service};
use super::restarts::End;

/// What the world does to a keeper.
#[derive(Debug, Clone)]
enum Happening {
    /// The worker crashes, is killed, or is killed and cannot go yet.
    Crash,
    Kill,
    KillHalf,
    /// Somebody stops it, and lets it go on.
    Stop,
    Continue,
    /// No worker can be started from now on, or it can again.
    Starting(bool),
    /// A replaced worker goes at last.
    Depart,
    /// The mount gets or loses its users.
    Users(bool),
    /// Somebody holds the lock of the directory.
    Locked(bool),
    /// The kernel ends the connection.
    Unmount,
    /// A command wants to know what was counted.
    Stats,
    /// A command wants the worker ended.
    Upgrade,
    /// Requests come, and wait if nobody takes them.
    Request,
    /// Time passes.
    Wait(u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        2 => Just(Happening::Crash),
        3 => Just(Happening::Kill),
        2 => Just(Happening::KillHalf),
        2 => Just(Happening::Stop),
        2 => Just(Happening::Continue),
        1 => any::<bool>().prop_map(Happening::Starting),
        2 => Just(Happening::Depart),
        1 => any::<bool>().prop_map(Happening::Users),
        1 => any::<bool>().prop_map(Happening::Locked),
        1 => Just(Happening::Unmount),
        2 => Just(Happening::Stats),
        1 => Just(Happening::Upgrade),
        3 => Just(Happening::Request),
        6 => (1_u64..20_000).prop_map(Happening::Wait),
    ]
}

/// A worker of the world.
#[derive(Debug, Default, Clone, Copy)]
struct Running {
    stopped: bool,
    owes: bool,
}

/// A world with one keeper.
struct World {
    machine: Machine,
    now: Instant,
    worker: Option<Running>,
    departed: usize,
    can_start: bool,
    used: bool,
    locked: bool,
    released: bool,
    unmounted: bool,
    connected: bool,
    /// Whether a request waits that nobody has answered.
    waiting: bool,
    ended: bool,
    gave_up: u32,
    deaths: u32,
}

impl World {
    fn new(replaceable: bool) -> Self {
        let now = Instant::now();
        Self {
            machine: Machine::new(now, true, replaceable, 0),
            now,
            worker: Some(Running::default()),
            departed: 0,
            can_start: true,
            used: true,
            locked: false,
            released: false,
            unmounted: false,
            connected: true,
            waiting: false,
            ended: false,
            gave_up: 0,
            deaths: 0,
        }
    }

    fn tell(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.machine.on(self.now, event) {
                assert!(!self.ended, "{action:?} after the end");
                events.extend(self.perform(action));
            }
        }
        self.check();
    }

    fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Start => {
                assert!(self.worker.is_none(), "two workers on one connection");
                assert!(self.connected, "a worker without a connection");
                if !self.can_start {
                    self.deaths += 1;
                    return Some(Event::NotStarted("no memory".to_owned()));
                }
                self.worker = Some(Running::default());
                Some(Event::Serving)
            }
            Action::Ask => {
                let worker = self.worker.as_mut().expect("somebody to ask");
                worker.owes = true;
                Some(Event::Asked)
            }
            Action::Replace => {
                assert!(self.worker.take().is_some(), "nobody to replace");
                self.departed += 1;
                self.deaths += 1;
                None
            }
            Action::Resend => {
                assert!(self.connected && self.worker.is_some());
                None
            }
            Action::GiveUp(_) => {
                assert!(
                    self.worker.is_none() && self.connected,
                    "given up while it is served, or twice"
                );
                self.connected = false;
                self.gave_up += 1;
                None
            }
            Action::Look => Some(Event::Looked {
                used: self.used,
                again: Some(LONG_PAUSE),
            }),
            Action::Release => {
                assert!(!self.used, "released while it is used");
                let done = !self.locked;
                self.released |= done;
                Some(Event::Released(done))
            }
            Action::End => {
                assert!(
                    self.unmounted || (!self.connected && !self.used && self.released),
                    "the end of a mount that is used"
                );
                self.ended = true;
                None
            }
        }
    }

    /// What holds at any time.
    fn check(&self) {
        match self.machine.service() {
            Service::Serving => assert!(self.worker.is_some()),
            Service::Waiting(_) | Service::Starting | Service::Failed(_) => {
                assert!(self.worker.is_none())
            }
            Service::Ended => assert!(self.ended),
        }
        assert_eq!(
            matches!(self.machine.service(), Service::Failed(_)),
            !self.connected && !self.ended
        );
        // Something will happen as long as nobody serves and somebody may.
        assert!(
            self.ended || self.machine.next().is_some() || !self.connected || self.worker.is_some()
        );
    }

    /// Time passes; the worker, unless it is stopped, answers what comes.
    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        for _ in 0..100_000 {
            self.answer();
            match self.machine.next().filter(|at| *at <= until && !self.ended) {
                Some(at) => {
                    self.now = self.now.max(at);
                    self.tell(Event::Time {
                        waiting: self.waiting,
                        in_hand: self.in_hand(),
                    });
                }
                None => {
                    self.now = until;
                    return;
                }
            }
        }
        panic!("time stands still");
    }

    /// What a worker that was stopped has not answered.
    fn in_hand(&self) -> Vec<u64> {
        if self.waiting && self.worker.is_some_and(|w| w.stopped) {
            vec![2]
        } else {
            Vec::new()
        }
    }

    fn silent_since(&self) -> Option<Instant> {
        self.machine.not_answering_since(self.now, &self.in_hand())
    }

    fn answer(&mut self) {
        if let Some(worker) = self.worker.as_mut().filter(|w| !w.stopped) {
            self.waiting = false;
            if std::mem::take(&mut worker.owes) {
                self.tell(Event::Answered);
            }
        }
    }

    fn die(&mut self, end: End) {
        if self.worker.is_some() && !self.ended {
            // The shell keeps one that is dying until it is told to replace it.
            if end != End::Dying {
                self.worker = None;
                self.deaths += 1;
            }
            self.tell(Event::Ended {
                end,
                in_hand: vec![2, 4],
                pushing: false,
            });
        }
    }

    fn happen(&mut self, happening: &Happening) {
        if self.ended {
            return;
        }
        match happening {
            Happening::Crash => self.die(End::Status(ExitStatus::from_raw(6))),
            Happening::Kill => self.die(End::Status(ExitStatus::from_raw(9))),
            Happening::KillHalf => self.die(End::Dying),
            Happening::Stop => self.worker.iter_mut().for_each(|w| w.stopped = true),
            Happening::Continue => self.worker.iter_mut().for_each(|w| w.stopped = false),
            Happening::Starting(can) => self.can_start = *can,
            Happening::Depart if self.departed > 0 => {
                self.departed -= 1;
                self.tell(Event::Reaped);
            }
            Happening::Depart => {}
            Happening::Users(used) => {
                // Nobody comes to what is released.
                self.used = *used && (!self.released || self.used);
                self.tell(Event::MountsChanged);
            }
            Happening::Locked(locked) => self.locked = *locked,
            Happening::Unmount => {
                (self.unmounted, self.used) = (true, false);
                self.die(End::Status(ExitStatus::from_raw(0)));
            }
            Happening::Stats if !self.machine.is_asked() => {
                if let Some(worker) = &mut self.worker {
                    worker.owes = true;
                    self.tell(Event::Asked);
                }
            }
            Happening::Stats => {}
            Happening::Upgrade if self.machine.can_be_upgraded() => {
                assert!(self.worker.take().is_some());
                self.tell(Event::TakenDown { gone: true });
            }
            Happening::Upgrade => {}
            Happening::Request => self.waiting = true,
            Happening::Wait(ms) => self.wait(Duration::from_millis(*ms)),
        }
        self.answer();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_keeper_keeps_its_promises(
        replaceable: bool,
        happenings in prop::collection::vec(happening(), 0..60),
    ) {
        let mut world = World::new(replaceable);
        for happening in &happenings {
            world.happen(happening);
            // Ten crashes or starts in vain come before it gives up, unless no other worker can
            // take over.
            prop_assert!(world.gave_up == 0 || world.deaths > 10 || !replaceable);
        }
        // Let alone, with workers that live, requests are answered: a worker that hangs is
        // replaced.
        world.can_start = true;
        if !world.ended && world.connected && replaceable {
            world.waiting = true;
            world.wait(4 * HUNG);
            prop_assert!(!world.waiting || !world.connected, "{:?}", world.machine);
            let since = world.silent_since();
            prop_assert!(!world.connected || since.is_none(), "{since:?}");
        }
        // Unmounted, it ends: told by the kernel, or by the mounts when there is nobody whom the
        // kernel could tell.
        (world.locked, world.used) = (false, false);
        world.tell(Event::MountsChanged);
        world.worker.iter_mut().for_each(|w| w.stopped = false);
        world.happen(&Happening::Unmount);
        for _ in 0..3 {
            world.wait(4 * LONG_PAUSE + PAUSE);
            // A worker that takes over finds the connection gone.
            world.happen(&Happening::Unmount);
        }
        prop_assert!(world.ended, "{:?}", world.machine);
    }
}

#[test]
fn a_worker_that_is_stopped_is_told_of_and_replaced_when_requests_wait() {
    let mut world = World::new(true);
    world.happen(&Happening::Stop);
    world.wait(Duration::from_secs(60));
    // Nobody wants anything from it.
    assert_eq!((world.machine.restarts(), world.silent_since()), (0, None));
    world.happen(&Happening::Stats);
    world.wait(Duration::from_secs(2));
    assert!(world.silent_since().is_some());
    world.happen(&Happening::Request);
    world.wait(2 * HUNG);
    assert_eq!((world.machine.restarts(), world.silent_since()), (1, None));
    assert!(!world.waiting);
}

#[test]
fn where_no_other_worker_can_take_over_a_stopped_one_stays_and_a_dead_one_is_given_up_at_once() {
    let mut world = World::new(false);
    world.happen(&Happening::Stop);
    world.happen(&Happening::Request);
    world.wait(Duration::from_secs(60));
    assert!(world.silent_since().is_some());
    world.happen(&Happening::Continue);
    assert_eq!(world.silent_since(), None);
    assert!(!world.machine.can_be_upgraded());
    world.happen(&Happening::Kill);
    let Service::Failed(why) = world.machine.service() else {
        panic!("{:?}", world.machine)
    };
    assert!(why.contains("6.9"), "{why}");
}

#[test]
fn a_request_that_a_disk_does_not_answer_is_told_of_and_nothing_is_replaced() {
    let mut world = World::new(true);
    let stuck = |world: &mut World, seconds: u64| {
        for _ in 0..seconds {
            world.now += Duration::from_secs(1);
            world.tell(Event::Time {
                waiting: true,
                in_hand: vec![2],
            });
            world.answer();
        }
    };
    stuck(&mut world, 5);
    assert_eq!(world.machine.not_answering_since(world.now, &[2]), None);
    stuck(&mut world, 60);
    assert!(world.machine.not_answering_since(world.now, &[2]).is_some());
    assert_eq!((world.machine.restarts(), world.departed), (0, 0));
}
