//! The thread that writes the image, in the order of the contents.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::super::{Paths, WriteOptions};
use super::{Done, Event, Packed, Start, WRITE_BUFFER};
use crate::error::{Error, Result};
use crate::format::{Compression, Encryption, ObjectHeader};
use crate::rootfs::format::{Content, Frame, Hash, LayerRecord, hash};
use crate::sync::mpsc::Receiver;

/// A content of several frames that is being written.
struct Open {
    position: u64,
    first_frame: usize,
}

pub(super) struct Writer {
    file: Arc<File>,
    /// Bytes that are not in the file yet, and where they go.
    buffer: Vec<u8>,
    flushed: u64,
    contents: Vec<Content>,
    frames: Vec<Frame>,
    /// Contents of the continued image, by digest of the stored bytes and length.
    stored: HashMap<(Hash, u64), u32>,
    open: Option<Open>,
    frame_len: u64,
    sealed: bool,
    tickets: Receiver<()>,
}

impl Writer {
    pub(super) fn new(
        file: Arc<File>,
        start: Start,
        options: &WriteOptions,
        tickets: Receiver<()>,
    ) -> Self {
        let sealed = options.key.is_some();
        let frame_len = 1 << options.frame_log2;
        let mut stored = HashMap::new();
        if !sealed {
            for (number, content) in (0_u32..).zip(&start.contents) {
                stored.insert((stored_hash(content, &start.frames), content.size), number);
            }
        }
        let Start {
            position,
            contents,
            frames,
            ..
        } = start;
        Self {
            file,
            buffer: Vec::new(),
            flushed: position,
            contents,
            frames,
            stored,
            open: None,
            frame_len,
            sealed,
            tickets,
        }
    }

    pub(super) fn run(mut self, events: &Receiver<(u64, Event)>) -> Result<Done> {
        let mut waiting = BTreeMap::new();
        let mut next = 0;
        for (seq, event) in events {
            waiting.insert(seq, event);
            while let Some(event) = waiting.remove(&next) {
                next += 1;
                self.event(event)?;
                let _ = self.tickets.try_recv();
            }
        }
        self.flush()?;
        Ok(Done {
            position: self.flushed,
            contents: self.contents,
            frames: self.frames,
            paths: Paths::new(),
        })
    }

    fn position(&self) -> u64 {
        self.flushed + self.buffer.len() as u64
    }

    fn event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Small(packed) => self.small(&packed),
            Event::Begin => {
                self.open = Some(Open {
                    position: self.position(),
                    first_frame: self.frames.len(),
                });
                self.write(&[0; 48])
            }
            Event::Frame(packed) => {
                let Some(open) = &self.open else {
                    return Ok(());
                };
                let offset =
                    self.position() - open.position - ObjectHeader::of_file().content_offset();
                let stored =
                    u32::try_from(packed.bytes.len()).map_err(|_| Error::TooLarge("a frame"))?;
                self.frames.push(Frame {
                    offset,
                    stored,
                    crc: packed.crc,
                    hash: packed.hash,
                });
                self.write(&packed.bytes)
            }
            Event::End {
                size,
                crc,
                comp,
                duplicate,
            } => self.end(size, crc, comp, duplicate),
            Event::Layer(reply) => {
                let _ = reply.send(LayerRecord {
                    contents_end: u32::try_from(self.contents.len())
                        .map_err(|_| Error::TooLarge("the number of contents"))?,
                    frames_end: u32::try_from(self.frames.len())
                        .map_err(|_| Error::TooLarge("the number of frames"))?,
                    data_end: self.position(),
                    ..LayerRecord::default()
                });
                Ok(())
            }
            Event::Failed(error) => Err(error),
        }
    }

    fn small(&mut self, packed: &Packed) -> Result<()> {
        if let Some(&known) = self.stored.get(&(packed.hash, packed.size)) {
            self.contents.push(self.contents[known as usize]);
            return Ok(());
        }
        let stored = packed.bytes.len() as u64;
        let enc = if self.sealed {
            Encryption::Whole
        } else {
            Encryption::None
        };
        let header = ObjectHeader {
            comp: packed.comp.raw(),
            enc: enc.raw(),
            orig_size: packed.size,
            stored_size: stored,
            crc: packed.crc,
            ..ObjectHeader::of_file()
        };
        let offset = self.position() + header.content_offset();
        self.write(&padded(&header))?;
        self.write(&packed.bytes)?;
        let Packed {
            comp,
            size,
            crc,
            hash,
            ..
        } = *packed;
        self.contents.push(Content {
            offset,
            stored,
            size,
            crc,
            comp,
            enc,
            hash,
            ..Content::default()
        });
        Ok(())
    }

    fn end(&mut self, size: u64, crc: u32, comp: Compression, duplicate: bool) -> Result<()> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        let offset = open.position + ObjectHeader::of_file().content_offset();
        let enc = if self.sealed {
            Encryption::Frames
        } else {
            Encryption::None
        };
        let count =
            |n: usize| u32::try_from(n).map_err(|_| Error::TooLarge("the number of frames"));
        let content = Content {
            offset,
            stored: self.position() - offset,
            size,
            crc,
            comp,
            enc,
            first_frame: count(open.first_frame)?,
            frames: count(self.frames.len() - open.first_frame)?,
            ..Content::default()
        };
        let known = self
            .stored
            .get(&(stored_hash(&content, &self.frames), size))
            .copied();
        if duplicate || known.is_some() {
            self.frames.truncate(open.first_frame);
            self.truncate(open.position);
            if let Some(known) = known.filter(|_| !duplicate) {
                self.contents.push(self.contents[known as usize]);
            }
            return Ok(());
        }
        if table_len(&content) > 0 {
            let table = seek_table(&content, &self.frames, self.frame_len);
            self.write(&table)?;
        }
        let stored_size = self.position() - offset;
        let header = ObjectHeader {
            comp: comp.raw(),
            enc: enc.raw(),
            orig_size: size,
            stored_size,
            crc,
            ..ObjectHeader::of_file()
        };
        self.patch(open.position, &padded(&header))?;
        self.contents.push(content);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= WRITE_BUFFER {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> Result<()> {
        let offset = self.flushed;
        self.file
            .write_all_at(&self.buffer, offset)
            .map_err(|source| Error::Write { offset, source })?;
        self.flushed += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Overwrites earlier bytes.
    fn patch(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        match at.checked_sub(self.flushed) {
            #[allow(clippy::cast_possible_truncation)] // inside the buffer
            Some(start) => {
                let start = start as usize;
                self.buffer[start..start + bytes.len()].copy_from_slice(bytes);
                Ok(())
            }
            None => {
                self.flush()?;
                self.file
                    .write_all_at(bytes, at)
                    .map_err(|source| Error::Write { offset: at, source })
            }
        }
    }

    /// Discards everything from `at` on. Bytes that have reached the file are overwritten later, or
    /// cut off at the end.
    fn truncate(&mut self, at: u64) {
        match at.checked_sub(self.flushed) {
            #[allow(clippy::cast_possible_truncation)] // inside the buffer
            Some(keep) => self.buffer.truncate(keep as usize),
            None => {
                self.buffer.clear();
                self.flushed = at;
            }
        }
    }
}

fn padded(header: &ObjectHeader) -> [u8; 48] {
    let mut out = [0; 48];
    out[..40].copy_from_slice(&header.encode());
    out
}

/// A digest of the stored bytes of a content, in one piece or in frames.
fn stored_hash(content: &Content, frames: &[Frame]) -> Hash {
    let (first, count) = (content.first_frame as usize, content.frames as usize);
    match frames.get(first..first + count) {
        Some(frames) if count > 0 => hash(&frames.iter().flat_map(|f| f.hash).collect::<Vec<u8>>()),
        _ => content.hash,
    }
}

/// Length of the seek table after a content's frames, bytes; only zstd contents have one.
pub(in crate::writer) fn table_len(content: &Content) -> u64 {
    if content.frames > 0 && content.comp == Compression::Zstd && content.enc == Encryption::None {
        8 + 8 * u64::from(content.frames) + 9
    } else {
        0
    }
}

/// The table of zstd's seekable format: a skippable frame that every decoder passes over.
fn seek_table(content: &Content, frames: &[Frame], frame_len: u64) -> Vec<u8> {
    let frames = &frames[content.first_frame as usize..];
    let mut out = Vec::with_capacity(17 + 8 * frames.len());
    out.extend_from_slice(&0x184D_2A5E_u32.to_le_bytes());
    #[allow(clippy::cast_possible_truncation)]
    // bounded by the number of frames in practice, and ignored by us
    out.extend_from_slice(&((8 * frames.len() + 9) as u32).to_le_bytes());
    let mut left = content.size;
    for frame in frames {
        let size = left.min(frame_len);
        left -= size;
        out.extend_from_slice(&frame.stored.to_le_bytes());
        #[allow(clippy::cast_possible_truncation)] // a frame's length
        out.extend_from_slice(&(size as u32).to_le_bytes());
    }
    out.extend_from_slice(&content.frames.to_le_bytes());
    out.push(0);
    out.extend_from_slice(&0x8F92_EAB1_u32.to_le_bytes());
    out
}
