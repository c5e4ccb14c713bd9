//! Content: from stored bytes back to the original ones, checked.

use std::io::{self, Read, Write};

use zeroize::Zeroize;

use crate::aead::{self, BadTag, OVERHEAD, Opener};
use crate::crc::Flavour;
use crate::error::{Error, Result};
use crate::format::{Compression, Encryption, OBJECT_LEN, ObjectHeader};
use crate::key::Key;
use crate::rootfs::format::{Content, Frame, Hash, Layout, hash};
use crate::source::{RangeReader, ReadAt, read_exact_at};

/// Largest zstd window that is accepted, binary logarithm: the memory a stream may ask for (128 MiB, zstd's own default).
const WINDOW_LOG_MAX: u32 = 27;

/// What is needed to decode the contents of one image.
#[derive(Clone, Copy)]
pub struct Decoder<'a> {
    /// The image.
    pub source: &'a dyn ReadAt,
    /// Which CRC it uses.
    pub flavour: Flavour,
    /// The key, for encrypted content.
    pub key: Option<&'a Key>,
    /// Whether to check stored bytes against their BLAKE3 before they are decoded, besides the CRC of what comes out.
    pub check_hash: bool,
}

/// One piece of stored bytes that is decoded on its own.
struct Piece<'a> {
    offset: u64,
    stored: u64,
    crc: u32,
    hash: Option<&'a Hash>,
    comp: Compression,
    sealed: bool,
}

thread_local! {
    /// Decompression contexts cost more to make than small frames to decode.
    static ZSTD: std::cell::RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { std::cell::RefCell::new(None) };
    static STORED: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
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
        let damaged = |reason| Err(Error::Content { offset: content.offset, reason });
        let mut b = [0; OBJECT_LEN];
        read_exact_at(self.source, &mut b, content.offset)?;
        let object = ObjectHeader::parse(&b);
        if object.orig_size != content.size || object.crc != content.crc {
            return damaged("the object's header contradicts the index in size or checksum");
        }
        if object.comp != content.comp.raw() || object.enc != content.enc.raw() {
            return damaged("the object's header contradicts the index in compression or encryption");
        }
        let at = object.content_offset();
        if at.checked_add(object.stored_size).is_none_or(|end| end > content.stored) {
            return damaged("the content does not fit its object");
        }
        Ok(Content { offset: content.offset + at, stored: object.stored_size, layout: Layout::Direct, ..*content })
    }

    /// Decodes a content of one piece into `out`, which is as long as the original. For content that fits memory.
    ///
    /// # Errors
    /// [`Error::Content`], [`Error::KeyNeeded`], [`Error::Read`].
    pub fn whole(&self, content: &Content, path: &[u8], out: &mut [u8]) -> Result<()> {
        let piece = Piece {
            offset: content.offset,
            stored: content.stored,
            crc: content.crc,
            hash: Some(&content.hash),
            comp: content.comp,
            sealed: content.enc != Encryption::None,
        };
        if content.enc == Encryption::Frames {
            return self.piece(&piece, &frame_aad(path, 0, 1), out);
        }
        self.piece(&piece, path, out)
    }

    /// Decodes one frame of a content into `out`, which is as long as the frame's original.
    ///
    /// # Errors
    /// As [`Decoder::whole`].
    pub fn frame(&self, content: &Content, frame: &Frame, index: u32, path: &[u8], out: &mut [u8]) -> Result<()> {
        let piece = Piece {
            offset: content.offset.saturating_add(frame.offset),
            stored: u64::from(frame.stored),
            crc: frame.crc,
            hash: Some(&frame.hash),
            comp: content.comp,
            sealed: content.enc != Encryption::None,
        };
        if piece.sealed {
            return self.piece(&piece, &frame_aad(path, index, content.frames), out);
        }
        self.piece(&piece, &[], out)
    }

    fn piece(&self, piece: &Piece<'_>, aad: &[u8], out: &mut [u8]) -> Result<()> {
        let damaged = |reason| Error::Content { offset: piece.offset, reason };
        let overhead = if piece.sealed { OVERHEAD as u64 } else { 0 };
        let expected = out.len() as u64 + overhead;
        if piece.comp == Compression::None && piece.stored != expected {
            return Err(damaged("its stored length is not its length"));
        }
        if piece.comp == Compression::None && !piece.sealed {
            read_exact_at(self.source, out, piece.offset)?;
            if self.check_hash && piece.hash.is_some_and(|h| hash(out) != *h) {
                return Err(damaged("its digest is wrong"));
            }
        } else {
            STORED.with_borrow_mut(|buf| self.decode(piece, aad, buf, out))?;
        }
        if self.flavour.crc(out) != piece.crc {
            return Err(damaged("its checksum is wrong"));
        }
        Ok(())
    }

    fn decode(&self, piece: &Piece<'_>, aad: &[u8], buf: &mut Vec<u8>, out: &mut [u8]) -> Result<()> {
        /// A buffer that grew past this is not kept.
        const KEEP: usize = 1 << 20;
        let damaged = |reason| Error::Content { offset: piece.offset, reason };
        let key = match (piece.sealed, self.key) {
            (true, None) => return Err(Error::KeyNeeded),
            (true, key) => key,
            (false, _) => None,
        };
        let stored = usize::try_from(piece.stored).map_err(|_| damaged("it claims more bytes than memory holds"))?;
        let len = self.source.len().map_err(|source| Error::Read { offset: piece.offset, len: piece.stored, source })?;
        if piece.offset.checked_add(piece.stored).is_none_or(|end| end > len) {
            return Err(damaged("it ends outside the file"));
        }
        buf.resize(stored, 0);
        read_exact_at(self.source, buf, piece.offset)?;
        if self.check_hash && piece.hash.is_some_and(|h| hash(buf) != *h) {
            return Err(damaged("its digest is wrong"));
        }
        let opened = match key {
            Some(key) => {
                aead::open(key, aad, buf).ok_or_else(|| damaged("its authentication tag is wrong (changed, moved, or another key)"))?
            }
            None => &mut buf[..],
        };
        let result = match piece.comp {
            Compression::None => {
                out.copy_from_slice(opened);
                Ok(())
            }
            Compression::Zstd => decompress(opened, out).map_err(|()| damaged("its compressed data is damaged")),
        };
        if piece.sealed {
            buf.zeroize();
        }
        if buf.capacity() > KEEP {
            *buf = Vec::new();
        }
        result
    }

    /// Decodes a content of one piece, of any size, into `sink` in bounded memory. Nothing that was written may be used unless this succeeds.
    ///
    /// # Errors
    /// As [`Decoder::whole`], and [`Error::Write`].
    pub fn stream(&self, content: &Content, path: &[u8], sink: &mut dyn Write) -> Result<()> {
        let range = || RangeReader::new(self.source, content.offset, content.stored);
        if content.enc != Encryption::Whole {
            return self.stream_plain(content, range(), sink);
        }
        let key = self.key.ok_or(Error::KeyNeeded)?;
        let opener = || Opener::new(range(), content.stored, key, path).map_err(|e| read_error(content, e));
        // Once for the tag, so that nothing unauthenticated reaches the decompressor; the second pass checks it again.
        io::copy(&mut opener()?, &mut io::sink()).map_err(|e| read_error(content, e))?;
        self.stream_plain(content, opener()?, sink)
    }

    fn stream_plain(&self, content: &Content, input: impl Read, sink: &mut dyn Write) -> Result<()> {
        match content.comp {
            Compression::None => self.copy_checked(content, input, sink),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::new(input).map_err(|e| read_error(content, e))?;
                decoder.window_log_max(WINDOW_LOG_MAX).map_err(|e| read_error(content, e))?;
                self.copy_checked(content, decoder, sink)
            }
        }
    }

    fn copy_checked(&self, content: &Content, mut input: impl Read, sink: &mut dyn Write) -> Result<()> {
        let damaged = |reason| Error::Content { offset: content.offset, reason };
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
            sink.write_all(&buf[..n]).map_err(|source| Error::Write { offset: done, source })?;
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
            *slot = Some(zstd::bulk::Decompressor::new().map_err(drop)?);
        }
        let Some(context) = slot else { return Err(()) };
        let n = context.decompress_to_buffer(input, out).map_err(drop)?;
        if n == out.len() { Ok(()) } else { Err(()) }
    })
}

fn read_error(content: &Content, source: io::Error) -> Error {
    let damaged = |reason| Error::Content { offset: content.offset, reason };
    if source.get_ref().is_some_and(|e| e.is::<BadTag>()) {
        return damaged("its authentication tag is wrong (changed, moved, or another key)");
    }
    // zstd's errors come without a system error behind them.
    if source.raw_os_error().is_none() && source.kind() != io::ErrorKind::UnexpectedEof {
        return damaged("its compressed data is damaged");
    }
    Error::Read { offset: content.offset, len: content.stored, source }
}
