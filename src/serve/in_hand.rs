//! Records which requests a worker has in hand, in a page that its keeper can read after the worker
//! has ended. Recording one takes two stores.

use std::cell::Cell;
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, compiler_fence};

use rustix::fs::{MemfdFlags, SealFlags};

use super::error::Result;
use super::protocol::Precautions;
use crate::error::Io;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard, switch, thread_local};
use crate::sys::memory::SharedWords;

/// Number of slots: more than a worker may have threads.
const SLOTS: usize = 512;
const LEN: usize = SharedWords::<SLOTS>::LEN;
/// The slot of the thread that decodes ahead of requests.
const PUSHER: usize = SLOTS - 1;
/// The kernel sets this bit in the number of a repeated request (`FUSE_UNIQUE_RESEND`).
const RESENT: u64 = 1 << 63;

thread_local! {
    /// The slot of this thread.
    static SLOT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The keeper's end.
#[derive(Debug)]
pub(super) struct Page(File);

impl Page {
    /// Makes a page that a worker can write to, but not shorten.
    pub(super) fn new() -> Result<Self> {
        let make = || -> io::Result<File> {
            let file = rustix::fs::memfd_create(
                c"lxcri-fs in hand",
                MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
            )?;
            rustix::fs::ftruncate(&file, LEN as u64)?;
            rustix::fs::fcntl_add_seals(
                &file,
                SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
            )?;
            Ok(file.into())
        };
        Ok(Self(make().map_err(Io::doing(
            "making a page to share with the worker",
        ))?))
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The requests in hand, and whether the worker is decoding ahead of requests.
    pub(super) fn read(&self) -> (Vec<u64>, bool) {
        let mut bytes = [0; LEN];
        // It is in memory. If it cannot be read, no request is a suspect.
        if self.0.read_exact_at(&mut bytes, 0).is_err() {
            return (Vec::new(), false);
        }
        let (words, _) = bytes.as_chunks::<8>();
        let word = |at: usize| words.get(at).map_or(0, |word| u64::from_ne_bytes(*word));
        (
            (0..PUSHER)
                .map(word)
                .filter(|unique| *unique != 0)
                .collect(),
            word(PUSHER) != 0,
        )
    }
}

/// The worker's end.
pub(super) struct InHand {
    slots: SharedWords<SLOTS>,
    next: AtomicUsize,
    refused: HashSet<u64>,
    suspects: HashSet<u64>,
    /// Held while a suspect is handled, so that the end of the worker identifies it.
    one_at_a_time: Mutex<()>,
}

/// A request that has ended other workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused;

impl InHand {
    /// # Errors
    /// [`Io`] when the page cannot be mapped.
    pub(super) fn new(page: &OwnedFd, precautions: &Precautions) -> Result<Self> {
        let slots = SharedWords::map(page.as_fd())
            .map_err(Io::doing("mapping the page that is shared with the keeper"))?;
        let set = |uniques: &[u64]| uniques.iter().map(|unique| unique & !RESENT).collect();
        let (refused, suspects) = (set(&precautions.refused), set(&precautions.suspects));
        Ok(Self {
            slots,
            next: AtomicUsize::new(0),
            refused,
            suspects,
            one_at_a_time: Mutex::default(),
        })
    }

    /// Records that this thread is handling a request, until the result is dropped.
    pub(super) fn begin(&self, unique: u64) -> std::result::Result<Begun<'_>, Refused> {
        let number = unique & !RESENT;
        let mut alone = None;
        if unique != number {
            if self.refused.contains(&number) {
                return Err(Refused);
            }
            if self.suspects.contains(&number) {
                alone = Some(
                    self.one_at_a_time
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner),
                );
            }
        }
        let at = SLOT.with(Cell::get).unwrap_or_else(|| {
            let at = self.next.fetch_add(1, Ordering::Relaxed).min(PUSHER);
            SLOT.with(|slot| slot.set(Some(at)));
            at
        });
        // There are fewer threads than slots.
        let slot = self.slots.all().get(at).filter(|_| at != PUSHER);
        Ok(Begun::note(slot, number, alone))
    }

    /// The same for decoding ahead of requests.
    pub(super) fn begin_push(&self) -> Begun<'_> {
        Begun::note(self.slots.all().get(PUSHER), 1, None)
    }
}

/// Something is in hand while this exists.
pub(super) struct Begun<'a> {
    slot: Option<&'a AtomicU64>,
    _alone: Option<MutexGuard<'a, ()>>,
}

impl<'a> Begun<'a> {
    fn note(slot: Option<&'a AtomicU64>, number: u64, alone: Option<MutexGuard<'a, ()>>) -> Self {
        if let Some(slot) = slot {
            switch();
            slot.store(number, Ordering::Relaxed);
            // The store must precede anything that may end the process.
            compiler_fence(Ordering::SeqCst);
        }
        Self {
            slot,
            _alone: alone,
        }
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            switch();
            slot.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, shuttle))]
mod schedules;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn in_hand(page: &Page, refused: Vec<u64>, suspects: Vec<u64>) -> InHand {
        let fd = page.as_fd().try_clone_to_owned().unwrap();
        InHand::new(
            &fd,
            &Precautions {
                refused,
                suspects,
                push: true,
            },
        )
        .unwrap()
    }

    #[test]
    fn the_keeper_sees_what_is_in_hand() {
        let page = Page::new().unwrap();
        let worker = in_hand(&page, vec![], vec![]);
        let begun = worker.begin(42).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _begun = worker.begin(RESENT | 44).unwrap();
                let _push = worker.begin_push();
                assert_eq!(page.read(), (vec![42, 44], true));
            });
        });
        assert_eq!(page.read(), (vec![42], false));
        drop(begun);
        assert_eq!(page.read(), (vec![], false));
    }

    #[test]
    fn only_what_is_sent_again_is_refused() {
        let page = Page::new().unwrap();
        let worker = in_hand(&page, vec![2], vec![4]);
        assert!(
            worker
                .begin(RESENT | 2)
                .is_err_and(|refused| refused == Refused)
        );
        assert!(worker.begin(2).is_ok() && worker.begin(RESENT | 6).is_ok());
    }

    #[test]
    fn suspects_are_handled_one_at_a_time_and_others_beside_them() {
        let page = Page::new().unwrap();
        let worker = in_hand(&page, vec![], vec![2, 4]);
        let first = worker.begin(RESENT | 2).unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| drop(worker.begin(RESENT | 4)));
            scope
                .spawn(|| drop(worker.begin(RESENT | 6)))
                .join()
                .unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!second.is_finished());
            // One that waits is not in hand.
            assert_eq!(page.read().0, [2]);
            drop(first);
        });
        assert!(page.read().0.is_empty());
    }

    #[test]
    fn a_worker_cannot_cut_the_page_short() {
        let page = Page::new().unwrap();
        assert!(rustix::fs::ftruncate(page.as_fd(), 0).is_err());
    }
}
