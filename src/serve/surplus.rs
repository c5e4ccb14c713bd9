//! Fills the kernel's page cache with content that was decoded, or is cheap to decode, before it is
//! requested.
//!
//! A frame is decoded once, not once for each of its pages; while the worker is idle, it decodes
//! neighbouring frames too. A program that reads one small file after the other finds the next ones
//! in the cache.

#[cfg(all(test, shuttle))]
mod schedules;

use std::ops::Range;
use std::sync::Arc;

use bfc::format::{S_IFMT, S_IFREG};
use fuser::INodeNo;

use super::in_hand::InHand;
use super::stats::Metrics;
use super::walk::Walks;
use crate::fs::{Decoded, Rootfs};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

/// Most tasks in the queue; further ones are dropped, which only costs time.
const QUEUE: usize = if cfg!(shuttle) { 1 } else { 16 };
/// The kernel accepts whole pages only.
const PAGE: u64 = 4096;
/// How much to decode around a read while the worker is idle, bytes.
const AROUND: u64 = 128 << 10;
/// How much to fetch from the disk around a read, in bytes of the file.
const FETCH: u64 = 2 << 20;

/// Files up to this length are decoded ahead of requests, and so much of them at a time, bytes.
/// Larger files are read in several pieces.
const SMALL: u64 = 128 << 10;
const READY: u64 = 2 << 20;

/// Stores bytes of an inode, from an offset on, in the page cache. A refusal (the inode was
/// forgotten, or memory is short) only loses the page.
pub(super) type Store<'a> = dyn Fn(INodeNo, u64, &[u8]) + 'a;

/// Work for the pusher.
enum Task {
    /// Decoded content.
    Frame(Frame),
    /// Small files, by inode number.
    Files(Range<u32>),
}

/// Decoded bytes to push.
struct Frame {
    ino: INodeNo,
    /// Offset in the file of the first byte.
    offset: u64,
    bytes: Vec<u8>,
    /// The part that the kernel has requested itself.
    wanted: Range<usize>,
}

/// Takes surplus bytes from the threads that answer requests.
pub(super) struct Surplus {
    tasks: SyncSender<Task>,
    walks: Arc<Walks>,
    /// How many reads are being answered.
    reads: AtomicUsize,
}

/// A read that is being answered.
pub(super) struct Reading<'a>(&'a Surplus);

impl Reading<'_> {
    /// Whether no other read is being answered: if several are, the threads are busy.
    fn is_alone(&self) -> bool {
        self.0.reads.load(Ordering::Relaxed) == 1
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.reads.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The other end, which pushes them in a thread of its own: a store waits for pages that stay
/// locked until a read is answered, so a thread that answers reads must not push.
pub(super) struct Pusher {
    tasks: Receiver<Task>,
    rootfs: Arc<Rootfs>,
    walks: Arc<Walks>,
    metrics: Arc<Metrics>,
    in_hand: Arc<InHand>,
}

/// The two ends.
pub(super) fn channel(
    rootfs: Arc<Rootfs>,
    metrics: Arc<Metrics>,
    in_hand: Arc<InHand>,
) -> (Surplus, Pusher) {
    let (sender, receiver) = sync_channel(QUEUE);
    let walks = Arc::new(Walks::default());
    let pusher = Pusher {
        tasks: receiver,
        rootfs,
        walks: walks.clone(),
        metrics,
        in_hand,
    };
    (
        Surplus {
            tasks: sender,
            walks,
            reads: AtomicUsize::new(0),
        },
        pusher,
    )
}

impl Surplus {
    /// Held while a read is answered.
    pub(super) fn reading(&self) -> Reading<'_> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        Reading(self)
    }

    /// Passes on what `buffer` holds besides the requested bytes, if that is at least a page, and
    /// the files that will probably be read next.
    pub(super) fn push(
        &self,
        reading: &Reading<'_>,
        ino: INodeNo,
        decoded: Decoded,
        buffer: &mut Vec<u8>,
    ) {
        let Decoded { offset, wanted } = decoded;
        if offset == 0
            && wanted.start == 0
            && reading.is_alone()
            && let Ok(number) = u32::try_from(ino.0)
            && let Some(files) = self.walks.step(number, (wanted.len() as u64) < SMALL)
        {
            let _ = self.tasks.try_send(Task::Files(files));
        }
        if (buffer.len() - wanted.len()) as u64 >= PAGE {
            let _ = self.tasks.try_send(Task::Frame(Frame {
                ino,
                offset,
                bytes: std::mem::take(buffer),
                wanted,
            }));
        }
    }
}

impl Pusher {
    /// Pushes until the file system is gone.
    pub(super) fn run(&self, store: &Store<'_>) {
        let store = &|ino, offset: u64, bytes: &[u8]| {
            if !bytes.is_empty() && offset.is_multiple_of(PAGE) {
                store(ino, offset, bytes);
            }
        };
        let mut next = self.tasks.recv().ok();
        while let Some(task) = next {
            let decoded = match task {
                Task::Frame(frame) => Some(push(store, &frame)),
                Task::Files(files) => {
                    self.files(store, files);
                    None
                }
            };
            next = match (self.tasks.try_recv(), decoded) {
                (Ok(task), _) => Some(task),
                (Err(TryRecvError::Disconnected), _) => None,
                (Err(TryRecvError::Empty), decoded) => {
                    if let Some((ino, decoded)) = decoded {
                        self.around(store, ino, decoded);
                    }
                    self.tasks.recv().ok()
                }
            };
        }
    }

    /// Decodes small files ahead of requests.
    fn files(&self, store: &Store<'_>, files: Range<u32>) {
        let _in_hand = self.in_hand.begin_push();
        let (mut bytes, mut left, mut ino) = (Vec::new(), READY, files.start);
        while ino < files.end {
            // A failure here shows up again when the file is requested.
            let Ok(inode) = self.rootfs.inode(ino) else {
                return;
            };
            if inode.mode & S_IFMT == S_IFREG && (1..SMALL).contains(&inode.size) {
                bytes.clear();
                left = left.saturating_sub(inode.size);
                #[allow(clippy::cast_possible_truncation)] // below SMALL
                if left == 0
                    || self
                        .rootfs
                        .read(ino, 0, inode.size as usize, &mut bytes)
                        .is_err()
                {
                    return;
                }
                self.metrics.read(bytes.len(), bytes.len());
                store(INodeNo(ino.into()), 0, &bytes);
            }
            ino = self.walks.made(ino);
        }
    }

    /// Fetches and decodes what surrounds `decoded`.
    fn around(&self, store: &Store<'_>, ino: INodeNo, decoded: Range<u64>) {
        let _in_hand = self.in_hand.begin_push();
        let Ok(number) = u32::try_from(ino.0) else {
            return;
        };
        // A failure here shows up again, and is reported, when the content is requested.
        let _ = self
            .rootfs
            .will_need(number, decoded.start / FETCH * FETCH, FETCH);
        let start = decoded.start / AROUND * AROUND;
        for range in [
            start..decoded.start,
            decoded.end..(start + AROUND).max(decoded.end),
        ] {
            let mut bytes = Vec::new();
            #[allow(clippy::cast_possible_truncation)] // at most AROUND
            let len = (range.end - range.start) as usize;
            if len > 0
                && self
                    .rootfs
                    .read(number, range.start, len, &mut bytes)
                    .is_ok()
            {
                store(ino, range.start, &bytes);
            }
        }
    }
}

/// Stores the surplus of a frame, and returns which range is decoded.
fn push(store: &Store<'_>, frame: &Frame) -> (INodeNo, Range<u64>) {
    let end = frame.bytes.len();
    store(frame.ino, frame.offset, &frame.bytes[..frame.wanted.start]);
    store(
        frame.ino,
        frame.offset + frame.wanted.end as u64,
        &frame.bytes[frame.wanted.end..],
    );
    (frame.ino, frame.offset..frame.offset + end as u64)
}
