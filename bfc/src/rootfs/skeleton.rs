//! Skeletons: a layer tar with every file content replaced by a reference to a content record.
//!
//! A skeleton and the contents restore the layer tar byte for byte, so its `diff_id` stays valid;
//! replaying the tar headers of a skeleton merges the layer again. FORMAT.md, "Layer skeletons",
//! has the bytes.

use std::io::{self, Read, Write};

use crate::error::{Error, Result};
use crate::format::{u32_at, u64_at};

/// Longest raw segment, bytes, which a reader must hold in memory.
const MAX_RAW: usize = 1 << 16;
/// Largest compressed skeleton, bytes: some ten million entries.
pub(super) const MAX_COMPRESSED: usize = 512 << 20;
const KIND_RAW: u8 = 0;
const KIND_CONTENT: u8 = 1;
const LEVEL: i32 = 3;

/// A piece of a skeleton.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment<'a> {
    /// Unchanged bytes of the tar: headers, padding, the end of the archive.
    Raw(&'a [u8]),
    /// `size` bytes of the tar are the bytes of content `id` from `offset` on. A file that is all
    /// hole is referred to with size 0.
    Content {
        /// Number of the content record.
        id: u32,
        /// Where the bytes begin in the content.
        offset: u64,
        /// How many there are.
        size: u64,
    },
}

/// A finished skeleton.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Skeleton {
    /// Its bytes, compressed with zstd.
    pub compressed: Vec<u8>,
    /// How many bytes it has when decompressed.
    pub size: u64,
}

/// Writes a skeleton.
pub struct SkeletonWriter {
    encoder: zstd::stream::write::Encoder<'static, Vec<u8>>,
    raw: Vec<u8>,
    size: u64,
}

impl std::fmt::Debug for SkeletonWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SkeletonWriter")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl SkeletonWriter {
    /// An empty one.
    ///
    /// # Errors
    /// [`Error::Write`] when no compressor can be had.
    pub fn new() -> Result<Self> {
        let failed = |source| Error::Write { offset: 0, source };
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), LEVEL).map_err(failed)?;
        encoder.include_checksum(true).map_err(failed)?;
        Ok(Self {
            encoder,
            raw: Vec::with_capacity(MAX_RAW),
            size: 0,
        })
    }

    /// Appends unchanged bytes of the tar.
    ///
    /// # Errors
    /// [`Error::TooLarge`] when the skeleton would be larger than 512 MiB.
    pub fn raw(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(MAX_RAW - self.raw.len()));
            self.raw.extend_from_slice(now);
            bytes = rest;
            if self.raw.len() == MAX_RAW {
                self.flush_raw()?;
            }
        }
        Ok(())
    }

    /// Appends a reference to `size` bytes of content `id` from `offset` on.
    ///
    /// # Errors
    /// As [`SkeletonWriter::raw`].
    pub fn content(&mut self, id: u32, offset: u64, size: u64) -> Result<()> {
        self.flush_raw()?;
        let mut b = [0; 21];
        b[0] = KIND_CONTENT;
        b[1..5].copy_from_slice(&id.to_le_bytes());
        b[5..13].copy_from_slice(&offset.to_le_bytes());
        b[13..21].copy_from_slice(&size.to_le_bytes());
        self.put(&b)
    }

    fn flush_raw(&mut self) -> Result<()> {
        if self.raw.is_empty() {
            return Ok(());
        }
        let mut raw = std::mem::take(&mut self.raw);
        let mut head = [KIND_RAW, 0, 0, 0, 0];
        #[allow(clippy::cast_possible_truncation)] // at most MAX_RAW
        head[1..].copy_from_slice(&(raw.len() as u32).to_le_bytes());
        self.put(&head)?;
        self.put(&raw)?;
        raw.clear();
        self.raw = raw;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.encoder
            .write_all(bytes)
            .map_err(|source| Error::Write {
                offset: self.size,
                source,
            })?;
        self.size += bytes.len() as u64;
        if self.encoder.get_ref().len() > MAX_COMPRESSED {
            return Err(Error::TooLarge(
                "the headers of one layer (the limit is 512 MiB compressed)",
            ));
        }
        Ok(())
    }

    /// The finished skeleton.
    ///
    /// # Errors
    /// As [`SkeletonWriter::raw`].
    pub fn finish(mut self) -> Result<Skeleton> {
        self.flush_raw()?;
        let size = self.size;
        let compressed = self.encoder.finish().map_err(|source| Error::Write {
            offset: size,
            source,
        })?;
        Ok(Skeleton { compressed, size })
    }
}

/// Reads a skeleton in bounded memory.
pub struct SkeletonReader<R> {
    decoder: R,
    left: u64,
    at: u64,
    raw: Vec<u8>,
}

impl<R> std::fmt::Debug for SkeletonReader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SkeletonReader")
            .field("left", &self.left)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl<'a> SkeletonReader<zstd::stream::read::Decoder<'static, &'a [u8]>> {
    /// Reads the compressed bytes, which hold `size` bytes.
    ///
    /// # Errors
    /// [`Error::Section`] when they are not zstd's.
    pub fn new(compressed: &'a [u8], size: u64) -> Result<Self> {
        let decoder = zstd::stream::read::Decoder::with_buffer(compressed)
            .map_err(|_| damaged(0, "a skeleton that cannot be decompressed"))?;
        Ok(Self {
            decoder,
            left: size,
            at: 0,
            raw: Vec::new(),
        })
    }
}

impl<R: Read> SkeletonReader<R> {
    /// The next segment, `None` behind the last.
    ///
    /// # Errors
    /// [`Error::Section`] when the skeleton is damaged.
    pub fn next_segment(&mut self) -> Result<Option<Segment<'_>>> {
        if self.left == 0 {
            return Ok(None);
        }
        let mut kind = [0];
        self.fill(&mut kind)?;
        match kind[0] {
            KIND_RAW => {
                let mut b = [0; 4];
                self.fill(&mut b)?;
                let len = u32_at(&b, 0) as usize;
                if len > MAX_RAW {
                    return Err(damaged(
                        self.at,
                        "a skeleton with a raw segment that is too long",
                    ));
                }
                let mut raw = std::mem::take(&mut self.raw);
                raw.resize(len, 0);
                self.fill(&mut raw)?;
                self.raw = raw;
                Ok(Some(Segment::Raw(&self.raw)))
            }
            KIND_CONTENT => {
                let mut b = [0; 20];
                self.fill(&mut b)?;
                Ok(Some(Segment::Content {
                    id: u32_at(&b, 0),
                    offset: u64_at(&b, 4),
                    size: u64_at(&b, 12),
                }))
            }
            _ => Err(damaged(self.at, "a skeleton with an unknown segment")),
        }
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<()> {
        let len = out.len() as u64;
        if len > self.left {
            return Err(damaged(self.at, "a skeleton that is longer than it claims"));
        }
        self.decoder.read_exact(out).map_err(|e| {
            let reason = match e.kind() {
                io::ErrorKind::UnexpectedEof => "a skeleton that is cut off",
                _ => "a skeleton that cannot be decompressed",
            };
            damaged(self.at, reason)
        })?;
        self.at += len;
        self.left -= len;
        Ok(())
    }
}

fn damaged(offset: u64, reason: &'static str) -> Error {
    Error::Section { offset, reason }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Raw bytes, and a reference (content, offset, size) instead of them.
    type Segments = Vec<(Vec<u8>, Option<(u32, u64, u64)>)>;

    fn segments(skeleton: &Skeleton) -> Result<Segments> {
        let mut reader = SkeletonReader::new(&skeleton.compressed, skeleton.size)?;
        let mut out = Vec::new();
        while let Some(segment) = reader.next_segment()? {
            out.push(match segment {
                Segment::Raw(bytes) => (bytes.to_vec(), None),
                Segment::Content { id, offset, size } => (Vec::new(), Some((id, offset, size))),
            });
        }
        Ok(out)
    }

    #[test]
    fn the_reader_reads_what_the_writer_writes() {
        let mut writer = SkeletonWriter::new().unwrap();
        writer.raw(b"head").unwrap();
        writer.raw(b"er").unwrap();
        writer.content(7, 0, 1 << 40).unwrap();
        writer.content(u32::MAX, 3, 0).unwrap();
        writer.raw(&[1; MAX_RAW + 1]).unwrap();
        let skeleton = writer.finish().unwrap();
        assert_eq!(
            segments(&skeleton).unwrap(),
            [
                (b"header".to_vec(), None),
                (vec![], Some((7, 0, 1 << 40))),
                (vec![], Some((u32::MAX, 3, 0))),
                (vec![1; MAX_RAW], None),
                (vec![1], None),
            ]
        );
        let empty = SkeletonWriter::new().unwrap().finish().unwrap();
        assert_eq!(segments(&empty).unwrap(), []);
    }

    #[test]
    fn damage_is_told() {
        let mut writer = SkeletonWriter::new().unwrap();
        writer.raw(b"header").unwrap();
        let good = writer.finish().unwrap();
        assert!(
            segments(&Skeleton {
                size: good.size + 1,
                ..good.clone()
            })
            .is_err()
        );
        assert!(
            segments(&Skeleton {
                size: good.size - 1,
                ..good.clone()
            })
            .is_err()
        );
        assert!(
            segments(&Skeleton {
                compressed: good.compressed[..9].to_vec(),
                ..good.clone()
            })
            .is_err()
        );
        assert!(
            segments(&Skeleton {
                compressed: b"not zstd".to_vec(),
                size: 8
            })
            .is_err()
        );
        let odd = zstd::bulk::compress(&[9], 1).unwrap();
        assert!(
            segments(&Skeleton {
                compressed: odd,
                size: 1
            })
            .is_err()
        );
        let long = zstd::bulk::compress(&[0, 255, 255, 255, 255], 1).unwrap();
        assert!(
            segments(&Skeleton {
                compressed: long,
                size: 1 << 40
            })
            .is_err()
        );
    }
}
