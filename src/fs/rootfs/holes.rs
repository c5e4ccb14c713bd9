//! Holes of files: frames that hold nothing but zeros. A frame's checksum tells which may be holes.

use std::num::NonZeroUsize;
use std::sync::PoisonError;

use bfc::crc::Flavour;
use bfc::format::{Encryption, S_IFMT, S_IFREG};
use bfc::rootfs::format::{Content, Hash, Inode};
use lru::LruCache;
use rustix::io::Errno;

use super::super::error::{Error, Result};
use super::{Rootfs, kind_error};
use crate::sync::MutexGuard;

/// Most bytes that one search decodes. Encrypted frames of zeros differ, and each has to be
/// decoded.
const MAX_DECODED: u64 = 256 << 20;
/// Most frames that one question looks at.
const MAX_SEARCHED: u32 = 1 << 20;

/// Files of more frames, 64 MiB mostly, are not counted at every question.
const LONG: u32 = 1024;
/// Of how many of them it is known how much of them is data.
const KNOWN: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1023);

/// What is known about holes.
pub(super) struct Known {
    /// How many bytes of long contents are data, by their numbers.
    data: LruCache<u64, u64>,
    /// Digests of stored bytes that are zeros when they are decoded. Writers store all zeros of one
    /// length alike.
    zeros: LruCache<Hash, ()>,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            data: LruCache::new(KNOWN),
            zeros: LruCache::new(KNOWN),
        }
    }
}

/// What [`Rootfs::seek`] searches for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// Data, as SEEK_DATA of lseek(2).
    Data,
    /// A hole or the end of the file, as SEEK_HOLE.
    Hole,
}

/// What is known of a frame without its reader, see [`Rootfs::zeros`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zeros {
    /// It holds data.
    No,
    /// Its checksum is that of zeros.
    Alike,
    /// It holds nothing but zeros.
    Yes,
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut blocks = bytes.chunks(ZEROS.len());
    blocks.all(|block| *block == ZEROS[..block.len()])
}

/// The frames of a file.
struct Frames<'a> {
    rootfs: &'a Rootfs,
    content: Content,
    flavour: Flavour,
    /// Length of a frame, binary logarithm.
    log2: u8,
    /// The checksum of a whole frame of zeros.
    zeros: u32,
}

impl Frames<'_> {
    fn start(&self, number: u32) -> u64 {
        u64::from(number) << self.log2
    }

    fn len(&self, number: u32) -> u64 {
        (self.content.size - self.start(number)).min(1 << self.log2)
    }

    /// The digest of its stored bytes, if its checksum is that of zeros.
    fn may_be_hole(&self, number: u32) -> Result<Option<Hash>> {
        let frame = self.rootfs.section.frame(&self.content, number);
        let frame = frame.map_err(|e| self.rootfs.image_error(e))?;
        let is_alike = frame.crc == self.zeros_of(self.len(number));
        Ok(is_alike.then_some(frame.hash))
    }

    fn zeros_of(&self, len: u64) -> u32 {
        if len == 1 << self.log2 {
            self.zeros
        } else {
            self.flavour.of_zeros(len)
        }
    }

    /// Whether it holds only zeros. What cannot be decoded is data, of which its reader is told.
    fn is_hole(&self, number: u32, ino: u32, bytes: &mut Vec<u8>) -> bool {
        bytes.clear();
        let read = self
            .rootfs
            .read(ino, self.start(number), 1 << self.log2, bytes);
        read.is_ok() && is_zero(bytes)
    }
}

impl Rootfs {
    /// The offset of the next data, or of the next hole or else the end of the file, from `offset`
    /// on; `None` if there is none. A very long hole may be said to end before its end, and a hole
    /// after very much data not be found.
    ///
    /// # Errors
    /// [`Error::Image`] when the image is damaged, [`Error::Kind`] when it is no regular file.
    pub fn seek(&self, ino: u32, offset: u64, seek: Seek) -> Result<Option<u64>> {
        let inode = self.inode(ino)?;
        if inode.mode & S_IFMT != S_IFREG {
            return Err(kind_error(ino, "not a regular file", Errno::INVAL));
        }
        if offset >= inode.size {
            return Ok(None);
        }
        let Some(frames) = self.frames(&inode)? else {
            return Ok(Some(match seek {
                Seek::Data => offset,
                Seek::Hole => inode.size,
            }));
        };
        let first = u32::try_from(offset >> frames.log2).unwrap_or(u32::MAX);
        let (mut bytes, mut decoded) = (Vec::new(), 0_u64);
        let end = frames
            .content
            .frames
            .min(first.saturating_add(MAX_SEARCHED));
        for number in first..end {
            let is_hole = match frames.may_be_hole(number)? {
                None => false,
                Some(hash) if self.known().zeros.get(&hash).is_some() => true,
                Some(_) if decoded >= MAX_DECODED => false,
                Some(hash) => {
                    decoded += frames.len(number);
                    let is_hole = frames.is_hole(number, ino, &mut bytes);
                    if is_hole && frames.content.enc == Encryption::None {
                        self.known().zeros.put(hash, ());
                    }
                    is_hole
                }
            };
            if is_hole == (seek == Seek::Hole) {
                return Ok(Some(offset.max(frames.start(number))));
            }
        }
        Ok(match seek {
            Seek::Data => (end < frames.content.frames).then(|| frames.start(end)),
            Seek::Hole => Some(inode.size),
        })
    }

    /// How many bytes of a regular file are data, as far as checksums tell: its length without its
    /// holes. Of a very long file, the end counts as data.
    ///
    /// # Errors
    /// [`Error::Image`] when the image is damaged.
    pub fn data_bytes(&self, inode: &Inode) -> Result<u64> {
        let Some(frames) = self.frames(inode)? else {
            return Ok(inode.size);
        };
        let is_long = frames.content.frames > LONG;
        if is_long && let Some(data) = self.known().data.get(&inode.data) {
            return Ok(*data);
        }
        let mut data = inode.size;
        for number in 0..frames.content.frames.min(MAX_SEARCHED) {
            if frames.may_be_hole(number)?.is_some() {
                data -= frames.len(number);
            }
        }
        if is_long {
            self.known().data.put(inode.data, data);
        }
        Ok(data)
    }

    /// What is known of each frame of a content; `None` if it has no frames, or is encrypted.
    /// Frames whose checksum is that of zeros are compared by their digests with those that were
    /// found to be zeros. Of those that differ, `decodes` are decoded, which counts down.
    ///
    /// # Errors
    /// [`Error::Image`] when the records of frames are damaged.
    pub fn zeros(&self, number: u32, decodes: &mut u32) -> Result<Option<Vec<Zeros>>> {
        let content = self.section.content(number.into());
        let content = content.map_err(|e| self.image_error(e))?;
        if content.enc != Encryption::None {
            return Ok(None);
        }
        let Some(frames) = self.cut(content)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        let known = (0..frames.content.frames).map(|frame| {
            let Some(hash) = frames.may_be_hole(frame)? else {
                return Ok(Zeros::No);
            };
            if self.known().zeros.get(&hash).is_some() {
                return Ok(Zeros::Yes);
            }
            let Some(left) = decodes.checked_sub(1) else {
                return Ok(Zeros::Alike);
            };
            *decodes = left;
            bytes.clear();
            let read =
                self.read_by_number(number, frames.start(frame), 1 << frames.log2, &mut bytes);
            // What cannot be decoded is data, of which its reader is told.
            if read.is_err() || !is_zero(&bytes) {
                return Ok(Zeros::Alike);
            }
            self.known().zeros.put(hash, ());
            Ok(Zeros::Yes)
        });
        known.collect::<Result<_>>().map(Some)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.holes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether any file has a hole, as far as checksums tell. A very large image may have.
    ///
    /// # Errors
    /// [`Error::Image`] when the image is damaged.
    pub fn has_holes(&self) -> Result<bool> {
        if self.section.frame_count() > MAX_SEARCHED.into() {
            return Ok(true);
        }
        for number in 0..self.section.content_count() {
            let content = self.section.content(number);
            let content = content.map_err(|e| self.image_error(e))?;
            if let Some(frames) = self.cut(content)? {
                for number in 0..content.frames {
                    if frames.may_be_hole(number)?.is_some() {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }

    /// The frames of a regular file; `None` if it is one piece, or empty.
    fn frames(&self, inode: &Inode) -> Result<Option<Frames<'_>>> {
        if inode.size <= 1 << self.section.header().frame_log2 {
            return Ok(None);
        }
        self.cut(self.content(inode)?)
    }

    /// The frames of a content; `None` if it is one piece.
    fn cut(&self, content: Content) -> Result<Option<Frames<'_>>> {
        let log2 = self.section.header().frame_log2;
        // The reader of a frame refuses another number.
        let is_cut = u64::from(content.frames) == content.size.div_ceil(1 << log2);
        if content.size <= 1 << log2 || !is_cut {
            return Ok(None);
        }
        let image = self.images.get(usize::from(content.source));
        let flavour = image.ok_or(Error::NotFound)?.container.flavour();
        Ok(Some(Frames {
            rootfs: self,
            zeros: flavour.of_zeros(1 << log2),
            content,
            flavour,
            log2,
        }))
    }
}
