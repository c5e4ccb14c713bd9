//! Files with holes: their contents are in chunks, and those that hold only zeros have no address.
//!
//! So lseek(2) finds the holes, and overlayfs's copy-up leaves them out. `st_blocks` counts them as
//! data all the same: for anything but compressed files, the kernel computes it from the length
//! (`erofs_read_inode`).
//!
//! No pass over the contents is needed: the checksum in a frame's record tells whether it may be
//! zeros, and of frames that are stored alike, one is decoded.

use std::collections::BTreeMap;

use super::super::error::Result;
use super::super::format::{BLOCK_LOG2, CHUNK_ADDRESS_LEN};
use crate::fs::{Rootfs, Zeros};

/// Most chunks of a file. In a longer one, chunks are longer, and short holes do not show.
const MAX_CHUNKS: u64 = 1 << 14;

/// Most frames that are looked at; the contents behind them are shown without holes. Together they
/// decode to 64 GiB, mostly.
const MAX_FRAMES: u32 = 1 << 20;
/// Most frames that are decoded. Writers store all zeros of one length alike, so that one of each
/// length is enough: whole frames, and the last ones of files.
const MAX_DECODES: u32 = 64;

/// The chunks of a content.
pub(super) struct Chunks {
    /// Binary logarithm of the blocks of a chunk.
    blocks_log2: u8,
    holes: Vec<bool>,
}

impl Chunks {
    /// `i_u` of an inode with these chunks.
    pub(super) fn format(&self) -> u32 {
        self.blocks_log2.into()
    }

    pub(super) fn blocks_log2(&self) -> u8 {
        self.blocks_log2
    }

    /// Length of their addresses, bytes.
    pub(super) fn bytes(&self) -> usize {
        self.holes.len() * CHUNK_ADDRESS_LEN
    }

    /// Whether each is a hole.
    pub(super) fn holes(&self) -> impl Iterator<Item = bool> {
        self.holes.iter().copied()
    }
}

/// The contents that may have holes, by number.
pub(super) struct Holes(BTreeMap<u32, Chunks>);

impl Holes {
    /// Looks at the checksums of all frames, and decodes one frame of zeros or a few.
    pub(super) fn of(rootfs: &Rootfs) -> Result<Self> {
        let section = rootfs.section();
        let frame_log2 = section.header().frame_log2;
        let (mut frames, mut decodes) = (MAX_FRAMES, MAX_DECODES);
        let mut found = BTreeMap::new();
        if section.frame_count() == 0 {
            return Ok(Self(found));
        }
        for (number, index) in (0_u32..).zip(0..section.content_count()) {
            let content = section.content(index)?;
            if content.frames < 2 || content.frames > frames {
                continue;
            }
            frames -= content.frames;
            if let Some(zeros) = rootfs.zeros(number, &mut decodes)?
                && let Some(chunks) = chunks(&zeros, frame_log2, content.size)
            {
                found.insert(number, chunks);
            }
        }
        Ok(Self(found))
    }

    pub(super) fn any(&self) -> bool {
        !self.0.is_empty()
    }

    pub(super) fn of_content(&self, number: u32) -> Option<&Chunks> {
        self.0.get(&number)
    }
}

/// The chunks of a content of these frames; `None` if none can be a hole. The numbers of inodes
/// depend on that, so whether a frame was decoded must not matter.
fn chunks(zeros: &[Zeros], frame_log2: u8, size: u64) -> Option<Chunks> {
    let mut chunk_log2 = frame_log2;
    while size >> chunk_log2 >= MAX_CHUNKS {
        chunk_log2 += 1;
    }
    let frames = 1 << (chunk_log2 - frame_log2);
    let all = |wanted: &dyn Fn(Zeros) -> bool| {
        let chunks = zeros.chunks(frames);
        chunks
            .map(|chunk| chunk.iter().all(|&zeros| wanted(zeros)))
            .collect::<Vec<_>>()
    };
    let may_be = all(&|zeros| zeros != Zeros::No);
    may_be.contains(&true).then(|| Chunks {
        blocks_log2: chunk_log2 - BLOCK_LOG2,
        holes: all(&|zeros| zeros == Zeros::Yes),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_long_file_has_long_chunks() {
        const FRAMES: usize = 1 << 16;
        assert_eq!(FRAMES as u64, MAX_CHUNKS * 4);
        let mut zeros = vec![Zeros::Yes; FRAMES];
        zeros[0] = Zeros::No;
        zeros[5] = Zeros::Alike;
        let found = chunks(&zeros, 16, (FRAMES as u64) << 16).unwrap();
        assert_eq!(found.blocks_log2(), 16 + 3 - 12);
        let holes: Vec<bool> = found.holes().collect();
        assert_eq!(holes.len(), FRAMES / 8);
        assert_eq!(holes.iter().filter(|&&hole| !hole).count(), 1);

        assert!(chunks(&[Zeros::No; 9], 16, 9 << 16).is_none());
        let alike = chunks(&[Zeros::No, Zeros::Alike], 16, 70_000).unwrap();
        assert_eq!(alike.holes().collect::<Vec<_>>(), [false, false]);
        assert_eq!(alike.format(), 4);
    }
}
