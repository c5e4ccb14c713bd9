//! Detects programs that read many small files one after the other: a copy of a tree, a search, an
//! import of a package.
//!
//! The files of a directory have consecutive inode numbers, in the order in which the directory is
//! read. A program that has read some files in that order will probably continue.

use std::ops::Range;
use std::sync::PoisonError;

use crate::sync::Mutex;

/// How many walks are followed at a time.
const WALKS: usize = 4;
/// Largest distance between the inode numbers of two files in a walk: directories and symlinks lie
/// between them.
const STEP: u32 = 8;
/// How many steps make a walk, and how many after one whose files were prepared in vain.
const STEPS: u32 = 2;
const MANY_STEPS: u32 = 1024;
/// How many prepared files may be requested anyway, because the request was on its way.
const CROSSED: u32 = 4;
/// How many inodes to prepare at first, and at most. The number doubles after each success.
const FIRST: u32 = 8;
const MOST: u32 = 128;

/// One walk.
#[derive(Debug, Clone, Copy, Default)]
struct Walk {
    /// The last inode that was read.
    head: u32,
    /// How many steps are missing until it is a walk.
    wanting: u32,
    /// The last inode that is prepared.
    made: u32,
    /// The first inode that must not be prepared yet.
    end: u32,
    /// How many inodes were requested although they were prepared.
    crossed: u32,
    /// How many to prepare next; 0 if this is not a walk yet.
    window: u32,
}

/// The most recent walks.
#[derive(Debug, Default)]
pub(super) struct Walks(Mutex<[Walk; WALKS]>);

impl Walks {
    /// Records that a file is read from its beginning; `small` means that it could have been
    /// prepared. Returns the inodes to prepare, if any.
    pub(super) fn step(&self, ino: u32, small: bool) -> Option<Range<u32>> {
        let mut walks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let goes_on = |walk: &Walk| {
            walk.window > 0
                && walk.head < ino
                && ino <= walk.head.max(walk.end).saturating_add(STEP)
        };
        let known = walks.iter().position(goes_on);
        // The most recent one comes first.
        walks[..=known.unwrap_or(WALKS - 1)].rotate_right(1);
        let walk = &mut walks[0];
        if known.is_none() {
            *walk = Walk {
                head: ino,
                wanting: STEPS,
                window: FIRST,
                ..Walk::default()
            };
            return None;
        }
        if small && ino <= walk.made {
            walk.crossed += 1;
        }
        if walk.crossed > CROSSED {
            *walk = Walk {
                wanting: MANY_STEPS,
                window: FIRST,
                ..Walk::default()
            };
        }
        walk.head = ino;
        walk.wanting = walk.wanting.saturating_sub(1);
        if walk.wanting > 0 || ino < walk.end {
            return None;
        }
        let range = ino.saturating_add(1)..ino.saturating_add(1).saturating_add(walk.window);
        (walk.end, walk.window, walk.crossed) = (range.end, (walk.window * 2).min(MOST), 0);
        Some(range)
    }

    /// Records that an inode is prepared, or not worth it. Returns the next one to prepare: the
    /// reader may be faster, and be reading the next but one already.
    pub(super) fn made(&self, ino: u32) -> u32 {
        let mut walks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(walk) = walks
            .iter_mut()
            .find(|walk| ino < walk.end && walk.end - ino <= MOST)
        else {
            return u32::MAX;
        };
        walk.made = ino;
        if walk.head > ino {
            walk.head.saturating_add(2)
        } else {
            ino + 1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_on_is_expected_to() {
        let walks = Walks::default();
        assert_eq!((walks.step(100, true), walks.step(101, true)), (None, None));
        assert_eq!(walks.step(103, true), Some(104..112));
        // What is ready is not read from here. It continues behind it, or not far behind.
        assert_eq!(walks.step(113, true), Some(114..130));
        assert_eq!(walks.step(130, true), Some(131..163));
        assert_eq!((walks.made(131), walks.made(132)), (132, 133));
        assert_eq!((walks.step(140, true), walks.made(133)), (None, 142));
    }

    #[test]
    fn what_jumps_is_no_walk() {
        let walks = Walks::default();
        for ino in [500, 3, 900, 40, 499, 2, 899, 39, 1500, 1400, 1300, 1200] {
            assert_eq!(walks.step(ino, true), None, "{ino}");
        }
        assert_eq!(walks.made(1200), u32::MAX);
    }

    #[test]
    fn walks_beside_each_other() {
        let walks = Walks::default();
        let found: Vec<_> = (0..3)
            .flat_map(|n| [1000 + n, 2000 + n, 3000 + n])
            .filter_map(|ino| walks.step(ino, true))
            .collect();
        assert_eq!(found, [1003..1011, 2003..2011, 3003..3011]);
    }

    #[test]
    fn what_is_in_vain_is_not_done_for_long() {
        let walks = Walks::default();
        let mut made = 0;
        for ino in 100..1000 {
            if let Some(range) = walks.step(ino, true) {
                made += range.len();
                for ino in range {
                    walks.made(ino);
                }
            }
        }
        assert!((1..=3 * FIRST as usize).contains(&made), "{made}");
    }

    #[test]
    fn what_is_too_large_was_not_in_vain() {
        let walks = Walks::default();
        let mut most = 0;
        for ino in 100..1000 {
            let Some(range) = walks.step(ino, false) else {
                continue;
            };
            most = most.max(range.len());
            for ino in range {
                walks.made(ino);
            }
        }
        assert_eq!(most, MOST as usize);
    }

    #[test]
    fn the_last_inode_has_no_next() {
        let walks = Walks::default();
        for ino in u32::MAX - 3..=u32::MAX {
            walks.step(ino, true);
            walks.made(ino);
        }
    }
}
