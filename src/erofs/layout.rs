//! The decoded devices: where the decoded bytes of each content are.
//!
//! Contents are one behind the other in the order of their records, so that appending layers moves
//! none of them. There are two devices: what is smaller than a threshold is on device 0, which the
//! kernel reads through its page cache (its read-ahead then covers neighbouring files), the rest on
//! device 1, which it reads directly. Each content begins at a multiple of a block. On device 0, it
//! is the next one: any gap would end the kernel's read-ahead. On device 1, one of several frames
//! begins at a multiple of the frame length, so that requests end where frames end. Between the end
//! of a content and the beginning of the next, a device has zeros.

use bfc::rootfs::Section;

use super::error::{Error, Result};
use super::format::{BLOCK, BLOCK_LOG2, DEVICE_COUNT, MAX_BLOCKS};

/// Longest metadata, bytes. It also bounds the memory that making them takes: that much for the
/// metadata, and as much again for the names of one directory and for attributes.
pub const MAX_METADATA: u64 = 1 << 30;
/// How many devices there are. One may be empty.
pub const DEVICES: usize = DEVICE_COUNT as usize;
/// Contents of this length and more are on device 1, by default. Those below it are read ahead, and
/// what is decoded around a random read stays in the page cache of device 0; for a direct device,
/// each page of a mapping is a request (docs/PERFORMANCE.md).
pub const LARGE: u64 = MAX_SMALL;
/// A content of 4 GiB and more is always on device 1.
const MAX_SMALL: u64 = 1 << 32;

/// For how many contents memory is reserved before they are read.
const MAX_RESERVED: usize = 1 << 20;

/// Where a content begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The device: 0 or 1.
    pub device: u8,
    /// Offset on the device, bytes, a multiple of 4096.
    pub offset: u64,
}

/// The content at an offset of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Its number.
    pub content: u32,
    /// Offset of its first byte on the device, bytes.
    pub start: u64,
    /// Its length, bytes.
    pub size: u64,
}

/// A part of a range of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// Bytes of a content.
    Content {
        /// Its number.
        content: u32,
        /// Offset of the first of them in the content, bytes.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// So many zeros.
    Zeros(u64),
}

impl Piece {
    /// Length, bytes.
    fn len(self) -> u64 {
        match self {
            Self::Content { len, .. } | Self::Zeros(len) => len,
        }
    }
}

/// A content of device 1.
#[derive(Clone, Copy)]
struct Large {
    content: u32,
    /// First block on the device.
    start: u32,
    size: u64,
}

/// Where each content of an image is. It takes 8 bytes for each content, and 16 more for a large
/// one.
pub struct Layout {
    /// First block of each content on device 0. Of a content that is not there, the block where
    /// device 0 continues: so they never descend.
    starts: Vec<u32>,
    /// Length of each content on device 0, bytes; 0 if it is not there.
    sizes: Vec<u32>,
    /// The contents of device 1, in order.
    large: Vec<Large>,
    /// Length of each device, blocks.
    blocks: [u32; DEVICES],
}

impl std::fmt::Debug for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layout")
            .field("contents", &self.starts.len())
            .field("large", &self.large.len())
            .field("blocks", &self.blocks)
            .finish()
    }
}

impl Layout {
    /// Changes whenever the same image would be laid out otherwise.
    pub const VERSION: u32 = 1;

    /// Lays out the contents of a section; those of `large` bytes and more are on device 1 (see
    /// [`LARGE`]). Reads the content records, and nothing else.
    ///
    /// # Errors
    /// [`Error::Section`] if they are damaged, [`Error::Contents`] if they take more than the
    /// address space, 16 TiB.
    pub fn of(section: &Section, large: u64) -> Result<Self> {
        let frame = 1_u64 << section.header().frame_log2;
        let contents = (0..section.content_count()).map(|number| {
            let content = section.content(number)?;
            let align = if content.frames > 1 { frame } else { BLOCK };
            Ok((content.size, align))
        });
        Self::of_lengths(contents, large)
    }

    /// Lays out contents of these lengths, each aligned to so many bytes.
    fn of_lengths(
        contents: impl Iterator<Item = bfc::Result<(u64, u64)>>,
        large: u64,
    ) -> Result<Self> {
        let large = large.min(MAX_SMALL);
        // The rest as records turn out to be there.
        let expected = contents.size_hint().0.min(MAX_RESERVED);
        let mut layout = Self {
            starts: Vec::with_capacity(expected),
            sizes: Vec::with_capacity(expected),
            large: Vec::new(),
            blocks: [0; DEVICES],
        };
        for (number, content) in (0_u32..).zip(contents) {
            let (size, align) = content?;
            let device = usize::from(size >= large);
            let (mut start, mut small) = (layout.blocks[0], 0);
            if size > 0 {
                let align = if device == 0 { BLOCK } else { align };
                let first = u64::from(layout.blocks[device])
                    .next_multiple_of(align >> BLOCK_LOG2)
                    .min(MAX_BLOCKS);
                let end = first.saturating_add(size.div_ceil(BLOCK));
                let other = u64::from(layout.blocks[1 - device]);
                if end.saturating_add(other) > MAX_BLOCKS - MAX_METADATA / BLOCK {
                    return Err(Error::Contents);
                }
                #[allow(clippy::cast_possible_truncation)] // checked above
                let (first, end) = (first as u32, end as u32);
                layout.blocks[device] = end;
                if device == 0 {
                    start = first;
                    // Below MAX_SMALL.
                    small = u32::try_from(size).unwrap_or(u32::MAX);
                } else {
                    layout.large.push(Large {
                        content: number,
                        start: first,
                        size,
                    });
                }
            }
            layout.starts.push(start);
            layout.sizes.push(small);
        }
        Ok(layout)
    }

    /// Where a content begins; `None` if it is empty, or there is none of this number.
    pub fn place(&self, content: u32) -> Option<Place> {
        let number = usize::try_from(content).ok()?;
        let (device, block) = match *self.sizes.get(number)? {
            0 => (1, self.large_at(content)?.start),
            _ => (0, *self.starts.get(number)?),
        };
        Some(Place {
            device,
            offset: u64::from(block) * BLOCK,
        })
    }

    /// Length of a content, bytes; `None` if there is none of this number.
    pub fn size(&self, content: u32) -> Option<u64> {
        let size = *self.sizes.get(usize::try_from(content).ok()?)?;
        Some(match size {
            0 => self.large_at(content).map_or(0, |large| large.size),
            _ => size.into(),
        })
    }

    fn large_at(&self, content: u32) -> Option<&Large> {
        let found = self.large.binary_search_by_key(&content, |l| l.content);
        self.large.get(found.ok()?)
    }

    /// The content whose bytes are at an offset of a device; `None` where there are zeros between
    /// contents, and outside the device.
    pub fn find(&self, device: u8, offset: u64) -> Option<Found> {
        let found = self.before(device, offset)?;
        (offset - found.start < found.size).then_some(found)
    }

    /// The content that begins at an offset of a device, or the last one before it.
    fn before(&self, device: u8, offset: u64) -> Option<Found> {
        if offset >= self.bytes(device) {
            return None;
        }
        let block = offset >> BLOCK_LOG2;
        let (content, start, size) = if device == 0 {
            let behind = self.starts.partition_point(|&s| u64::from(s) <= block);
            let last = behind.checked_sub(1)?;
            let size = u64::from(*self.sizes.get(last)?);
            (u32::try_from(last).ok()?, *self.starts.get(last)?, size)
        } else {
            let behind = self.large.partition_point(|l| u64::from(l.start) <= block);
            let last = self.large.get(behind.checked_sub(1)?)?;
            (last.content, last.start, last.size)
        };
        Some(Found {
            content,
            start: u64::from(start) * BLOCK,
            size,
        })
    }

    /// Where the first content begins that begins behind an offset; the device's end if none does.
    fn next_start(&self, device: u8, offset: u64) -> u64 {
        let block = offset >> BLOCK_LOG2;
        let start = if device == 0 {
            let behind = self.starts.partition_point(|&s| u64::from(s) <= block);
            self.starts.get(behind).copied()
        } else {
            let behind = self.large.partition_point(|l| u64::from(l.start) <= block);
            self.large.get(behind).map(|l| l.start)
        };
        match start {
            Some(start) => u64::from(start) * BLOCK,
            None => self.bytes(device),
        }
    }

    /// What a range of a device consists of, in order. It ends with the device.
    pub fn pieces(&self, device: u8, offset: u64, len: u64) -> Pieces<'_> {
        Pieces {
            layout: self,
            device,
            at: offset,
            end: offset.saturating_add(len).min(self.bytes(device)),
        }
    }

    /// Length of a device, bytes: a multiple of 4096; 0 if it has no contents.
    pub fn bytes(&self, device: u8) -> u64 {
        let blocks = self.blocks.get(usize::from(device));
        blocks.map_or(0, |&blocks| u64::from(blocks) * BLOCK)
    }
}

/// See [`Layout::pieces`].
#[derive(Debug)]
pub struct Pieces<'a> {
    layout: &'a Layout,
    device: u8,
    at: u64,
    end: u64,
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        let left = self.end.checked_sub(self.at).filter(|&left| left > 0)?;
        let piece = match self.layout.find(self.device, self.at) {
            Some(found) => Piece::Content {
                content: found.content,
                offset: self.at - found.start,
                len: left.min(found.start + found.size - self.at),
            },
            None => {
                let next = self.layout.next_start(self.device, self.at);
                Piece::Zeros(left.min(next.saturating_sub(self.at)))
            }
        };
        self.at += piece.len();
        (piece.len() > 0).then_some(piece)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const FRAME: u64 = 64 << 10;

    fn layout(sizes: &[u64], large: u64) -> Result<Layout> {
        let contents = sizes.iter().map(|&size| {
            let align = if size > FRAME { FRAME } else { BLOCK };
            Ok((size, align))
        });
        Layout::of_lengths(contents, large)
    }

    const SIZES: [u64; 12] = [
        10, 0, 5000, 70_000, 1, 4096, 1_000_000, 0, 0, 2_000_000, 200_000, 4095,
    ];

    #[test]
    fn contents_are_found_where_they_were_placed() {
        for large in [0, 1, 4096, 100_000, 1_000_000, u64::MAX] {
            let layout = layout(&SIZES, large).unwrap();
            let mut ends = [0_u64; DEVICES];
            for (number, &size) in (0..).zip(&SIZES) {
                assert_eq!(layout.size(number), Some(size));
                let Some(Place { device, offset }) = layout.place(number) else {
                    assert_eq!(size, 0);
                    continue;
                };
                assert_eq!(u64::from(device), u64::from(size >= large));
                let is_aligned = device == 1 && size > FRAME;
                let align = if is_aligned { FRAME } else { BLOCK };
                let end = &mut ends[usize::from(device)];
                assert_eq!(offset, u64::next_multiple_of(*end, align));
                *end = (offset + size).next_multiple_of(BLOCK);
                let found = Some(Found {
                    content: number,
                    start: offset,
                    size,
                });
                for at in [0, size / 2, size - 1] {
                    assert_eq!(layout.find(device, offset + at), found);
                }
                let behind = layout.find(device, offset + size);
                assert!(behind != found && behind.is_none_or(|next| next.start == offset + size));
            }
            assert_eq!(ends, [layout.bytes(0), layout.bytes(1)]);
            assert_eq!(layout.size(12), None);
            assert_eq!(layout.find(0, layout.bytes(0)), None);
            assert_eq!(layout.find(2, 0), None);
        }
    }

    #[test]
    fn ranges_are_divided_into_contents_and_zeros() {
        let layout = layout(&SIZES, 1_000_000).unwrap();
        for device in [0, 1] {
            let len = layout.bytes(device);
            for (start, end) in [(0, len), (3, 9000), (69_000, 140_000), (5000, 5001), (0, 0)] {
                let mut at = start;
                for piece in layout.pieces(device, start, end - start) {
                    match piece {
                        Piece::Content {
                            content, offset, ..
                        } => {
                            let found = layout.find(device, at).unwrap();
                            assert_eq!((found.content, found.start + offset), (content, at));
                        }
                        Piece::Zeros(len) => {
                            assert!((at..at + len).all(|at| layout.find(device, at).is_none()));
                        }
                    }
                    at += piece.len();
                }
                assert_eq!(at, end.min(len).max(start));
            }
        }
        // Nothing is behind a device's end.
        assert_eq!(layout.pieces(0, layout.bytes(0), 4096).next(), None);
        assert_eq!(layout.pieces(7, 0, 4096).next(), None);
    }

    #[test]
    fn contents_beyond_the_address_space_are_refused() {
        let tebibyte = 1 << 40;
        assert!(layout(&[15 * tebibyte, 1 << 39], LARGE).is_ok());
        for sizes in [
            &[16 * tebibyte][..],
            &[8 * tebibyte, 8 * tebibyte],
            &[u64::MAX, 1],
            &[1, u64::MAX],
        ] {
            let refused = layout(sizes, LARGE);
            assert!(matches!(refused, Err(Error::Contents)), "{sizes:?}");
        }
    }
}
