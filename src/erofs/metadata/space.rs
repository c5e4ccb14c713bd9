//! Where in the metadata an inode or a block goes.

use super::super::error::{Error, Result};
use super::super::format::{BLOCK_LEN, INODE_SLOT_LEN};
use super::MAX_METADATA;

/// How many gaps before block boundaries are remembered, for what comes later and fits.
const MAX_GAPS: usize = 16;

/// The metadata so far.
pub(super) struct Space {
    out: Vec<u8>,
    /// Gaps that were left when something did not fit into its block: offset and length, bytes.
    gaps: Vec<(usize, usize)>,
}

impl Space {
    /// The first block is left for the super block.
    pub(super) fn new(expected: usize) -> Self {
        let mut out = Vec::with_capacity(expected);
        out.resize(BLOCK_LEN, 0);
        Self {
            out,
            gaps: Vec::new(),
        }
    }

    /// Takes `len` bytes within one block, at most a block, for an inode; their offset.
    pub(super) fn take(&mut self, len: usize) -> Result<usize> {
        let len = len.next_multiple_of(INODE_SLOT_LEN);
        if let Some(gap) = self.gaps.iter_mut().find(|(_, free)| *free >= len) {
            let at = gap.0;
            *gap = (gap.0 + len, gap.1 - len);
            return Ok(at);
        }
        if self.out.len() % BLOCK_LEN + len > BLOCK_LEN {
            self.end_block()?;
        }
        self.grow(len)
    }

    /// Takes `head` bytes within one block and `more` behind them, without such a bound.
    pub(super) fn take_long(&mut self, head: usize, more: usize) -> Result<usize> {
        if self.out.len() % BLOCK_LEN + head > BLOCK_LEN {
            self.end_block()?;
        }
        self.grow((head + more).next_multiple_of(INODE_SLOT_LEN))
    }

    /// Takes so many blocks; the offset of the first.
    pub(super) fn take_blocks(&mut self, count: usize) -> Result<usize> {
        self.end_block()?;
        self.grow(count.saturating_mul(BLOCK_LEN))
    }

    /// Goes on at the next block.
    fn end_block(&mut self) -> Result<()> {
        let at = self.out.len();
        let free = at.next_multiple_of(BLOCK_LEN) - at;
        if free > 0 {
            self.grow(free)?;
            self.gaps.retain(|(_, free)| *free > 0);
            if self.gaps.len() == MAX_GAPS {
                self.gaps.remove(0);
            }
            self.gaps.push((at, free));
        }
        Ok(())
    }

    fn grow(&mut self, len: usize) -> Result<usize> {
        let at = self.out.len();
        let end = at.checked_add(len).ok_or(Error::Metadata)?;
        if end as u64 > MAX_METADATA {
            return Err(Error::Metadata);
        }
        self.out.resize(end, 0);
        Ok(at)
    }

    /// Bytes that were taken.
    pub(super) fn at(&mut self, at: usize, len: usize) -> &mut [u8] {
        self.out.get_mut(at..at + len).unwrap_or_default()
    }

    /// Writes what was taken.
    pub(super) fn put(&mut self, at: usize, bytes: &[u8]) {
        super::put(&mut self.out, at, bytes);
    }

    /// The metadata, filled up to a whole block.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.out
            .resize(self.out.len().next_multiple_of(BLOCK_LEN), 0);
        self.out
    }
}
