//! Records which requests were in hand when workers ended. A request that has ended several workers
//! is answered with an error; all others are served.

use std::collections::VecDeque;

use super::super::protocol::Precautions;
use super::restarts::End;

/// A request that was in hand at this many crashes is answered with EIO.
const MAX_CRASHES: u32 = 2;
/// The same for workers that were killed, by the out-of-memory killer, which a request may cause,
/// or by a user. Suspects are handled one at a time, so an innocent request would have to meet this
/// many kills in a row.
const MAX_KILLS: u32 = 8;
/// How many requests to remember: the oldest were answered long ago.
const MAX_SUSPECTS: usize = 1024;

#[derive(Debug, Clone, Copy)]
struct Suspect {
    /// The request's number, which is unique.
    unique: u64,
    crashes: u32,
    kills: u32,
}

impl Suspect {
    fn is_refused(&self) -> bool {
        self.crashes >= MAX_CRASHES || self.kills >= MAX_KILLS
    }
}

/// The requests that were in hand when workers ended.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    requests: VecDeque<Suspect>,
    no_push: bool,
}

impl Suspects {
    /// A worker ended while these requests were in hand. Whether one of them will be refused from
    /// now on.
    pub(super) fn ended(&mut self, in_hand: &[u64], end: &End) -> bool {
        let mut found = false;
        for &unique in in_hand {
            let known = self
                .requests
                .iter()
                .position(|s| s.unique == unique)
                .and_then(|at| self.requests.remove(at));
            let mut suspect = known.unwrap_or(Suspect {
                unique,
                crashes: 0,
                kills: 0,
            });
            let was_refused = suspect.is_refused();
            if end.is_crash() {
                suspect.crashes += 1
            } else {
                suspect.kills += 1
            }
            found |= suspect.is_refused() && !was_refused;
            self.requests.push_back(suspect);
        }
        let surplus = self.requests.len().saturating_sub(MAX_SUSPECTS);
        self.requests.drain(..surplus);
        self.no_push = false;
        found
    }

    /// A worker crashed while it was decoding ahead of requests.
    pub(super) fn do_not_push(&mut self) {
        self.no_push = true;
    }

    /// The precautions for the next worker.
    pub(super) fn precautions(&self) -> Precautions {
        let (refused, suspects): (Vec<Suspect>, Vec<Suspect>) =
            self.requests.iter().partition(|s| s.is_refused());
        let uniques = |requests: Vec<Suspect>| requests.into_iter().map(|s| s.unique).collect();
        Precautions {
            refused: uniques(refused),
            suspects: uniques(suspects),
            push: !self.no_push,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    #[test]
    fn a_request_that_has_ended_two_workers_is_refused_and_the_others_are_not() {
        let crashed = End::Status(ExitStatus::from_raw(6));
        let mut suspects = Suspects::default();
        assert!(!suspects.ended(&[2, 4, 6], &crashed));
        assert_eq!(
            (
                suspects.precautions().refused,
                suspects.precautions().suspects
            ),
            (vec![], vec![2, 4, 6])
        );
        assert!(suspects.ended(&[4, 8], &crashed));
        assert_eq!(
            (
                suspects.precautions().refused,
                suspects.precautions().suspects
            ),
            (vec![4], vec![2, 6, 8])
        );
    }

    #[test]
    fn kills_count_less_than_crashes() {
        let killed = End::Status(ExitStatus::from_raw(9));
        let mut suspects = Suspects::default();
        for _ in 1..MAX_KILLS {
            suspects.ended(&[2], &killed);
            assert!(suspects.precautions().refused.is_empty());
        }
        suspects.ended(&[2], &killed);
        assert_eq!(suspects.precautions().refused, [2]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut suspects = Suspects::default();
        for unique in 0..10_000 {
            suspects.ended(&[unique], &End::Dying);
        }
        assert_eq!(suspects.precautions().suspects.len(), MAX_SUSPECTS);
    }
}
