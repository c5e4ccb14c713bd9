//! A cache of decoded content that can only be decoded as a whole, as in images of the reference
//! tool.
//!
//! It is bounded in bytes. If several readers request a content at the same time, one decodes it
//! and the others wait. Content that is larger than the cache goes to an unlinked temporary file;
//! all these files together are bounded too.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, PoisonError};

use lru::LruCache;

use super::error::{Error, Result};
use super::spool::Spool;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, OnceLock};

/// How many temporary files are kept open at most.
const MAX_FILES: usize = 64;

/// Decoded content.
#[derive(Debug)]
pub(super) enum Decoded {
    Memory(Box<[u8]>),
    File(File, Share),
}

/// A part of the limit for temporary files, in bytes; returned when the file is closed.
#[derive(Debug)]
pub(super) struct Share {
    size: u64,
    taken: Arc<AtomicU64>,
}

impl Share {
    /// `None` when less than `size` is left of `limit`.
    fn take(taken: &Arc<AtomicU64>, size: u64, limit: u64) -> Option<Self> {
        let more = |now: u64| now.checked_add(size).filter(|&sum| sum <= limit);
        taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .ok()?;
        Some(Self {
            size,
            taken: taken.clone(),
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.size, Ordering::Relaxed);
    }
}

impl Decoded {
    /// Appends the bytes from `offset`, at most `len`, to `out`.
    pub(super) fn read(&self, offset: u64, len: usize, out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Decoded::Memory(bytes) => {
                let start = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                out.extend_from_slice(&bytes[start..start + len.min(bytes.len() - start)]);
                Ok(())
            }
            Decoded::File(file, share) => {
                let len = usize::try_from(share.size.saturating_sub(offset))
                    .unwrap_or(usize::MAX)
                    .min(len);
                let start = out.len();
                out.resize(start + len, 0);
                file.read_exact_at(&mut out[start..], offset)
            }
        }
    }

    /// The space that it takes in the cache, bytes.
    fn cost(&self) -> u64 {
        match self {
            Decoded::Memory(bytes) => bytes.len() as u64,
            Decoded::File(..) => 0,
        }
    }
}

/// The destination of decoded bytes.
pub(super) enum Sink {
    Memory(Vec<u8>),
    File(File, Share),
}

impl Write for Sink {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Sink::Memory(out) => out.write(buf),
            Sink::File(file, _) => file.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Slot = Arc<OnceLock<Result<Decoded, Arc<Error>>>>;

/// The cache, keyed by content number.
pub(super) struct Cache {
    limit: u64,
    spool: Box<dyn Spool>,
    /// The limit for all temporary files together, and what they take now, bytes.
    spool_limit: u64,
    spooled: Arc<AtomicU64>,
    slots: Mutex<LruCache<u32, Slot>>,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// How often content was in the cache, and how often it had to be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheCounts {
    /// It was in the cache, or another reader was decoding it.
    pub hits: u64,
    /// It was not.
    pub misses: u64,
}

impl Cache {
    pub(super) fn new(limit: u64, spool: Box<dyn Spool>, spool_limit: u64) -> Self {
        Self {
            limit,
            spool,
            spool_limit,
            spooled: Arc::default(),
            slots: Mutex::new(LruCache::unbounded()),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// The current counters.
    pub(super) fn counts(&self) -> CacheCounts {
        CacheCounts {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
        }
    }

    /// The content `key` of `size` bytes, from the cache, or decoded by `decode` into the sink it
    /// is given.
    pub(super) fn get(
        &self,
        key: u32,
        size: u64,
        decode: impl FnOnce(&mut Sink) -> Result<()>,
    ) -> Result<Guard> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.get_or_insert(key, Slot::default).clone()
        };
        let mut fresh = false;
        let failed = slot
            .get_or_init(|| {
                fresh = true;
                self.decode(size, decode).map_err(Arc::new)
            })
            .as_ref()
            .err()
            .cloned();
        let counter = if fresh { &self.misses } else { &self.hits };
        counter.fetch_add(1, Ordering::Relaxed);
        if let Some(error) = failed {
            // A failure is not kept: the cause may pass, a full disk for one.
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            if slots.peek(&key).is_some_and(|s| Arc::ptr_eq(s, &slot)) {
                slots.pop(&key);
            }
            return Err(Error::Shared(error));
        }
        if fresh {
            self.evict();
        }
        Ok(Guard(slot))
    }

    fn decode(&self, size: u64, decode: impl FnOnce(&mut Sink) -> Result<()>) -> Result<Decoded> {
        let mut sink = match usize::try_from(size).ok().filter(|_| size <= self.limit) {
            // Bounded by the cache's limit.
            Some(size) => Sink::Memory(Vec::with_capacity(size)),
            None => {
                let share = self.share(size)?;
                Sink::File(
                    self.spool
                        .file(size)
                        .map_err(|source| Error::Temporary { size, source })?,
                    share,
                )
            }
        };
        decode(&mut sink)?;
        Ok(match sink {
            Sink::Memory(out) => Decoded::Memory(out.into_boxed_slice()),
            Sink::File(file, share) => Decoded::File(file, share),
        })
    }

    /// Room for a temporary file, if need be in the place of those that were not read for longest.
    fn share(&self, size: u64) -> Result<Share> {
        loop {
            if let Some(share) = Share::take(&self.spooled, size, self.spool_limit) {
                return Ok(share);
            }
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            let is_file = |slot: &Slot| matches!(slot.get(), Some(Ok(Decoded::File(..))));
            let oldest = slots
                .iter()
                .rev()
                .find(|(_, slot)| is_file(slot))
                .map(|(key, _)| *key);
            match oldest.filter(|_| size <= self.spool_limit) {
                Some(key) => drop(slots.pop(&key)),
                None => {
                    return Err(Error::SpoolFull {
                        size,
                        limit: self.spool_limit,
                    });
                }
            }
        }
    }

    fn evict(&self) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let done = |slot: &Slot| {
            slot.get()
                .and_then(|d| d.as_ref().ok())
                .map(|d| (d.cost(), usize::from(d.cost() == 0)))
        };
        let (mut bytes, mut files) = slots
            .iter()
            .filter_map(|(_, s)| done(s))
            .fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
        while bytes > self.limit || files > MAX_FILES {
            // What is being decoded takes nothing yet, and others wait for it or will.
            let oldest = slots
                .iter()
                .rev()
                .find_map(|(&key, s)| Some((key, done(s)?)));
            let Some((key, (cost, file))) = oldest else {
                break;
            };
            slots.pop(&key);
            (bytes, files) = (bytes - cost, files - file);
        }
    }
}

/// Checks that are needed once before a content is used, by content number. If several readers need
/// one at the same time, one checks and the others wait.
#[derive(Default)]
pub(super) struct Checks(Mutex<HashMap<u32, Check>>);

type Check = Arc<OnceLock<Result<(), Arc<Error>>>>;

impl Checks {
    /// Runs `check`, unless it has succeeded before.
    ///
    /// # Errors
    /// The error of `check`, which is not remembered.
    pub(super) fn once(&self, key: u32, check: impl FnOnce() -> Result<()>) -> Result<()> {
        let checks = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = checks().entry(key).or_default().clone();
        let Err(error) = slot.get_or_init(|| check().map_err(Arc::new)) else {
            return Ok(());
        };
        let mut checks = checks();
        if checks.get(&key).is_some_and(|s| Arc::ptr_eq(s, &slot)) {
            checks.remove(&key);
        }
        Err(Error::Shared(error.clone()))
    }
}

/// Decoded content that stays while this is held, whatever the cache drops.
pub(super) struct Guard(Slot);

impl Guard {
    pub(super) fn read(&self, offset: u64, len: usize, out: &mut Vec<u8>) -> io::Result<()> {
        match self.0.get() {
            Some(Ok(decoded)) => decoded.read(offset, len, out),
            _ => Err(io::ErrorKind::NotFound.into()), // `Cache::get` hands out what is decoded
        }
    }
}

#[cfg(all(test, shuttle))]
mod schedules;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::spool::TempDir;
    use super::*;
    use std::sync::atomic::AtomicU32;

    fn temp_dir() -> Box<dyn Spool> {
        Box::new(TempDir(std::env::temp_dir()))
    }

    fn content(n: u8, len: usize) -> impl FnOnce(&mut Sink) -> Result<()> {
        move |sink| {
            sink.write_all(&vec![n; len]).unwrap();
            Ok(())
        }
    }

    #[test]
    fn bounded_and_decoded_once() {
        let cache = Cache::new(1000, temp_dir(), 0);
        let decodes = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let guard = cache
                        .get(1, 400, |sink| {
                            decodes.fetch_add(1, Ordering::Relaxed);
                            std::thread::sleep(std::time::Duration::from_millis(20));
                            content(1, 400)(sink)
                        })
                        .unwrap();
                    let mut out = Vec::new();
                    guard.read(390, 100, &mut out).unwrap();
                    assert_eq!(out, [1; 10]);
                });
            }
        });
        assert_eq!(decodes.load(Ordering::Relaxed), 1);
        assert_eq!(cache.counts(), CacheCounts { hits: 7, misses: 1 });
        for n in 2..10 {
            cache.get(n.into(), 400, content(n, 400)).unwrap();
        }
        assert_eq!(cache.slots.lock().unwrap().len(), 2);
    }

    #[test]
    fn what_is_being_decoded_is_not_dropped() {
        let cache = Cache::new(400, temp_dir(), 0);
        let slow = |sink: &mut Sink| {
            for n in 2..5 {
                cache.get(n.into(), 400, content(n, 400))?;
            }
            assert!(cache.slots.lock().unwrap().contains(&1));
            content(1, 400)(sink)
        };
        cache.get(1, 400, slow).unwrap();
        assert_eq!(cache.slots.lock().unwrap().len(), 1);
    }

    #[test]
    fn larger_than_the_cache_goes_to_a_file() {
        let cache = Cache::new(10, temp_dir(), 5000);
        let guard = cache.get(1, 5000, content(9, 5000)).unwrap();
        assert!(matches!(
            guard.0.get().unwrap().as_ref().unwrap(),
            Decoded::File(..)
        ));
        let mut out = Vec::new();
        guard.read(4999, 100, &mut out).unwrap();
        assert_eq!(out, [9]);
    }

    #[test]
    fn all_files_together_are_bounded() {
        let cache = Cache::new(10, temp_dir(), 10_000);
        let held = cache.get(1, 4000, content(1, 4000)).unwrap();
        for n in 2..9 {
            // The first is still read, so there is room for one more only.
            cache.get(n, 6000, content(2, 6000)).unwrap();
            assert_eq!(cache.spooled.load(Ordering::Relaxed), 10_000);
        }
        let refused = cache
            .get(9, 6001, content(3, 6001))
            .err()
            .unwrap()
            .to_string();
        assert!(refused.contains("6001 bytes"), "{refused}");
        drop(held);
        assert!(cache.get(9, 6001, content(3, 6001)).is_ok());
        assert!(cache.get(10, 10_001, content(3, 10_001)).is_err());
    }

    #[test]
    fn what_many_want_checked_is_checked_once() {
        let (checks, done) = (Checks::default(), AtomicU32::new(0));
        let check = |ok: bool| {
            checks.once(7, || {
                done.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_millis(50));
                if ok { Ok(()) } else { Err(Error::NotFound) }
            })
        };
        assert!(check(false).is_err());
        std::thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(|| check(true).unwrap()))));
        assert_eq!(done.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_failure_is_not_kept() {
        let cache = Cache::new(10, temp_dir(), 0);
        assert!(cache.get(1, 5, |_| Err(Error::NotFound)).is_err());
        assert!(cache.get(1, 5, content(1, 5)).is_ok());
    }
}
