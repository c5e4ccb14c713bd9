//! Decodes what will probably be read next, in a thread of its own.
//!
//! Who reads a content from one end to the other finds the next frames decoded: of several
//! processors, one decodes while the other copies. Who jumps about in it finds the rest of the
//! frame that was decoded for them, and what surrounds it, in the kernel's page cache.

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use fuser::INodeNo;
use lru::LruCache;

use super::frames::{Content, Frames};
use crate::fs::Rootfs;
use crate::serve::in_hand::InHand;
use crate::serve::surplus::Store;
use crate::sync::Mutex;
use crate::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Most tasks in the queue; further ones are dropped, which only costs time.
const QUEUE: usize = 16;
/// How many contents are followed at a time.
const STREAMS: usize = 16;
/// How far from the end of what was read a reader may go on, bytes: requests that are under way at
/// the same time overtake each other.
const NEAR: u64 = 512 << 10;
/// How many requests make a reader who goes on.
const STEPS: u32 = 2;
/// How far to decode ahead, bytes.
const AHEAD: u64 = 512 << 10;
/// How much to decode around what is read at random, bytes.
const AROUND: u64 = 128 << 10;
/// The kernel accepts whole pages only.
const PAGE: u64 = 4096;

/// Work for the thread.
enum Task {
    /// Decode the frames of this range.
    Ahead(Content, Range<u64>),
    /// Put the frame into the page cache of which this range was read, and what surrounds it.
    Around(INodeNo, u64, Content, Range<u64>),
}

/// What is known of the readers of a content.
struct Stream {
    /// Where they are.
    end: u64,
    /// How many requests went on where another one was.
    steps: u32,
    /// Up to where it is being decoded.
    ahead: u64,
}

/// The end of the threads that answer requests.
pub(super) struct Ahead {
    tasks: SyncSender<Task>,
    streams: Mutex<LruCache<u32, Stream>>,
}

/// The end of the thread that decodes.
pub(in super::super) struct Decoding {
    tasks: Receiver<Task>,
    rootfs: Arc<Rootfs>,
    frames: Arc<Frames>,
    in_hand: Arc<InHand>,
}

/// The two ends.
pub(super) fn channel(
    rootfs: Arc<Rootfs>,
    frames: Arc<Frames>,
    in_hand: Arc<InHand>,
) -> (Ahead, Decoding) {
    let (sender, receiver) = sync_channel(QUEUE);
    let streams = std::num::NonZeroUsize::MIN.saturating_add(STREAMS - 1);
    (
        Ahead {
            tasks: sender,
            streams: Mutex::new(LruCache::new(streams)),
        },
        Decoding {
            tasks: receiver,
            rootfs,
            frames,
            in_hand,
        },
    )
}

impl Ahead {
    /// A range of a content that has several frames was read; the content begins at `start` of the
    /// device. `is_cached`: what is read of it stays in the kernel's page cache.
    pub(super) fn read(
        &self,
        ino: INodeNo,
        start: u64,
        content: Content,
        range: Range<u64>,
        is_cached: bool,
    ) {
        let task = {
            let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
            let known = streams.get_mut(&content.number);
            let near = |stream: &&mut Stream| {
                range.start <= stream.end.saturating_add(NEAR)
                    && range.end.saturating_add(NEAR) >= stream.end
            };
            match known.filter(near) {
                Some(stream) => {
                    stream.end = stream.end.max(range.end);
                    stream.steps += 1;
                    // The kernel reads a cached device ahead itself, in several requests at a time.
                    if is_cached || stream.steps < STEPS {
                        return;
                    }
                    let wanted = stream.end.saturating_add(AHEAD).min(content.size);
                    let from = stream.ahead.max(stream.end);
                    if wanted.saturating_sub(from) < AHEAD / 2 && wanted < content.size
                        || wanted <= from
                    {
                        return;
                    }
                    stream.ahead = wanted;
                    Task::Ahead(content, from..wanted)
                }
                None => {
                    let (end, ahead, steps) = (range.end, range.end, 0);
                    streams.put(content.number, Stream { end, steps, ahead });
                    if !is_cached || range.start == 0 {
                        return;
                    }
                    Task::Around(ino, start, content, range)
                }
            }
        };
        let _ = self.tasks.try_send(task);
    }
}

impl Decoding {
    /// Decodes until the file system is gone.
    pub(in super::super) fn run(&self, store: &Store<'_>) {
        let mut next = self.tasks.recv().ok();
        while let Some(task) = next {
            let _in_hand = self.in_hand.begin_push();
            let waiting = match task {
                Task::Ahead(content, range) => {
                    self.ahead(content, range);
                    None
                }
                Task::Around(ino, start, content, range) => {
                    self.around(ino, start, content, &range, store)
                }
            };
            next = waiting.or_else(|| self.tasks.recv().ok());
        }
    }

    fn ahead(&self, content: Content, range: Range<u64>) {
        let mut at = range.start;
        while at < range.end {
            // A failure shows up again when the content is requested.
            if self.frames.prepare(&self.rootfs, content, at).is_err() {
                return;
            }
            at = self.frames.at(content, at).end;
        }
    }

    /// Returns the next task, if one is waiting before all is done.
    fn around(
        &self,
        ino: INodeNo,
        start: u64,
        content: Content,
        read: &Range<u64>,
        store: &Store<'_>,
    ) -> Option<Task> {
        let window = read.start / AROUND * AROUND;
        let window = window..(window + AROUND).min(content.size);
        let first = self.frames.at(content, read.start).start;
        let near = std::iter::successors(Some(window.start), |at| {
            Some(self.frames.at(content, *at).end).filter(|next| *next < window.end)
        });
        // The frame that is decoded already comes first.
        for at in std::iter::once(first).chain(near.filter(|at| *at != first)) {
            let bytes = self.frames.prepare(&self.rootfs, content, at).ok()?;
            let frame = self.frames.at(content, at);
            let put = |part: Range<u64>| {
                #[allow(clippy::cast_possible_truncation)] // within a frame
                let (from, to) = (
                    (part.start - frame.start) as usize,
                    (part.end - frame.start) as usize,
                );
                if let Some(bytes) = bytes.get(from..to).filter(|bytes| !bytes.is_empty()) {
                    store(ino, start + part.start, bytes);
                }
            };
            put(frame.start..read.start.clamp(frame.start, frame.end));
            let behind = read.end.next_multiple_of(PAGE);
            put(behind.clamp(frame.start, frame.end)..frame.end);
            if let Ok(task) = self.tasks.try_recv() {
                return Some(task);
            }
        }
        None
    }
}
