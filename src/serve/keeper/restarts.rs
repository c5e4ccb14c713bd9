//! Decides when to start another worker after one has died, and when to give up.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// A worker that lived this long did not die because of its start.
const HEALTHY: Duration = Duration::from_secs(2);
/// Deaths in a row, each soon after the start, after which no other worker is started.
const MAX_CRASHES: u32 = 10;
/// The same for workers that were killed, by the out-of-memory killer or by a user, which says
/// little about the next.
const MAX_KILLS: u32 = 200;
/// Longest wait before the next start.
const MAX_DELAY: Duration = Duration::from_secs(2);
const SIGKILL: i32 = 9;

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The process has ended.
    Status(ExitStatus),
    /// It does not answer requests any more, and waits in the kernel for an answer to one of them.
    Dying,
    /// It ended before it served.
    NotStarted,
}

impl End {
    /// Whether the worker itself caused its end.
    pub(super) fn is_crash(&self) -> bool {
        match self {
            End::Status(status) => status.signal() != Some(SIGKILL),
            End::Dying => false,
            End::NotStarted => true,
        }
    }
}

/// The deaths of workers so far.
#[derive(Debug)]
pub(super) struct Restarts {
    /// How often a worker was started again.
    pub(super) total: u64,
    started: Instant,
    crashes: u32,
    kills: u32,
}

impl Restarts {
    /// `total` is how often a worker was started again before.
    pub(super) fn new(now: Instant, total: u64) -> Self {
        Self {
            total,
            started: now,
            crashes: 0,
            kills: 0,
        }
    }

    /// A worker was started.
    pub(super) fn started(&mut self, now: Instant) {
        self.total += 1;
        self.started = now;
    }

    /// A request is known to have ended the workers, and ends no more: the next starts without a
    /// delay, and its deaths are counted anew.
    pub(super) fn explained(&mut self) {
        (self.crashes, self.kills) = (0, 0);
    }

    /// The worker died, or could not be started. How long to wait before the next; `None` to give
    /// up.
    pub(super) fn died(&mut self, now: Instant, end: &End) -> Option<Duration> {
        if now.duration_since(self.started) >= HEALTHY {
            (self.crashes, self.kills) = (0, 0);
        }
        if !end.is_crash() {
            self.kills += 1;
            return (self.kills <= MAX_KILLS)
                .then(|| Duration::from_millis(2 * u64::from(self.kills - 1)).min(MAX_DELAY));
        }
        self.crashes += 1;
        // First without a delay, then after 10, 20, 40 milliseconds...
        let delay = if self.crashes == 1 {
            0
        } else {
            10 << (self.crashes - 2)
        };
        (self.crashes <= MAX_CRASHES).then(|| Duration::from_millis(delay).min(MAX_DELAY))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    static CRASHED: LazyLock<End> = LazyLock::new(|| End::Status(ExitStatus::from_raw(11)));
    static KILLED: LazyLock<End> = LazyLock::new(|| End::Status(ExitStatus::from_raw(SIGKILL)));

    #[test]
    fn a_worker_that_dies_at_once_again_and_again_is_given_up() {
        let now = Instant::now();
        let mut restarts = Restarts::new(now, 0);
        let mut waited = Duration::ZERO;
        let mut deaths = 0;
        while let Some(delay) = restarts.died(now + waited, &CRASHED) {
            waited += delay;
            deaths += 1;
            restarts.started(now + waited);
        }
        assert_eq!(deaths, MAX_CRASHES);
        assert!(
            waited > Duration::from_secs(2) && waited < Duration::from_secs(20),
            "{waited:?}"
        );
    }

    #[test]
    fn one_that_dies_now_and_then_is_always_started_again() {
        let mut now = Instant::now();
        let mut restarts = Restarts::new(now, 0);
        for _ in 0..100 {
            now += HEALTHY;
            assert_eq!(restarts.died(now, &CRASHED), Some(Duration::ZERO));
            restarts.started(now);
        }
        assert_eq!(restarts.total, 100);
    }

    #[test]
    fn fifty_kills_in_a_row_hold_nobody_up_for_long() {
        let now = Instant::now();
        let mut restarts = Restarts::new(now, 0);
        let waits = (0..50).map(|_| restarts.died(now, &KILLED).unwrap());
        assert!(waits.max().unwrap() < Duration::from_millis(100));
    }
}
