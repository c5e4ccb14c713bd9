//! Progress of long work: a bar with bytes, rate and time left on a terminal, plain lines
//! elsewhere.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::output::{is_terminal, note, size};
use crate::image::Events;
use crate::store::Reference;

/// Progress of work of which it is told how much there is when it begins.
pub(super) struct Work {
    what: &'static str,
    progress: OnceLock<Progress>,
}

impl Work {
    /// Work such as "Building".
    pub(super) fn new(what: &'static str) -> Self {
        Self {
            what,
            progress: OnceLock::new(),
        }
    }
}

impl Events for Work {
    fn waiting(&self, name: &Reference) {
        Waiting.waiting(name);
    }

    fn begins(&self, bytes: u64) {
        self.progress
            .get_or_init(|| Progress::bytes(self.what, bytes));
    }

    fn done(&self, bytes: u64) {
        if let Some(progress) = self.progress.get() {
            progress.add(bytes);
        }
    }

    fn ends(&self) {
        if let Some(progress) = self.progress.get() {
            progress.finish();
        }
    }
}

/// Tells nothing but who is waited for.
pub(super) struct Waiting;

impl Events for Waiting {
    fn waiting(&self, name: &Reference) {
        note(format_args!(
            "lxcri-fs: waiting for another process that makes {name}"
        ));
    }
}

/// How often a line is printed where there is no terminal.
const EVERY: Duration = Duration::from_secs(10);

/// Progress of one piece of work, counted in bytes.
pub(super) struct Progress {
    what: &'static str,
    total: u64,
    done: AtomicU64,
    bar: Option<ProgressBar>,
    last_line: Mutex<Instant>,
}

impl Progress {
    /// Work on `total` bytes, such as "Verifying".
    pub(super) fn bytes(what: &'static str, total: u64) -> Self {
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

    /// `n` bytes more are done.
    pub(super) fn add(&self, n: u64) {
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
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
