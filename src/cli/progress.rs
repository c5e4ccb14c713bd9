//! Progress of long work: a bar with bytes, rate and time left on a terminal, plain lines elsewhere.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::output::{is_terminal, note, size};

/// How often a line is printed where there is no terminal.
const EVERY: Duration = Duration::from_secs(10);

/// Progress of one piece of work, counted in bytes.
pub struct Progress {
    what: &'static str,
    total: u64,
    done: AtomicU64,
    bar: Option<ProgressBar>,
    last_line: Mutex<Instant>,
}

impl Progress {
    /// Work on `total` bytes, such as "Verifying".
    pub fn bytes(what: &'static str, total: u64) -> Self {
        let bar = is_terminal().then(|| {
            let bar = ProgressBar::new(total).with_message(what);
            let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { what, total, done: AtomicU64::new(0), bar, last_line: Mutex::new(Instant::now()) }
    }

    /// `n` bytes more are done.
    pub fn add(&self, n: u64) {
        let done = self.done.fetch_add(n, Ordering::Relaxed) + n;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            return;
        }
        let Ok(mut last) = self.last_line.try_lock() else { return };
        if last.elapsed() >= EVERY {
            *last = Instant::now();
            note(format_args!("{}: {} of {}", self.what, size(done), size(self.total)));
        }
    }

    /// The work has ended.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
