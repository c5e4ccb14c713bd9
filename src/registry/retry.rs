//! How often, and after which time, to retry.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

/// First pause; each further one is twice as long.
const FIRST: Duration = Duration::from_millis(250);
/// Longest pause that is taken because a registry asks for it.
const LONGEST: Duration = Duration::from_secs(60);
/// How many times something is tried again.
const TRIES: u32 = 5;
/// How often to retry if no connection can be made, which is rarely transient.
const TRIES_TO_CONNECT: u32 = 2;

/// Whether an answer may be another one later.
pub(super) fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// Counts the failures of one piece of work.
#[derive(Debug, Default)]
pub(super) struct Failures(u32);

impl Failures {
    /// As many as are not followed by another try.
    pub(super) fn enough() -> Self {
        Self(TRIES)
    }

    /// How long to wait before the next try; `None` when it is time to give up.
    pub(super) fn pause(&mut self, cause: &Cause<'_>) -> Option<Duration> {
        let tries = match cause {
            Cause::Transport(error) if error.is_connect() => TRIES_TO_CONNECT,
            Cause::Transport(error) if error.is_builder() || error.is_redirect() => 0,
            Cause::Transport(_) | Cause::Slow | Cause::Answer(_) => TRIES,
        };
        if self.0 >= tries {
            return None;
        }
        let pause = FIRST * (1 << self.0);
        self.0 += 1;
        match cause {
            Cause::Answer(Some(asked)) if *asked > LONGEST => None,
            Cause::Answer(asked) => Some(asked.unwrap_or_default().max(pause)),
            Cause::Transport(_) | Cause::Slow => Some(pause),
        }
    }

    /// There was progress: failures from here on are new ones.
    pub(super) fn forget(&mut self) {
        self.0 = 0;
    }
}

/// Why something failed.
pub(super) enum Cause<'a> {
    /// No answer, or not all of it.
    Transport(&'a reqwest::Error),
    /// An answer that is too slow.
    Slow,
    /// An answer, and the time to wait that its headers ask for.
    Answer(Option<Duration>),
}

/// The time to wait that an answer asks for: seconds, or a date.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = rfc2822::parse(text).ok()?.timestamp();
    Some(
        until
            .duration_since(Timestamp::now())
            .try_into()
            .unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pauses_grow_end_and_are_what_the_registry_asks_for() {
        let mut headers = HeaderMap::new();
        let mut failures = Failures::default();
        let pauses: Vec<_> =
            std::iter::from_fn(|| failures.pause(&Cause::Answer(retry_after(&headers))))
                .map(|p| p.as_millis())
                .collect();
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000]);
        failures.forget();
        headers.insert(RETRY_AFTER, "7".parse().unwrap());
        assert_eq!(
            failures.pause(&Cause::Answer(retry_after(&headers))),
            Some(Duration::from_secs(7))
        );
        headers.insert(RETRY_AFTER, "99999999999".parse().unwrap());
        assert_eq!(failures.pause(&Cause::Answer(retry_after(&headers))), None);
        // A date that is past, and one that is too far away.
        for (date, expected) in [
            (
                "Wed, 21 Oct 2015 07:28:00 GMT",
                Some(Duration::from_secs(1)),
            ),
            ("Wed, 21 Oct 2195 07:28:00 GMT", None),
        ] {
            headers.insert(RETRY_AFTER, date.parse().unwrap());
            assert_eq!(
                failures.pause(&Cause::Answer(retry_after(&headers))),
                expected
            );
        }
        let soon = Timestamp::now() + Duration::from_secs(30);
        let soon = rfc2822::to_string(&soon.to_zoned(jiff::tz::TimeZone::UTC)).unwrap();
        headers.insert(RETRY_AFTER, soon.parse().unwrap());
        let wait = retry_after(&headers).unwrap();
        assert!((20..=30).contains(&wait.as_secs()), "{wait:?}");
    }
}
