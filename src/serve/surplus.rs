//! Decoded bytes that nobody asked for yet go into the kernel's page cache: a frame is decoded once, not once for each of its pages.

use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use fuser::{INodeNo, Notifier};

use crate::fs::Decoded;

/// How many decoded frames wait to be pushed at most; more are dropped, which costs time only.
const QUEUE: usize = 16;
/// The kernel takes whole pages.
const PAGE: u64 = 4096;

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
pub(super) struct Pusher(Receiver<Frame>);

/// The two ends.
pub(super) fn channel() -> (Surplus, Pusher) {
    let (sender, receiver) = sync_channel(QUEUE);
    (Surplus(sender), Pusher(receiver))
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
    pub(super) fn run(self, notifier: &Notifier) {
        for frame in self.0 {
            let end = frame.bytes.len();
            for range in [0..frame.wanted.start, frame.wanted.end..end] {
                let offset = frame.offset + range.start as u64;
                // A refusal (the inode was forgotten, or memory is short) costs nothing but the page.
                if !range.is_empty() && offset.is_multiple_of(PAGE) {
                    let _ = notifier.store(frame.ino, offset, &frame.bytes[range]);
                }
            }
        }
    }
}
