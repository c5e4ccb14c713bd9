//! What the keeper finds in the page, whenever the worker ends: another thread reads it at any
//! moment.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use super::*;
use crate::sync::{check, thread};

const SUSPECTS: [u64; 4] = [12, 14, 22, 24];

/// What a worker does, without a place where another thread may run.
#[derive(Default)]
struct Seen(std::sync::Mutex<State>);

#[derive(Default)]
struct State {
    /// Requests that may end the worker now.
    handled: BTreeSet<u64>,
    /// These, and those that are about to be, or were just now.
    asked: BTreeSet<u64>,
    pushing: bool,
}

impl Seen {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Handles a request, as the adapter does.
    fn handle(&self, worker: &InHand, number: u64) {
        self.state().asked.insert(number);
        let begun = worker.begin(RESENT | number).unwrap();
        let suspects = |state: &State| {
            state
                .handled
                .iter()
                .filter(|n| SUSPECTS.contains(n))
                .count()
        };
        {
            let mut state = self.state();
            state.handled.insert(number);
            assert!(suspects(&state) <= 1, "{:?}", state.handled);
        }
        switch();
        self.state().handled.remove(&number);
        drop(begun);
        self.state().asked.remove(&number);
    }

    /// What the keeper reads, if the worker ends now.
    fn end(&self, page: &Page) {
        switch();
        let (found, pushing) = page.read();
        let state = self.state();
        let found_once: BTreeSet<_> = found.iter().copied().collect();
        assert_eq!(found.len(), found_once.len(), "{found:?}");
        assert!(
            state.handled.is_subset(&found_once),
            "{found:?}, not {:?}",
            state.handled
        );
        assert!(
            found_once.is_subset(&state.asked),
            "{found:?}, not {:?}",
            state.asked
        );
        let suspects = found.iter().filter(|number| SUSPECTS.contains(number));
        assert!(suspects.count() <= 1, "{found:?}");
        assert!(pushing || !state.pushing);
    }
}

#[test]
fn the_page_has_all_requests_that_are_handled_and_one_suspect_at_most() {
    check(300, || {
        let page = Page::new().unwrap();
        let worker = InHand::new(
            &page.as_fd().try_clone_to_owned().unwrap(),
            &Precautions {
                refused: vec![2],
                suspects: SUSPECTS.to_vec(),
                push: true,
            },
        )
        .unwrap();
        let seen = Seen::default();
        thread::scope(|scope| {
            for thread in [10, 20, 30] {
                let (worker, seen) = (&worker, &seen);
                scope.spawn(move || {
                    assert!(worker.begin(RESENT | 2).is_err());
                    for number in 1..5 {
                        seen.handle(worker, thread + number);
                    }
                });
            }
            scope.spawn(|| {
                for _ in 0..2 {
                    let begun = worker.begin_push();
                    seen.state().pushing = true;
                    switch();
                    seen.state().pushing = false;
                    drop(begun);
                }
            });
            for _ in 0..20 {
                seen.end(&page);
            }
        });
        assert_eq!(page.read(), (vec![], false));
    });
}
