//! Progress of long work: on a terminal a bar with bytes, rate and time left, elsewhere plain
//! lines.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::output::{is_terminal, note, size};
use crate::image::{Events, Stage};
use crate::store::Reference;

/// Progress of work; the size of each step is known when it begins.
pub(super) struct Work {
    what: &'static str,
    step: RwLock<Option<Progress>>,
}

impl Work {
    /// Work such as "Building".
    pub(super) fn new(what: &'static str) -> Self {
        Self {
            what,
            step: RwLock::new(None),
        }
    }

    /// Work on so many bytes, in a single step.
    pub(super) fn begun(what: &'static str, bytes: u64) -> Self {
        Self {
            what,
            step: RwLock::new(Some(Progress::bytes(what, bytes))),
        }
    }
}

impl Events for Work {
    fn waiting(&self, name: &Reference) {
        Waiting.waiting(name);
    }

    fn begins(&self, step: Stage, bytes: u64) {
        let what = match step {
            Stage::MakeLayers => "Making layers",
            Stage::Digest => "Reading",
            _ => self.what,
        };
        let progress = Progress::bytes(what, bytes);
        *self.step.write().unwrap_or_else(PoisonError::into_inner) = Some(progress);
    }

    fn done(&self, bytes: u64) {
        let step = self.step.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(progress) = &*step {
            progress.add(bytes);
        }
    }

    fn ends(&self) {
        let step = self
            .step
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(progress) = step {
            progress.finish();
        }
    }
}

/// Reports only that it waits for another process.
pub(super) struct Waiting;

impl Events for Waiting {
    fn waiting(&self, name: &Reference) {
        note(format_args!(
            "lxcri-fs: waiting for another process, which is making {name}"
        ));
    }
}

/// How often to print a line if there is no terminal.
const EVERY: Duration = Duration::from_secs(10);

/// Progress of one piece of work, counted in bytes.
struct Progress {
    what: &'static str,
    total: u64,
    done: AtomicU64,
    bar: Option<ProgressBar>,
    last_line: Mutex<Instant>,
}

impl Progress {
    /// Work on `total` bytes, such as "Verifying".
    fn bytes(what: &'static str, total: u64) -> Self {
        let bar = is_terminal().then(|| {
            let bar = ProgressBar::new(total).with_message(what);
            let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            bar.with_style(
                ProgressStyle::with_template(template)
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            )
        });
        Self {
            what,
            total,
            done: AtomicU64::new(0),
            bar,
            last_line: Mutex::new(Instant::now()),
        }
    }

    /// Counts `n` more bytes as done.
    fn add(&self, n: u64) {
        let done = self.done.fetch_add(n, Ordering::Relaxed) + n;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            return;
        }
        let Ok(mut last) = self.last_line.try_lock() else {
            return;
        };
        if last.elapsed() >= EVERY {
            *last = Instant::now();
            note(format_args!(
                "{}: {} of {}",
                self.what,
                size(done),
                size(self.total)
            ));
        }
    }

    /// The work has ended.
    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
