//! Decodes contents: stored bytes become the original ones, and are checked.

use std::cell::RefCell;
use std::io::{self, Read, Write};

use zeroize::Zeroize;

use zstd::bulk::Decompressor;

use crate::aead::{self, BadTag, Opener};
use crate::crc::Flavour;
use crate::error::{Error, Result};
use crate::format::{Compression, Encryption, OBJECT_LEN, ObjectHeader};
use crate::key::Key;
use crate::rootfs::format::{Content, Frame, Hash, Layout, hash, max_stored};
use crate::source::{RangeReader, ReadAt, read_exact_at};

/// Largest zstd window that is accepted, binary logarithm: the memory a stream may ask for (128
/// MiB, zstd's own default).
const WINDOW_LOG_MAX: u32 = 27;

/// What is needed to decode the contents of one image.
#[derive(Clone, Copy)]
pub struct Decoder<'a> {
    /// The image.
    pub source: &'a dyn ReadAt,
    /// Its length, bytes: nothing that claims to lie behind it is read.
    pub len: u64,
    /// Which CRC it uses.
    pub flavour: Flavour,
    /// The key, for encrypted content.
    pub key: Option<&'a Key>,
    /// Whether to check stored bytes against their BLAKE3 before decoding, besides the CRC of the
    /// result.
    pub check_hash: bool,
}

impl std::fmt::Debug for Decoder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder")
            .field("len", &self.len)
            .field("flavour", &self.flavour)
            .field("check_hash", &self.check_hash)
            .finish_non_exhaustive()
    }
}

/// One piece of stored bytes that is decoded on its own.
struct Piece<'a> {
    offset: u64,
    crc: u32,
    hash: Option<&'a Hash>,
    comp: Compression,
    sealed: bool,
}

thread_local! {
    /// Decompression contexts cost more to make than small frames to decode.
    static ZSTD: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    static STORED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Associated data of a sealed frame: the path, and which of how many it is.
pub fn frame_aad(path: &[u8], index: u32, frames: u32) -> Vec<u8> {
    let mut aad = Vec::with_capacity(path.len() + 9);
    aad.extend_from_slice(path);
    aad.push(0);
    aad.extend_from_slice(&index.to_le_bytes());
    aad.extend_from_slice(&frames.to_le_bytes());
    aad
}

impl Decoder<'_> {
    /// The content with its object header read, if it has one that was not read yet.
    ///
    /// # Errors
    /// [`Error::Content`] when the header contradicts the index.
    pub fn resolve(&self, content: &Content) -> Result<Content> {
        if content.layout == Layout::Direct {
            return Ok(*content);
        }
        let mut b = [0; OBJECT_LEN];
        read_exact_at(self.source, &mut b, content.offset)?;
        let object = ObjectHeader::parse(&b);
        let stored_as = (content.comp.raw().into(), content.enc.raw().into());
        object
            .check((content.size, content.crc), stored_as, content.stored)
            .map_err(|reason| Error::Content {
                offset: content.offset,
                reason,
            })?;
        Ok(Content {
            offset: content.offset + object.content_offset(),
            stored: object.stored_size,
            layout: Layout::Direct,
            ..*content
        })
    }

    /// Decodes a content of one piece into `out`, which is as long as the original. For content
    /// that fits memory.
    ///
    /// # Errors
    /// [`Error::Content`], [`Error::KeyNeeded`], [`Error::Read`].
    pub fn whole(&self, content: &Content, path: &[u8], mut out: &mut [u8]) -> Result<()> {
        if content.stored > max_stored(out.len() as u64) && content.enc != Encryption::Frames {
            // v1 content of several zstd frames, skippable ones included, may be stored in any
            // length.
            return self.stream(content, path, &mut out);
        }
        let piece = Piece {
            offset: content.offset,
            crc: content.crc,
            hash: Some(&content.hash),
            comp: content.comp,
            sealed: content.enc != Encryption::None,
        };
        let frame = frame_aad(path, 0, 1);
        let aad = if content.enc == Encryption::Frames {
            &frame[..]
        } else {
            path
        };
        let limit = max_stored(out.len() as u64);
        self.with_stored(content.offset, content.stored, limit, |stored| {
            self.piece(&piece, aad, stored, out)
        })
    }

    /// Decodes consecutive frames of a content, the first of them number `first`, into `out`, which
    /// is as long as their originals. Reads their stored bytes with one read.
    ///
    /// # Errors
    /// As [`Decoder::whole`].
    pub fn frames(
        &self,
        content: &Content,
        frames: &[Frame],
        first: u32,
        path: &[u8],
        frame_len: usize,
        out: &mut [u8],
    ) -> Result<()> {
        let damaged = |reason| Error::Content {
            offset: content.offset,
            reason,
        };
        let Some(head) = frames.first() else {
            return Ok(());
        };
        let start = content.offset.saturating_add(head.offset);
        let stored = frames.iter().map(|f| u64::from(f.stored)).sum();
        let limit = max_stored(frame_len as u64).saturating_mul(frames.len() as u64);
        self.with_stored(start, stored, limit, |mut rest| {
            let mut at = head.offset;
            for ((frame, index), out) in frames.iter().zip(first..).zip(out.chunks_mut(frame_len)) {
                let piece = Piece {
                    offset: content.offset.saturating_add(frame.offset),
                    crc: frame.crc,
                    hash: Some(&frame.hash),
                    comp: content.comp,
                    sealed: content.enc != Encryption::None,
                };
                let split = if frame.offset == at {
                    rest.split_at_mut_checked(frame.stored as usize)
                } else {
                    None
                };
                let (bytes, behind) =
                    split.ok_or_else(|| damaged("its frames do not stand one behind the other"))?;
                let aad = if piece.sealed {
                    frame_aad(path, index, content.frames)
                } else {
                    Vec::new()
                };
                self.piece(&piece, &aad, bytes, out)?;
                rest = behind;
                at = at.saturating_add(frame.stored.into());
            }
            Ok(())
        })
    }

    /// Reads `stored` bytes at `offset` into this thread's buffer, which is at most `limit` bytes
    /// long.
    fn with_stored(
        &self,
        offset: u64,
        stored: u64,
        limit: u64,
        f: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        /// A buffer that grew past this is not kept.
        const KEEP: usize = 1 << 20;
        let fits = offset
            .checked_add(stored)
            .is_some_and(|end| end <= self.len);
        let Some(stored) = usize::try_from(stored).ok().filter(|_| fits) else {
            return Err(Error::Content {
                offset,
                reason: "it ends outside the file",
            });
        };
        if stored as u64 > limit {
            return Err(Error::Content {
                offset,
                reason: "it is stored longer than it can be",
            });
        }
        STORED.with_borrow_mut(|buf| {
            buf.resize(stored, 0);
            let result = read_exact_at(self.source, buf, offset).and_then(|()| f(buf));
            if self.key.is_some() {
                buf.zeroize();
            }
            if buf.capacity() > KEEP {
                *buf = Vec::new();
            }
            result
        })
    }

    /// Decodes the stored bytes of a piece, which opening overwrites.
    fn piece(
        &self,
        piece: &Piece<'_>,
        aad: &[u8],
        stored: &mut [u8],
        out: &mut [u8],
    ) -> Result<()> {
        let damaged = |reason| Error::Content {
            offset: piece.offset,
            reason,
        };
        if self.check_hash && piece.hash.is_some_and(|h| hash(stored) != *h) {
            return Err(damaged("its digest is wrong"));
        }
        let opened = match (piece.sealed, self.key) {
            (false, _) => stored,
            (true, None) => return Err(Error::KeyNeeded),
            (true, Some(key)) => aead::open(key, aad, stored).ok_or_else(|| {
                damaged("its authentication tag is wrong (changed, moved, or another key)")
            })?,
        };
        match piece.comp {
            Compression::None if opened.len() == out.len() => out.copy_from_slice(opened),
            Compression::None => return Err(damaged("its stored length is not its length")),
            Compression::Zstd => {
                decompress(opened, out).map_err(|()| damaged("its compressed data is damaged"))?
            }
        }
        if self.flavour.crc(out) != piece.crc {
            return Err(damaged("its checksum is wrong"));
        }
        Ok(())
    }

    /// Decodes a content of one piece, of any size, into `sink` in bounded memory. Nothing that was
    /// written may be used unless this succeeds.
    ///
    /// # Errors
    /// As [`Decoder::whole`], and [`Error::Write`].
    pub fn stream(&self, content: &Content, path: &[u8], sink: &mut dyn Write) -> Result<()> {
        let range = || RangeReader::new(self.source, content.offset, content.stored);
        if content.enc != Encryption::Whole {
            return self.stream_plain(content, range(), sink);
        }
        let key = self.key.ok_or(Error::KeyNeeded)?;
        let opener =
            || Opener::new(range(), content.stored, key, path).map_err(|e| read_error(content, e));
        // Once for the tag, so that nothing unauthenticated reaches the decompressor; the second
        // pass checks it again.
        io::copy(&mut opener()?, &mut io::sink()).map_err(|e| read_error(content, e))?;
        self.stream_plain(content, opener()?, sink)
    }

    fn stream_plain(
        &self,
        content: &Content,
        input: impl Read,
        sink: &mut dyn Write,
    ) -> Result<()> {
        match content.comp {
            Compression::None => self.copy_checked(content, input, sink),
            Compression::Zstd => {
                let mut decoder =
                    zstd::stream::read::Decoder::new(input).map_err(|e| read_error(content, e))?;
                decoder
                    .window_log_max(WINDOW_LOG_MAX)
                    .map_err(|e| read_error(content, e))?;
                self.copy_checked(content, decoder, sink)
            }
        }
    }

    fn copy_checked(
        &self,
        content: &Content,
        mut input: impl Read,
        sink: &mut dyn Write,
    ) -> Result<()> {
        let damaged = |reason| Error::Content {
            offset: content.offset,
            reason,
        };
        let mut buf = vec![0; 1 << 17];
        let (mut crc, mut done) = (0, 0_u64);
        loop {
            let n = match input.read(&mut buf) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(read_error(content, e)),
            };
            done += n as u64;
            if done > content.size {
                return Err(damaged("it is longer than it claims"));
            }
            crc = self.flavour.update(crc, &buf[..n]);
            sink.write_all(&buf[..n]).map_err(|source| Error::Write {
                offset: done,
                source,
            })?;
        }
        if done != content.size {
            return Err(damaged("it is shorter than it claims"));
        }
        if crc != content.crc {
            return Err(damaged("its checksum is wrong"));
        }
        Ok(())
    }
}

/// Decompresses all of `input`, one frame or several, into all of `out`.
fn decompress(input: &[u8], out: &mut [u8]) -> Result<(), ()> {
    ZSTD.with_borrow_mut(|slot| {
        if slot.is_none() {
            let mut new = Decompressor::new().map_err(drop)?;
            // BFC's checksum of the result is checked next; zstd's is for other decoders, and costs
            // 10 µs a frame.
            new.set_parameter(zstd::zstd_safe::DParameter::ForceIgnoreChecksum(true))
                .map_err(drop)?;
            *slot = Some(new);
        }
        let Some(context) = slot else { return Err(()) };
        let n = context.decompress_to_buffer(input, out).map_err(drop)?;
        if n == out.len() { Ok(()) } else { Err(()) }
    })
}

fn read_error(content: &Content, source: io::Error) -> Error {
    let damaged = |reason| Error::Content {
        offset: content.offset,
        reason,
    };
    if source.get_ref().is_some_and(|e| e.is::<BadTag>()) {
        return damaged("its authentication tag is wrong (changed, moved, or another key)");
    }
    // zstd's errors come without a system error behind them.
    if source.raw_os_error().is_none() && source.kind() != io::ErrorKind::UnexpectedEof {
        return damaged("its compressed data is damaged");
    }
    Error::Read {
        offset: content.offset,
        len: content.stored,
        source,
    }
}
