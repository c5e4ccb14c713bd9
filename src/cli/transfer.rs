//! Progress of pulls and pushes: on a terminal a bar for each layer, with its rate and the time
//! that is left; elsewhere a line for each.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::output::{is_terminal, note, size};
use crate::registry::{Observer, Wanted};

/// Progress of a pull or of a push.
pub(super) struct Transfer {
    quiet: bool,
    /// What is said of bytes that did not have to be moved.
    known: &'static str,
    bars: Option<MultiProgress>,
    blobs: Mutex<Vec<Blob>>,
    fetched: AtomicU64,
}

struct Blob {
    name: String,
    size: u64,
    moved: u64,
    known: u64,
    bar: Option<ProgressBar>,
}

impl Transfer {
    /// The display of a pull, which shows nothing if `quiet` is set.
    pub(super) fn new(quiet: bool) -> Self {
        Self::knowing(quiet, "fetched before")
    }

    /// The display of a push, which shows nothing if `quiet` is set.
    pub(super) fn of_push(quiet: bool) -> Self {
        Self::knowing(quiet, "in the registry before")
    }

    fn knowing(quiet: bool, known: &'static str) -> Self {
        let bars = (!quiet && is_terminal()).then(MultiProgress::new);
        Self {
            quiet,
            known,
            bars,
            blobs: Mutex::default(),
            fetched: AtomicU64::new(0),
        }
    }

    /// How many bytes came from the registry.
    pub(super) fn fetched_bytes(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    /// The work has ended.
    pub(super) fn finish(&self) {
        if let Some(bars) = &self.bars {
            // If the terminal is gone, nothing needs clearing.
            let _ = bars.clear();
        }
    }

    fn with(&self, blob: usize, change: impl FnOnce(&mut Blob)) {
        if let Some(blob) = self
            .blobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_mut(blob)
        {
            change(blob);
        }
    }
}

impl Observer for Transfer {
    fn begins(&self, blobs: &[Wanted]) {
        let bar = |blob: &Wanted, name: &str| {
            let bar = self
                .bars
                .as_ref()?
                .add(ProgressBar::new(blob.size).with_message(name.to_owned()));
            let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            Some(
                bar.with_style(
                    ProgressStyle::with_template(template)
                        .unwrap_or_else(|_| ProgressStyle::default_bar()),
                ),
            )
        };
        let blobs = blobs.iter().map(|blob| {
            let name = blob.digest.hex()[..12].to_owned();
            Blob {
                bar: bar(blob, &name),
                name,
                size: blob.size,
                moved: 0,
                known: 0,
            }
        });
        *self.blobs.lock().unwrap_or_else(PoisonError::into_inner) = blobs.collect();
    }

    fn moved(&self, blob: usize, bytes: u64, known: bool) {
        if !known {
            self.fetched.fetch_add(bytes, Ordering::Relaxed);
        }
        self.with(blob, |blob| {
            let first = blob.moved == 0;
            blob.moved += bytes;
            blob.known += if known { bytes } else { 0 };
            if let Some(bar) = &blob.bar {
                // The rate is that of what is moved, from its beginning on.
                if first {
                    bar.reset_eta();
                }
                bar.set_position(blob.moved);
                if known {
                    bar.reset_eta();
                }
            }
        });
    }

    fn again(&self, blob: usize) {
        self.with(blob, |blob| {
            (blob.moved, blob.known) = (0, 0);
            if let Some(bar) = &blob.bar {
                bar.set_position(0);
            }
        });
    }

    fn complete(&self, blob: usize) {
        let known = self.known;
        self.with(blob, |blob| match &blob.bar {
            Some(bar) => bar.finish(),
            None if self.quiet => {}
            None if blob.known > 0 => note(format_args!(
                "{}: {}, of which {} were {known}",
                blob.name,
                size(blob.size),
                size(blob.known)
            )),
            None => note(format_args!("{}: {}", blob.name, size(blob.size))),
        });
    }
}
