//! Limits how slow a response may be, so that a server cannot block a command for ever.

use std::fmt;
use std::ops::Deref;
use std::time::{Duration, Instant};

use reqwest::{Response, Url};

use super::error::{Error, Result};
use super::retry::Cause;

/// Over so long a time the rate is looked at.
const WINDOW: Duration = Duration::from_secs(30);
/// So many bytes have to come in that time: 1 KiB a second.
const MIN_BYTES: u64 = 30 << 10;
/// How long an answer may take to begin, with all redirections.
const BEGIN: Duration = Duration::from_secs(120);

/// Measures the rate of a response.
struct Pace {
    since: Instant,
    bytes: u64,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            bytes: 0,
        }
    }

    /// Whether more bytes came, and came in time.
    fn add(&mut self, bytes: u64, now: Instant) -> bool {
        self.bytes = self.bytes.saturating_add(bytes);
        if now.duration_since(self.since) < WINDOW {
            return true;
        }
        let enough = self.bytes >= MIN_BYTES;
        *self = Self::new(now);
        enough
    }
}

/// The body of an answer.
pub(super) struct Body<'a> {
    response: &'a mut Response,
    pace: Pace,
}

impl<'a> Body<'a> {
    /// All that has not been read of it yet.
    pub(super) fn new(response: &'a mut Response) -> Self {
        Self {
            response,
            pace: Pace::new(Instant::now()),
        }
    }

    /// The next piece; `None` at the end.
    pub(super) async fn piece(
        &mut self,
    ) -> Result<Option<impl Deref<Target = [u8]> + use<>>, Interrupted> {
        let Some(piece) = self.response.chunk().await.map_err(Interrupted::Broken)? else {
            return Ok(None);
        };
        if self.pace.add(piece.len() as u64, Instant::now()) {
            Ok(Some(piece))
        } else {
            Err(Interrupted::Slow)
        }
    }
}

/// The beginning of an answer, if it comes in time.
pub(super) async fn begin(
    answer: impl Future<Output = reqwest::Result<Response>>,
) -> Result<Response, Interrupted> {
    match tokio::time::timeout(BEGIN, answer).await {
        Ok(answer) => answer.map_err(Interrupted::Broken),
        Err(_) => Err(Interrupted::Slow),
    }
}

/// Why an answer did not come to its end.
#[derive(Debug)]
pub(super) enum Interrupted {
    /// The connection broke.
    Broken(reqwest::Error),
    /// It was too slow to wait for.
    Slow,
}

impl Interrupted {
    /// For [`Failures::pause`](super::retry::Failures::pause).
    pub(super) fn cause(&self) -> Cause<'_> {
        match self {
            Self::Broken(error) => Cause::Transport(error),
            Self::Slow => Cause::Slow,
        }
    }

    /// As an error of asking `url`.
    pub(super) fn at(self, url: &Url) -> Error {
        match self {
            Self::Broken(error) => Error::transport(url, error),
            Self::Slow => Error::Slow {
                url: super::error::shown(url),
            },
        }
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(error) => error.fmt(f),
            Self::Slow => f.write_str("it answers too slowly"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_a_second_is_too_slow_and_a_kibibyte_is_not() {
        let begin = Instant::now();
        let ends = |bytes: u64| {
            let mut pace = Pace::new(begin);
            (1..300).find(|&second| !pace.add(bytes, begin + Duration::from_secs(second)))
        };
        assert_eq!(ends(1), Some(30));
        assert_eq!(ends(1000), Some(30));
        assert_eq!(ends(1024), None);
    }
}
