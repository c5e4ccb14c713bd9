//! What was decoded, or is cheap to decode, and nobody asked for yet goes into the kernel's page cache.
//!
//! A frame is decoded once, not once for each of its pages; and while there is nothing else to do, its neighbours are decoded too.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

use fuser::{INodeNo, Notifier};

use crate::fs::{Decoded, Rootfs};

/// How many decoded frames wait to be pushed at most; more are dropped, which costs time only.
const QUEUE: usize = 16;
/// The kernel takes whole pages.
const PAGE: u64 = 4096;
/// How much around a read is decoded while there is nothing else to do, bytes.
const AROUND: u64 = 128 << 10;
/// How much around a read is fetched from the disk, in bytes of the file.
const FETCH: u64 = 2 << 20;

/// Decoded bytes to push.
struct Frame {
    ino: INodeNo,
    /// Offset in the file of the first byte.
    offset: u64,
    bytes: Vec<u8>,
    /// What the kernel has already.
    wanted: Range<usize>,
}

/// Takes surplus bytes from the threads that answer requests.
pub(super) struct Surplus(SyncSender<Frame>);

/// The other end, which pushes them from a thread of its own: a store waits for pages that are locked until a read is answered, so a thread that
/// answers reads must not push.
pub(super) struct Pusher {
    frames: Receiver<Frame>,
    rootfs: Arc<Rootfs>,
}

/// The two ends.
pub(super) fn channel(rootfs: Arc<Rootfs>) -> (Surplus, Pusher) {
    let (sender, frames) = sync_channel(QUEUE);
    (Surplus(sender), Pusher { frames, rootfs })
}

impl Surplus {
    /// Hands over what `buffer` holds besides the bytes that were asked for, if that is a page at least.
    pub(super) fn push(&self, ino: INodeNo, decoded: Decoded, buffer: &mut Vec<u8>) {
        let Decoded { offset, wanted } = decoded;
        if (buffer.len() - wanted.len()) as u64 >= PAGE {
            let _ = self.0.try_send(Frame { ino, offset, bytes: std::mem::take(buffer), wanted });
        }
    }
}

impl Pusher {
    /// Pushes until the file system is gone.
    pub(super) fn run(&self, notifier: &Notifier) {
        let mut next = self.frames.recv().ok();
        while let Some(frame) = next {
            let end = frame.bytes.len();
            store(notifier, frame.ino, frame.offset, &frame.bytes[..frame.wanted.start]);
            store(notifier, frame.ino, frame.offset + frame.wanted.end as u64, &frame.bytes[frame.wanted.end..]);
            let decoded = frame.offset..frame.offset + end as u64;
            next = match self.frames.try_recv() {
                Ok(frame) => Some(frame),
                Err(TryRecvError::Disconnected) => None,
                Err(TryRecvError::Empty) => {
                    self.around(notifier, frame.ino, decoded);
                    self.frames.recv().ok()
                }
            };
        }
    }

    /// Fetches and decodes what surrounds `decoded`.
    fn around(&self, notifier: &Notifier, ino: INodeNo, decoded: Range<u64>) {
        let Ok(number) = u32::try_from(ino.0) else { return };
        // What fails here fails again for the reader who asks for it, and is told to him.
        let _ = self.rootfs.will_need(number, decoded.start / FETCH * FETCH, FETCH);
        let start = decoded.start / AROUND * AROUND;
        for range in [start..decoded.start, decoded.end..(start + AROUND).max(decoded.end)] {
            let mut bytes = Vec::new();
            #[allow(clippy::cast_possible_truncation)] // at most AROUND
            let len = (range.end - range.start) as usize;
            if len > 0 && self.rootfs.read(number, range.start, len, &mut bytes).is_ok() {
                store(notifier, ino, range.start, &bytes);
            }
        }
    }
}

/// Stores bytes in the page cache. A refusal (the inode was forgotten, memory is short) costs nothing but the page.
fn store(notifier: &Notifier, ino: INodeNo, offset: u64, bytes: &[u8]) {
    if !bytes.is_empty() && offset.is_multiple_of(PAGE) {
        let _ = notifier.store(ino, offset, bytes);
    }
}
