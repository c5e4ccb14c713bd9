//! The cache under many schedules of its readers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::super::spool::TempDir;
use super::*;
use crate::sync::{check, switch, thread};

/// Length of every content, bytes, and a limit for two of them.
const LEN: usize = 400;
const LIMIT: u64 = 1000;
const READERS: usize = 3;

/// Decodes, and finds out when a content is decoded twice at the same time.
#[derive(Default)]
struct Decoder {
    running: [std::sync::atomic::AtomicBool; 4],
    decodes: std::sync::atomic::AtomicU32,
}

impl Decoder {
    fn run(&self, key: u32, out: impl FnOnce() -> Result<()>) -> Result<()> {
        let running = &self.running[key as usize];
        assert!(
            !running.swap(true, Ordering::Relaxed),
            "{key} is decoded twice at a time"
        );
        switch();
        let result = out();
        self.decodes.fetch_add(1, Ordering::Relaxed);
        running.store(false, Ordering::Relaxed);
        result
    }

    fn get(&self, cache: &Cache, key: u32) -> Result<Guard> {
        cache.get(key, LEN as u64, |sink| {
            self.run(key, || {
                sink.write_all(&[key as u8; LEN]).unwrap();
                Ok(())
            })
        })
    }

    fn decodes(&self) -> u32 {
        self.decodes.load(Ordering::Relaxed)
    }
}

fn no_files() -> Box<dyn Spool> {
    Box::new(TempDir(PathBuf::new()))
}

fn assert_holds(guard: &Guard, key: u32) {
    let mut out = Vec::new();
    guard.read(1, LEN, &mut out).unwrap();
    assert_eq!(out, [key as u8; LEN - 1]);
}

/// Bytes in memory that the cache keeps.
fn kept(cache: &Cache) -> u64 {
    let slots = cache.slots.lock().unwrap();
    let cost = |slot: &Slot| {
        slot.get()
            .map_or(0, |decoded| decoded.as_ref().unwrap().cost())
    };
    slots.iter().map(|(_, slot)| cost(slot)).sum()
}

#[test]
fn what_fits_is_decoded_once() {
    check(200, || {
        let (cache, decoder) = (Cache::new(LIMIT, no_files(), 0), Decoder::default());
        thread::scope(|scope| {
            for reader in 0..READERS {
                let (cache, decoder) = (&cache, &decoder);
                scope.spawn(move || {
                    for key in [1, 2 - reader as u32 % 2] {
                        assert_holds(&decoder.get(cache, key).unwrap(), key);
                    }
                });
            }
        });
        assert_eq!(decoder.decodes(), 2);
        assert_eq!(cache.counts(), CacheCounts { hits: 4, misses: 2 });
    });
}

/// One fits, so that others are dropped while one is decoded.
#[test]
fn memory_is_bounded_and_nothing_is_decoded_twice_at_a_time() {
    check(200, || {
        let (cache, decoder) = (Cache::new(LEN as u64, no_files(), 0), Decoder::default());
        thread::scope(|scope| {
            for keys in [[1, 2, 3], [2, 3, 1], [3, 1, 2]] {
                let (cache, decoder) = (&cache, &decoder);
                scope.spawn(move || {
                    for key in keys {
                        assert_holds(&decoder.get(cache, key).unwrap(), key);
                        // Each of the others may be about to make room for one more.
                        assert!(kept(cache) <= (READERS * LEN) as u64);
                    }
                });
            }
        });
        assert!(kept(&cache) <= LEN as u64);
    });
}

/// The first attempt fails. Those who waited for it get its error, and all that follow find a
/// content that is decoded once more.
#[test]
fn an_error_reaches_all_who_waited_and_is_not_kept() {
    check(200, || {
        let (cache, decoder) = (Cache::new(LIMIT, no_files(), 0), Decoder::default());
        let read = || match cache.get(1, LEN as u64, |sink| {
            decoder.run(1, || {
                sink.write_all(&[1; LEN]).unwrap();
                if decoder.decodes() == 0 {
                    Err(Error::NotFound)
                } else {
                    Ok(())
                }
            })
        }) {
            Ok(guard) => {
                assert_holds(&guard, 1);
                0
            }
            Err(Error::Shared(error)) => {
                assert!(matches!(*error, Error::NotFound));
                1
            }
            Err(error) => panic!("{error}"),
        };
        let failed: usize = thread::scope(|scope| {
            let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(read)).collect();
            readers
                .into_iter()
                .map(|reader| reader.join().unwrap())
                .sum()
        });
        assert!((1..=READERS).contains(&failed));
        assert_eq!((read(), decoder.decodes()), (0, 2));
    });
}

/// Bytes of the temporary files in `dir` that this process has open. They have no names, and their
/// content is written a moment later.
fn spooled(dir: &Path) -> u64 {
    let files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    files
        .filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(dir)))
        .count() as u64
        * LEN as u64
}

/// Temporary files, counted.
struct Counted {
    dir: PathBuf,
    limit: u64,
}

impl Spool for Counted {
    fn file(&self, size: u64) -> io::Result<File> {
        let file = TempDir(self.dir.clone()).file(size)?;
        assert!(spooled(&self.dir) <= self.limit);
        Ok(file)
    }
}

#[test]
fn temporary_files_are_bounded_and_their_room_comes_back() {
    check(80, || {
        let dir = tempfile::tempdir().unwrap();
        let limit = 2 * LEN as u64;
        let spool = Counted {
            dir: dir.path().to_owned(),
            limit,
        };
        let (cache, decoder) = (Cache::new(0, Box::new(spool), limit), Decoder::default());
        thread::scope(|scope| {
            for keys in [[1, 2], [2, 3], [3, 1]] {
                let (cache, decoder) = (&cache, &decoder);
                scope.spawn(move || {
                    for key in keys {
                        match decoder.get(cache, key) {
                            Ok(guard) => assert_holds(&guard, key),
                            // Others hold all there is.
                            Err(Error::Shared(error)) => {
                                assert!(matches!(*error, Error::SpoolFull { .. }));
                            }
                            Err(error) => panic!("{error}"),
                        }
                    }
                });
            }
        });
        for key in 1..4 {
            assert_holds(&decoder.get(&cache, key).unwrap(), key);
        }
        drop(cache);
        assert_eq!(spooled(dir.path()), 0);
    });
}

#[test]
fn a_check_runs_once_at_a_time_until_it_succeeds() {
    check(200, || {
        let (checks, decoder) = (Checks::default(), Decoder::default());
        let once = || {
            checks.once(1, || {
                decoder.run(1, || {
                    if decoder.decodes() == 0 {
                        Err(Error::NotFound)
                    } else {
                        Ok(())
                    }
                })
            })
        };
        thread::scope(|scope| {
            for _ in 0..READERS {
                scope.spawn(|| drop(once()));
            }
        });
        once().unwrap();
        assert_eq!(decoder.decodes(), 2);
    });
}
