//! The pipeline for contents: the caller reads and deduplicates them, workers on all cores compress
//! and encrypt them, and one thread writes them in their original order, so that the result does
//! not depend on timing.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::{Paths, WriteOptions};
use crate::aead::{self, NONCE_LEN};
use crate::content::frame_aad;
use crate::crc::Flavour;
use crate::error::{Error, Result};
use crate::format::{Compression, Encryption, ObjectHeader};
use crate::key::Key;
use crate::rootfs::format::{Content, Frame, Hash, LayerRecord, hash};

/// Pieces that are under way at most; of a frame's length each.
const IN_FLIGHT: usize = 256;
/// Bytes that are gathered before they are written.
const WRITE_BUFFER: usize = 1 << 20;
/// How much of the first frame decides whether to compress a file of several frames.
const SAMPLE: usize = 16 << 10;

/// A random nonce.
pub(super) fn nonce() -> Result<[u8; NONCE_LEN]> {
    let mut nonce = [0; NONCE_LEN];
    getrandom::fill(&mut nonce).map_err(|e| Error::Input(io::Error::other(e)))?;
    Ok(nonce)
}

/// The contents that the image has already.
#[derive(Default)]
pub(super) struct Start {
    pub(super) position: u64,
    pub(super) contents: Vec<Content>,
    pub(super) frames: Vec<Frame>,
    pub(super) paths: Paths,
}

/// The contents that the image has in the end.
pub(super) struct Done {
    pub(super) position: u64,
    pub(super) contents: Vec<Content>,
    pub(super) frames: Vec<Frame>,
    pub(super) paths: Paths,
}

/// Raw bytes to compress and seal.
struct Job {
    seq: u64,
    raw: Vec<u8>,
    /// Whether to try zstd, and whether to keep its result even if it is not shorter.
    zstd: bool,
    always: bool,
    aad: Vec<u8>,
    small: bool,
}

/// Compressed and sealed bytes.
struct Packed {
    bytes: Vec<u8>,
    comp: Compression,
    size: u64,
    crc: u32,
    hash: Hash,
}

/// Work for the writing thread, in order.
enum Event {
    /// A content of one piece.
    Small(Packed),
    /// A content of several frames begins.
    Begin,
    /// The next of its frames.
    Frame(Packed),
    /// The content ends; it is discarded if it is stored already.
    End {
        size: u64,
        crc: u32,
        comp: Compression,
        duplicate: bool,
    },
    /// Report the end of a layer.
    Layer(Sender<LayerRecord>),
    /// A worker failed.
    Failed(Error),
}

pub(super) struct Pipeline {
    jobs: Option<SyncSender<Job>>,
    events: Option<Sender<(u64, Event)>>,
    tickets: SyncSender<()>,
    workers: Vec<JoinHandle<()>>,
    writer: Option<JoinHandle<Result<Done>>>,
    seq: u64,
    /// Number of the next content.
    next: u32,
    /// Original content to its number: BLAKE3 of the bytes.
    known: HashMap<[u8; 32], u32>,
    paths: Paths,
    frame_len: usize,
    zstd: bool,
    sealed: bool,
    flavour: Flavour,
    probe: zstd::bulk::Compressor<'static>,
}

impl Pipeline {
    pub(super) fn start(
        file: Arc<File>,
        options: &WriteOptions,
        flavour: Flavour,
        start: Start,
    ) -> Result<Self> {
        let failed = |source| Error::Write { offset: 0, source };
        Self::start_with(file, options, flavour, start, || {
            let mut zstd = zstd::bulk::Compressor::new(options.level).map_err(failed)?;
            // For decoders that know nothing of our digests.
            zstd.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(true))
                .map_err(failed)?;
            let mut packer = Packer {
                zstd,
                key: options.key.as_ref().map(|(key, _)| key.clone()),
                flavour,
            };
            Ok(Box::new(move |job| packer.pack(job)))
        })
    }

    fn start_with(
        file: Arc<File>,
        options: &WriteOptions,
        flavour: Flavour,
        mut start: Start,
        pack: impl Fn() -> Result<Pack>,
    ) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let (jobs, job_queue) = sync_channel(IN_FLIGHT);
        let (events, event_queue) = channel();
        let (tickets, ticket_queue) = sync_channel(IN_FLIGHT);
        let job_queue = Arc::new(Mutex::new(job_queue));
        let failed = |source| Error::Write { offset: 0, source };
        let next = u32::try_from(start.contents.len())
            .map_err(|_| Error::TooLarge("the number of contents"))?;
        let paths = std::mem::take(&mut start.paths);
        let mut workers = Vec::new();
        for _ in 0..cores {
            let worker = Worker {
                jobs: job_queue.clone(),
                events: events.clone(),
                pack: pack()?,
            };
            let thread = std::thread::Builder::new()
                .name("compress".into())
                .spawn(move || worker.run())
                .map_err(failed)?;
            workers.push(thread);
        }
        let writer = Writer::new(file, start, options, ticket_queue);
        let writer = std::thread::Builder::new()
            .name("write".into())
            .spawn(move || writer.run(&event_queue))
            .map_err(failed)?;
        Ok(Self {
            jobs: Some(jobs),
            events: Some(events),
            tickets,
            workers,
            writer: Some(writer),
            seq: 0,
            next,
            known: HashMap::new(),
            paths,
            frame_len: 1 << options.frame_log2,
            zstd: options.compression == Compression::Zstd,
            sealed: options.key.is_some(),
            flavour,
            probe: zstd::bulk::Compressor::new(1).map_err(failed)?,
        })
    }

    pub(super) fn add(
        &mut self,
        path: &[u8],
        size: u64,
        input: &mut dyn Read,
    ) -> Result<Option<u32>> {
        if size == 0 {
            return Ok(None);
        }
        if size > self.frame_len as u64 {
            return self.add_frames(path, size, input).map(Some);
        }
        let raw = read(input, size, self.frame_len)?;
        if !self.sealed {
            let digest = *blake3::hash(&raw).as_bytes();
            if let Some(&known) = self.known.get(&digest) {
                return Ok(Some(known));
            }
            self.known.insert(digest, self.next);
        }
        let aad = if self.sealed {
            path.to_vec()
        } else {
            Vec::new()
        };
        self.job(raw, self.zstd, false, aad, true)?;
        self.number(path).map(Some)
    }

    fn add_frames(&mut self, path: &[u8], size: u64, input: &mut dyn Read) -> Result<u32> {
        let frames = u32::try_from(size.div_ceil(self.frame_len as u64))
            .map_err(|_| Error::TooLarge("a file of more than 2^32 frames"))?;
        self.event(Event::Begin)?;
        let mut digest = blake3::Hasher::new();
        let (mut crc, mut left, mut zstd) = (0, size, self.zstd);
        for index in 0..frames {
            let raw = read(input, left, self.frame_len)?;
            left -= raw.len() as u64;
            digest.update(&raw);
            crc = self.flavour.update(crc, &raw);
            if index == 0 && zstd {
                zstd = self.shrinks(&raw);
            }
            let aad = if self.sealed {
                frame_aad(path, index, frames)
            } else {
                Vec::new()
            };
            self.job(raw, zstd, true, aad, false)?;
        }
        let digest = *digest.finalize().as_bytes();
        let known = if self.sealed {
            None
        } else {
            self.known.get(&digest).copied()
        };
        let comp = if zstd {
            Compression::Zstd
        } else {
            Compression::None
        };
        self.event(Event::End {
            size,
            crc,
            comp,
            duplicate: known.is_some(),
        })?;
        if let Some(known) = known {
            return Ok(known);
        }
        self.known.insert(digest, self.next);
        self.number(path)
    }

    /// Whether a file of several frames is worth compressing, by a sample of its first.
    fn shrinks(&mut self, frame: &[u8]) -> bool {
        let start = (frame.len() / 2).min(frame.len().saturating_sub(SAMPLE));
        let sample = &frame[start..(start + SAMPLE).min(frame.len())];
        self.probe
            .compress(sample)
            .is_ok_and(|packed| packed.len() + packed.len() / 32 < sample.len())
    }

    fn number(&mut self, path: &[u8]) -> Result<u32> {
        let number = self.next;
        self.next = number
            .checked_add(1)
            .ok_or(Error::TooLarge("more than 2^32 contents"))?;
        if self.sealed {
            self.paths.insert(number, path.to_vec());
        }
        Ok(number)
    }

    fn job(
        &mut self,
        raw: Vec<u8>,
        zstd: bool,
        always: bool,
        aad: Vec<u8>,
        small: bool,
    ) -> Result<()> {
        let seq = self.seq;
        let sent = self.tickets.send(()).is_ok()
            && self.jobs.as_ref().is_some_and(|jobs| {
                jobs.send(Job {
                    seq,
                    raw,
                    zstd,
                    always,
                    aad,
                    small,
                })
                .is_ok()
            });
        if !sent {
            return Err(self.failure());
        }
        self.seq += 1;
        Ok(())
    }

    fn event(&mut self, event: Event) -> Result<()> {
        let sent = self.tickets.send(()).is_ok()
            && self
                .events
                .as_ref()
                .is_some_and(|e| e.send((self.seq, event)).is_ok());
        if !sent {
            return Err(self.failure());
        }
        self.seq += 1;
        Ok(())
    }

    pub(super) fn end_layer(&mut self) -> Result<LayerRecord> {
        let (reply, answer) = channel();
        self.event(Event::Layer(reply))?;
        answer.recv().map_err(|_| self.failure())
    }

    pub(super) fn finish(&mut self) -> Result<Done> {
        let mut done = self.join()?;
        done.paths = std::mem::take(&mut self.paths);
        Ok(done)
    }

    fn join(&mut self) -> Result<Done> {
        let gone = || Error::Write {
            offset: 0,
            source: io::Error::other("a thread of the writer has ended early"),
        };
        self.jobs = None;
        for worker in self.workers.drain(..) {
            worker.join().map_err(|_| gone())?;
        }
        self.events = None;
        self.writer
            .take()
            .ok_or_else(gone)?
            .join()
            .map_err(|_| gone())?
    }

    /// Why the threads have gone.
    fn failure(&mut self) -> Error {
        match self.join() {
            Err(error) => error,
            Ok(_) => Error::Write {
                offset: 0,
                source: io::ErrorKind::BrokenPipe.into(),
            },
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        let _ = self.join();
    }
}

/// Reads the next `min(left, frame_len)` bytes.
fn read(input: &mut dyn Read, left: u64, frame_len: usize) -> Result<Vec<u8>> {
    let len = usize::try_from(left).unwrap_or(usize::MAX).min(frame_len);
    let mut raw = vec![0; len];
    input.read_exact(&mut raw).map_err(Error::Input)?;
    Ok(raw)
}

/// The function of a compressing thread.
type Pack = Box<dyn FnMut(Job) -> Result<Packed> + Send>;

struct Worker {
    jobs: Arc<Mutex<Receiver<Job>>>,
    events: Sender<(u64, Event)>,
    pack: Pack,
}

impl Worker {
    fn run(mut self) {
        loop {
            let job = self
                .jobs
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .recv();
            let Ok(job) = job else { break };
            let (seq, small) = (job.seq, job.small);
            // The writer waits for the answer to every job: a panic must not keep it back.
            let packed = catch_unwind(AssertUnwindSafe(|| (self.pack)(job)));
            let event = match packed {
                Ok(Ok(packed)) if small => Event::Small(packed),
                Ok(Ok(packed)) => Event::Frame(packed),
                Ok(Err(error)) => Event::Failed(error),
                Err(_) => Event::Failed(Error::Write {
                    offset: 0,
                    source: io::Error::other("a compressing thread has panicked"),
                }),
            };
            let failed = matches!(event, Event::Failed(_));
            if self.events.send((seq, event)).is_err() || failed {
                break;
            }
        }
    }
}

/// Compresses and seals.
struct Packer {
    zstd: zstd::bulk::Compressor<'static>,
    key: Option<Key>,
    flavour: Flavour,
}

impl Packer {
    fn pack(&mut self, job: Job) -> Result<Packed> {
        let (size, crc) = (job.raw.len() as u64, self.flavour.crc(&job.raw));
        let mut packed = (job.raw, Compression::None);
        if job.zstd {
            let bytes = self.zstd.compress(&packed.0).map_err(Error::Input)?;
            if job.always || bytes.len() < packed.0.len() {
                packed = (bytes, Compression::Zstd);
            }
        }
        let (mut bytes, comp) = packed;
        if let Some(key) = &self.key {
            bytes = aead::seal(key, &nonce()?, &job.aad, &bytes)?;
        }
        let hash = hash(&bytes);
        Ok(Packed {
            bytes,
            comp,
            size,
            crc,
            hash,
        })
    }
}

/// A content of several frames that is being written.
struct Open {
    position: u64,
    first_frame: usize,
}

struct Writer {
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
    fn new(file: Arc<File>, start: Start, options: &WriteOptions, tickets: Receiver<()>) -> Self {
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

    fn run(mut self, events: &Receiver<(u64, Event)>) -> Result<Done> {
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
pub(super) fn table_len(content: &Content) -> u64 {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// More pieces than can be in the pipeline, so that waiting for the one that panics would never
    /// end.
    #[test]
    fn a_panic_in_a_compressing_thread_is_an_error() -> Result<()> {
        #[allow(clippy::panic)]
        fn panics(_: Job) -> Result<Packed> {
            panic!("as a library may")
        }
        let file = Arc::new(tempfile::tempfile().map_err(Error::Input)?);
        let options = WriteOptions::default();
        let mut pipeline =
            Pipeline::start_with(file, &options, Flavour::Raw, Start::default(), || {
                Ok(Box::new(panics))
            })?;
        let added = (0..2 * IN_FLIGHT)
            .try_for_each(|n| pipeline.add(b"", 8, &mut &n.to_le_bytes()[..]).map(drop));
        let error = added.and_then(|()| pipeline.finish().map(drop)).err();
        assert!(
            matches!(&error, Some(Error::Write { source, .. })
                if source.to_string().contains("panicked")),
            "{error:?}"
        );
        Ok(())
    }
}
