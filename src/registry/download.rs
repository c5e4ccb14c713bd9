//! Fetches several blobs at a time in a separate thread, while the first of them are read.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use futures_util::StreamExt;
use futures_util::future::select;
use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;
use tokio::sync::oneshot;

use super::answer::pause;
use super::error::{Error, Result};
use super::rate::{Body, Interrupted};
use super::retry::Failures;
use super::session::{Mirrored, Session};
use super::spool::{Spool, SpoolDir};
use crate::build::sources::{TarSource, unpack};
use crate::build::{self, Digest, Mismatch};
use crate::error::Io;

/// How many blobs are fetched at a time.
const AT_ONCE: usize = 3;
/// So many bytes are progress: failures before them are forgotten.
const PROGRESS: u64 = 1 << 16;
/// Longest blob that is fetched, bytes.
const MAX_BLOB: u64 = build::MAX_SIZE;

/// A blob to fetch.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Its digest.
    pub digest: Digest,
    /// How many bytes it has.
    pub size: u64,
}

/// Receives the progress of downloads and uploads, from any thread.
pub trait Observer: Send + Sync {
    /// These are the blobs that there are.
    fn begins(&self, _blobs: &[Wanted]) {}

    /// `bytes` more of blob number `blob` have arrived; `known` when they were there already.
    fn moved(&self, blob: usize, bytes: u64, known: bool);

    /// Blob number `blob` begins again: what was moved of it is lost.
    fn again(&self, _blob: usize) {}

    /// Blob number `blob` is complete.
    fn complete(&self, _blob: usize) {}
}

/// Observes nothing.
impl Observer for () {
    fn moved(&self, _: usize, _: u64, _: bool) {}
}

/// Blobs that are being fetched, each once, however often it is requested. When this is dropped,
/// the fetched parts stay for a later attempt; see [`Blobs::finish`].
pub struct Blobs {
    /// For each requested blob, its number among the different blobs.
    order: Vec<usize>,
    spools: Vec<Arc<Spool>>,
    wanted: Vec<Wanted>,
    dir: SpoolDir,
    begin: Mutex<Option<oneshot::Sender<usize>>>,
    cancel: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Blobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blobs")
            .field("wanted", &self.wanted)
            .finish_non_exhaustive()
    }
}

impl Blobs {
    /// Prepares to fetch blobs into files below `dir`. Fetching starts when the first one is read.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Build`] if a blob is too long, or has two lengths.
    pub fn new(
        session: Session,
        asked: &[Wanted],
        dir: &Path,
        observer: Arc<dyn Observer>,
    ) -> Result<Arc<Self>> {
        let (wanted, order) = distinct(asked)?;
        observer.begins(&wanted);
        let dir = SpoolDir::below(dir)?;
        let spools: Vec<_> = wanted
            .iter()
            .map(|b| dir.blob(&b.digest, b.size).map(Arc::new))
            .collect::<Result<_>>()?;
        let (begin, begun) = oneshot::channel();
        let (cancel, cancelled) = oneshot::channel();
        let work = Work {
            sources: session.sources,
            order: order.clone(),
            spools: spools.clone(),
            wanted: wanted.clone(),
            observer,
        };
        let run = move || {
            session
                .runtime
                .block_on(select(pin!(work.run(begun)), cancelled));
            // Readers must not wait for bytes that never come.
            work.spools
                .iter()
                .for_each(|spool| spool.end(Err(Error::Cancelled)));
        };
        let thread = std::thread::Builder::new()
            .name("download".into())
            .spawn(run);
        let thread = thread.map_err(Io::at("starting a thread for", Path::new("downloads")))?;
        Ok(Arc::new(Self {
            order,
            spools,
            wanted,
            dir,
            begin: Mutex::new(Some(begin)),
            cancel: Some(cancel),
            thread: Some(thread),
        }))
    }

    /// Begins to fetch this blob and those that were requested after it.
    fn begin(&self, asked: usize) {
        if let Some(begin) = self
            .begin
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            // The thread waits for this alone.
            let _ = begin.send(asked);
        }
    }

    /// Fetches the blob that was requested as number `asked` to its end. Returns its file, checked
    /// against its digest.
    ///
    /// # Errors
    /// [`Error`]; if its digest is wrong, its file is removed.
    pub fn file(&self, asked: usize, progress: &(dyn Fn(u64) + Sync)) -> Result<&std::fs::File> {
        let blob = self.order[asked];
        self.read(
            asked,
            &self.wanted[blob].digest.to_string(),
            &mut std::io::sink(),
            false,
            progress,
        )?;
        Ok(self.spools[blob].file())
    }

    /// Removes what was fetched, unless `result` is a transient failure, after which the next
    /// attempt can continue.
    pub fn finish<T>(&self, result: Result<T>) -> Result<T> {
        if !result.as_ref().is_err_and(Error::is_transient) {
            self.spools.iter().for_each(|spool| spool.discard());
            self.dir.remove_if_empty();
        }
        result
    }

    /// Reads a blob, decompressed if it is compressed, while it is fetched.
    fn read(
        &self,
        asked: usize,
        name: &str,
        out: &mut dyn Write,
        decompress: bool,
        progress: &(dyn Fn(u64) + Sync),
    ) -> build::Result<()> {
        self.begin(asked);
        let blob = self.order[asked];
        let spool = &self.spools[blob];
        let result = unpack(
            name,
            spool.path(),
            spool.reader(),
            Some(self.wanted[blob].digest),
            decompress,
            out,
            progress,
        );
        if let Some(error) = spool.failure() {
            if let Error::Build(error) = error {
                spool.discard();
                return Err(error);
            }
            return Err(build::Error::remote(name, error));
        }
        if matches!(result, Err(build::Error::Mismatch { .. })) {
            spool.discard();
        }
        result
    }
}

/// Each blob once, in the order of their first mention, and for each mention which of them it is.
fn distinct(asked: &[Wanted]) -> Result<(Vec<Wanted>, Vec<usize>)> {
    let (mut wanted, mut order) = (Vec::<Wanted>::new(), Vec::with_capacity(asked.len()));
    let mut known = HashMap::new();
    for &one in asked {
        let wrong =
            |reason| Err(build::Error::document(format!("blob {}", one.digest), reason).into());
        if one.size > MAX_BLOB {
            return wrong(format!(
                "its descriptor says {} bytes; at most {MAX_BLOB} are allowed",
                one.size
            ));
        }
        let blob = *known.entry(one.digest).or_insert_with(|| {
            wanted.push(one);
            wanted.len() - 1
        });
        if wanted[blob].size != one.size {
            return wrong(format!(
                "its descriptors disagree: {} and {} bytes",
                wanted[blob].size, one.size
            ));
        }
        order.push(blob);
    }
    Ok((wanted, order))
}

impl Drop for Blobs {
    fn drop(&mut self) {
        self.cancel.take();
        if let Some(thread) = self.thread.take() {
            // A panic was reported already.
            let _ = thread.join();
        }
    }
}

/// A layer that is fetched.
pub(super) struct RemoteLayer {
    /// The blobs that it belongs to.
    pub blobs: Arc<Blobs>,
    /// Its number among the requested blobs.
    pub asked: usize,
    /// Its name in messages.
    pub name: String,
}

impl TarSource for RemoteLayer {
    fn write_to(
        self: Box<Self>,
        out: &mut dyn Write,
        progress: &(dyn Fn(u64) + Sync),
    ) -> build::Result<()> {
        self.blobs.read(self.asked, &self.name, out, true, progress)
    }
}

/// The work of the thread.
struct Work {
    sources: Arc<Mirrored>,
    order: Vec<usize>,
    spools: Vec<Arc<Spool>>,
    wanted: Vec<Wanted>,
    observer: Arc<dyn Observer>,
}

impl Work {
    async fn run(&self, begun: oneshot::Receiver<usize>) {
        // Nothing has to be fetched when everything was there.
        let Ok(first) = begun.await else { return };
        let fetch = async |blob: usize| {
            let result = self.fetch(blob).await;
            if result.is_ok() {
                self.observer.complete(blob);
            }
            self.spools[blob].end(result);
        };
        let mut seen = HashSet::new();
        let blobs: Vec<_> = self.order[first..]
            .iter()
            .copied()
            .filter(|&blob| seen.insert(blob))
            .collect();
        futures_util::stream::iter(blobs)
            .for_each_concurrent(AT_ONCE, fetch)
            .await;
    }

    /// Fetches the missing part of a blob, with as many requests as necessary.
    async fn fetch(&self, blob: usize) -> Result<()> {
        let (spool, size) = (&self.spools[blob], self.wanted[blob].size);
        if spool.have() > 0 {
            self.observer.moved(blob, spool.have(), true);
        }
        let mut failures = Failures::default();
        let mut seen = spool.have();
        while spool.have() < size {
            match self.fetch_some(blob).await {
                Ok(()) => return Ok(()),
                Err(Broken::Connection(url, broken)) => {
                    if spool.have() >= seen + PROGRESS {
                        seen = spool.have();
                        failures.forget();
                    }
                    let wait = failures.pause(&broken.cause());
                    pause(wait, &url, &broken.to_string())
                        .await
                        .ok_or_else(|| broken.at(&url))?;
                }
                Err(Broken::Other(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes one request, and stores its response.
    async fn fetch_some(&self, blob: usize) -> Result<(), Broken> {
        let (spool, Wanted { digest, size }) = (&self.spools[blob], self.wanted[blob]);
        let have = spool.have();
        let mut response = self.sources.blob(&digest, have).await?;
        let url = response.url().clone();
        let wrong_size = |found: u64| {
            let reason = Mismatch::Size {
                found,
                wanted: size,
            };
            Broken::Other(
                build::Error::Mismatch {
                    name: format!("blob {digest}"),
                    reason,
                }
                .into(),
            )
        };
        // A server without ranges sends everything again: the known part is skipped, and the digest
        // shows in the end whether it was the same.
        let mut at = if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = response
                .headers()
                .get(CONTENT_RANGE)
                .and_then(|v| v.to_str().ok())
                .unwrap_or_default();
            if !range.starts_with(&format!("bytes {have}-")) {
                return Err(Broken::Other(Error::protocol(
                    &url,
                    format!("it sends {range:?} instead of the bytes from {have} on"),
                )));
            }
            have
        } else {
            0
        };
        let announced = response
            .content_length()
            .map(|length| at.saturating_add(length));
        if let Some(length) = announced.filter(|&length| length != size) {
            return Err(wrong_size(length));
        }
        let mut body = Body::new(&mut response);
        while let Some(piece) = body
            .piece()
            .await
            .map_err(|e| Broken::Connection(url.clone(), e))?
        {
            let end = at.saturating_add(piece.len() as u64);
            if end > size {
                return Err(wrong_size(end));
            }
            let known = usize::try_from(spool.have().saturating_sub(at))
                .unwrap_or(usize::MAX)
                .min(piece.len());
            if known < piece.len() {
                spool.append(&piece[known..])?;
                self.observer
                    .moved(blob, (piece.len() - known) as u64, false);
            }
            at = end;
        }
        if at == size {
            Ok(())
        } else {
            Err(wrong_size(at))
        }
    }
}

/// Why a request did not bring a blob to its end.
enum Broken {
    /// The connection broke, or might as well have.
    Connection(reqwest::Url, Interrupted),
    /// Anything else.
    Other(Error),
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Broken::Other(error)
    }
}
