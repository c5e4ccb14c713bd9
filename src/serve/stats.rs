//! Statistics of a worker: requests by kind, how long they took, bytes, damage.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::fs::CacheCounts;

/// Kinds of requests that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Lookup,
    Getattr,
    Readlink,
    Read,
    Readdir,
    Readdirplus,
    Getxattr,
    Listxattr,
    Statfs,
    Lseek,
}

impl Op {
    const ALL: [Op; 10] = [
        Op::Lookup,
        Op::Getattr,
        Op::Readlink,
        Op::Read,
        Op::Readdir,
        Op::Readdirplus,
        Op::Getxattr,
        Op::Listxattr,
        Op::Statfs,
        Op::Lseek,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Op::Lookup => "lookup",
            Op::Getattr => "getattr",
            Op::Readlink => "readlink",
            Op::Read => "read",
            Op::Readdir => "readdir",
            Op::Readdirplus => "readdirplus",
            Op::Getxattr => "getxattr",
            Op::Listxattr => "listxattr",
            Op::Statfs => "statfs",
            Op::Lseek => "lseek",
        }
    }
}

/// Binary logarithm of the number of buckets for each doubling of the time: the error of a quantile
/// is at most an eighth.
const STEPS_LOG2: u32 = 2;
/// Enough for some 18 minutes.
const BUCKETS: usize = 40 << STEPS_LOG2;
/// A request that takes longer is logged.
const SLOW: Duration = Duration::from_secs(1);

/// Counts of one kind of request.
struct Requests {
    errors: AtomicU64,
    nanoseconds: AtomicU64,
    times: [AtomicU64; BUCKETS],
}

/// The counters of a worker. Counting takes no lock.
pub(super) struct Metrics {
    requests: [Requests; Op::ALL.len()],
    served: AtomicU64,
    decoded: AtomicU64,
    damaged: AtomicU64,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let requests = std::array::from_fn(|_| Requests {
            errors: AtomicU64::new(0),
            nanoseconds: AtomicU64::new(0),
            times: [const { AtomicU64::new(0) }; BUCKETS],
        });
        Self {
            requests,
            served: AtomicU64::new(0),
            decoded: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
        }
    }

    /// A request was answered.
    pub(super) fn answered(&self, op: Op, ino: u64, offset: u64, began: Instant, failed: bool) {
        let time = began.elapsed();
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let requests = &self.requests[op as usize];
        requests.times[bucket(nanoseconds)].fetch_add(1, Ordering::Relaxed);
        requests
            .nanoseconds
            .fetch_add(nanoseconds, Ordering::Relaxed);
        if failed {
            requests.errors.fetch_add(1, Ordering::Relaxed);
        }
        if time > SLOW {
            tracing::warn!(
                op = op.name(),
                ino,
                offset,
                ms = time.as_millis(),
                "slow request"
            );
        }
    }

    /// Counts bytes of files that were passed to the kernel, requested or not, and the bytes that
    /// were decoded or read for them.
    pub(super) fn read(&self, served: usize, decoded: usize) {
        self.served.fetch_add(served as u64, Ordering::Relaxed);
        self.decoded.fetch_add(decoded as u64, Ordering::Relaxed);
    }

    /// Something was found damaged.
    pub(super) fn damaged(&self) {
        self.damaged.fetch_add(1, Ordering::Relaxed);
    }

    /// The current counters, including those of the cache.
    pub(super) fn snapshot(&self, cache: CacheCounts) -> Stats {
        let requests = Op::ALL.into_iter().map(|op| {
            let Requests {
                errors,
                nanoseconds,
                times,
            } = &self.requests[op as usize];
            let times: Vec<u64> = times.iter().map(|t| t.load(Ordering::Relaxed)).collect();
            let count = times.iter().sum();
            let at = |thousandths: u64| quantile(&times, count, thousandths);
            OpStats {
                op: op.name().to_owned(),
                count,
                errors: errors.load(Ordering::Relaxed),
                nanoseconds: nanoseconds.load(Ordering::Relaxed),
                p50: at(500),
                p90: at(900),
                p99: at(990),
                max: at(1000),
            }
        });
        Stats {
            requests: requests.filter(|r| r.count > 0).collect(),
            served_bytes: self.served.load(Ordering::Relaxed),
            decoded_bytes: self.decoded.load(Ordering::Relaxed),
            cache_hits: cache.hits,
            cache_misses: cache.misses,
            damaged: self.damaged.load(Ordering::Relaxed),
        }
    }
}

/// What a worker has done since it started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Requests by kind; kinds that never occurred are left out.
    pub requests: Vec<OpStats>,
    /// Bytes of files passed to the kernel.
    pub served_bytes: u64,
    /// Bytes of files decoded, or read if they are stored uncompressed.
    pub decoded_bytes: u64,
    /// How often content that can only be decoded as a whole was in the cache. The kernel does not
    /// request what is in its own cache.
    pub cache_hits: u64,
    /// How often it was not.
    pub cache_misses: u64,
    /// Requests that failed because the image is damaged or cannot be read.
    pub damaged: u64,
}

/// Requests of one kind. Times are in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpStats {
    /// The kind.
    pub op: String,
    /// How many.
    pub count: u64,
    /// How many were answered with an error.
    pub errors: u64,
    /// How long all of them took.
    pub nanoseconds: u64,
    /// The median.
    pub p50: u64,
    /// The 90th percentile.
    pub p90: u64,
    /// The 99th percentile.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

/// The bucket of a time: the number of its highest bit, and the bits after it.
fn bucket(nanoseconds: u64) -> usize {
    let value = nanoseconds.max(1 << STEPS_LOG2);
    let octave = value.ilog2();
    let step = (value >> (octave - STEPS_LOG2)) & ((1 << STEPS_LOG2) - 1);
    ((octave as usize) << STEPS_LOG2 | usize::try_from(step).unwrap_or_default()).min(BUCKETS - 1)
}

/// The longest time of a bucket.
fn upper(bucket: usize) -> u64 {
    let (octave, step) = (
        bucket >> STEPS_LOG2,
        (bucket & ((1 << STEPS_LOG2) - 1)) as u64,
    );
    ((1 << STEPS_LOG2) + step + 1) << octave >> STEPS_LOG2
}

/// The time that so many thousandths of all requests do not exceed.
fn quantile(times: &[u64], count: u64, thousandths: u64) -> u64 {
    let wanted = (count * thousandths).div_ceil(1000);
    let mut sum = 0;
    for (number, times) in times.iter().enumerate() {
        sum += times;
        if sum >= wanted && sum > 0 {
            return upper(number);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_order_and_hold_what_they_say() {
        let mut last = 0;
        for nanoseconds in
            (0..63).flat_map(|shift| [1_u64 << shift, (1 << shift) + (1 << shift >> 1)])
        {
            let number = bucket(nanoseconds);
            assert!(number >= last, "{nanoseconds}");
            last = number;
            if number < BUCKETS - 1 {
                assert!(
                    upper(number) >= nanoseconds,
                    "{nanoseconds}: {}",
                    upper(number)
                );
                assert!(
                    nanoseconds < 8 || upper(number) <= nanoseconds + nanoseconds / 2,
                    "{nanoseconds}: {}",
                    upper(number)
                );
            }
        }
    }

    #[test]
    fn quantiles_of_what_was_counted() {
        let metrics = Metrics::new();
        for _ in 0..99 {
            metrics.requests[Op::Read as usize].times[bucket(1000)].fetch_add(1, Ordering::Relaxed);
        }
        metrics.answered(
            Op::Read,
            1,
            0,
            Instant::now() - Duration::from_millis(100),
            true,
        );
        metrics.read(10, 20);
        let stats = metrics.snapshot(CacheCounts::default());
        assert_eq!(stats.requests.len(), 1);
        let read = &stats.requests[0];
        assert_eq!(
            (read.op.as_str(), read.count, read.errors),
            ("read", 100, 1)
        );
        assert_eq!((read.p50, read.p99), (1024, 1024));
        assert!(read.max >= 100_000_000 && read.max < 150_000_000);
        assert_eq!(
            (stats.served_bytes, stats.decoded_bytes, stats.damaged),
            (10, 20, 0)
        );
    }
}
