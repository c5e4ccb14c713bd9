//! The pipeline for contents: the caller reads and deduplicates them, workers on all cores compress
//! and encrypt them, and one thread writes them in their original order, so that the result does
//! not depend on timing.

mod output;
#[cfg(all(test, shuttle))]
mod schedules;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};

use self::output::Writer;
pub(super) use self::output::table_len;
use super::{Paths, WriteOptions};
use crate::aead::{self, NONCE_LEN};
use crate::content::frame_aad;
use crate::crc::Flavour;
use crate::error::{Error, Result};
use crate::format::Compression;
use crate::key::Key;
use crate::rootfs::format::{Content, Frame, Hash, LayerRecord, hash};
use crate::sync::Mutex;
use crate::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use crate::sync::thread::{self, JoinHandle};

/// Pieces that are under way at most; of a frame's length each.
const IN_FLIGHT: usize = if cfg!(shuttle) { 3 } else { 256 };
/// Bytes that are gathered before they are written.
const WRITE_BUFFER: usize = if cfg!(shuttle) { 1 } else { 1 << 20 };
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
        let cores = thread::available_parallelism().map_or(2, usize::from);
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
            let thread = thread::Builder::new()
                .name("compress".into())
                .spawn(move || worker.run())
                .map_err(failed)?;
            workers.push(thread);
        }
        let writer = Writer::new(file, start, options, ticket_queue);
        let writer = thread::Builder::new()
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
