//! Decoded frames that a request wants only a part of, or that were decoded before they were
//! requested.
//!
//! The kernel's requests end where its windows end, not where contents do: the rest of what was
//! decoded is what the next request wants. If several threads want a frame at the same time, one
//! decodes it and the others wait.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use lru::LruCache;

use crate::fs::{self, Rootfs};
use crate::sync::Mutex;

/// How much to keep, bytes; at least two frames.
const KEPT: usize = 2 << 20;
const LEAST: usize = 2;

/// The number of a content, and of a frame in it. What is stored in one piece is cut into frames
/// too.
type Key = (u32, u64);
type Slot = Arc<Mutex<Option<Arc<[u8]>>>>;

/// A content.
#[derive(Debug, Clone, Copy)]
pub(super) struct Content {
    /// Its number.
    pub(super) number: u32,
    /// Its length, bytes.
    pub(super) size: u64,
}

/// The frames that were used last.
pub(super) struct Frames {
    log2: u8,
    kept: Mutex<LruCache<Key, Slot>>,
}

impl Frames {
    /// For contents with frames of this length, binary logarithm.
    pub(super) fn new(log2: u8) -> Self {
        let most = NonZeroUsize::MIN.saturating_add((KEPT >> log2).max(LEAST) - 1);
        Self {
            log2,
            kept: Mutex::new(LruCache::new(most)),
        }
    }

    /// The part of a content that its frame at an offset is.
    pub(super) fn at(&self, content: Content, offset: u64) -> Range<u64> {
        let start = offset >> self.log2 << self.log2;
        start..(start + (1 << self.log2)).min(content.size)
    }

    /// Appends a range of a content, which is within it.
    pub(super) fn read(
        &self,
        rootfs: &Rootfs,
        content: Content,
        range: Range<u64>,
        out: &mut Vec<u8>,
    ) -> fs::Result<()> {
        let mut at = range.start;
        // Where frames begin that are wanted whole and that nobody has.
        let mut from = None;
        while at < range.end {
            let frame = self.at(content, at);
            let is_whole = at == frame.start && frame.end <= range.end;
            let known = self.known(content, &frame, is_whole);
            if known.is_none() && is_whole {
                from.get_or_insert(at);
                at = frame.end;
                continue;
            }
            decode(rootfs, content, from.take().unwrap_or(at)..at, out)?;
            let bytes = self.decoded(rootfs, content, &frame, known)?;
            let end = frame.end.min(range.end);
            let part = bytes.get(length(&(frame.start..at))..length(&(frame.start..end)));
            out.extend_from_slice(part.unwrap_or_default());
            at = end;
        }
        decode(rootfs, content, from.unwrap_or(at)..at, out)
    }

    /// Decodes a frame that will be wanted.
    pub(super) fn prepare(
        &self,
        rootfs: &Rootfs,
        content: Content,
        offset: u64,
    ) -> fs::Result<Arc<[u8]>> {
        let frame = self.at(content, offset);
        self.decoded(rootfs, content, &frame, None)
    }

    /// What is known of a frame. Who wants it whole takes it away: nobody will want it again.
    fn known(&self, content: Content, frame: &Range<u64>, is_whole: bool) -> Option<Slot> {
        let key = (content.number, frame.start >> self.log2);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if is_whole {
            kept.pop(&key)
        } else {
            kept.get(&key).cloned()
        }
    }

    /// A decoded frame.
    fn decoded(
        &self,
        rootfs: &Rootfs,
        content: Content,
        frame: &Range<u64>,
        known: Option<Slot>,
    ) -> fs::Result<Arc<[u8]>> {
        let slot = known.unwrap_or_else(|| {
            let key = (content.number, frame.start >> self.log2);
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.get_or_insert(key, Slot::default).clone()
        });
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = &*slot {
            return Ok(bytes.clone());
        }
        // A failure is not kept: the cause may pass.
        let mut bytes = Vec::new();
        decode(rootfs, content, frame.clone(), &mut bytes)?;
        Ok(slot.insert(bytes.into()).clone())
    }
}

/// Appends a range of a content.
fn decode(
    rootfs: &Rootfs,
    content: Content,
    range: Range<u64>,
    out: &mut Vec<u8>,
) -> fs::Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    rootfs.read_by_number(content.number, range.start, length(&range), out)
}

/// Length of a part of a request or of a frame, bytes.
#[allow(clippy::cast_possible_truncation)] // both are short
fn length(range: &Range<u64>) -> usize {
    (range.end - range.start) as usize
}
