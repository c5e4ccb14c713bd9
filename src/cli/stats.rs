//! `lxcri-fs stats`.

use std::fmt::Write as _;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::error::{Error, Exit};
use super::output::{complain, count, json, lines, printable, size};
use super::ps::note_others;
use crate::serve::overview::{self, Mounted};
use crate::serve::stats::{OpStats, Stats};
use crate::serve::unmount;

/// Show how many requests mounts have served, how long they took, and what damage was found
#[derive(Debug, Args)]
#[command(after_help = "\
Counters start at zero when a worker starts.

Examples:
  lxcri-fs stats /mnt
  lxcri-fs stats --prometheus > /var/lib/node_exporter/lxcri-fs.prom")]
pub(super) struct StatsArgs {
    /// Where the image is mounted (default: all mounts of this user)
    #[arg(value_name = "DIR")]
    mountpoint: Option<PathBuf>,
    /// Print one JSON object for each mounted image; times are in nanoseconds
    #[arg(long, conflicts_with = "prometheus")]
    json: bool,
    /// Print the Prometheus text format
    #[arg(long)]
    prometheus: bool,
}

/// What is known about the mounts of an image.
#[derive(Debug, Serialize)]
struct Row {
    image: String,
    mountpoints: Vec<String>,
    restarts: u64,
    #[serde(flatten)]
    stats: Stats,
}

pub(super) fn run(args: &StatsArgs) -> Result<(), Error> {
    let mut mounts = overview::all()?;
    if let Some(path) = &args.mountpoint {
        let mountpoint = unmount::mountpoint(path);
        mounts.retain(|m| m.seen.iter().any(|s| s.mountpoint == mountpoint));
        if mounts.is_empty() {
            let message = format!(
                "nothing that lxcri-fs mounted is mounted on {}",
                path.display()
            );
            let is_of_others = overview::of_others()?.contains(&mountpoint);
            let hint = match is_of_others {
                true => "another user mounted it: only that user's `lxcri-fs stats` shows it",
                false => "`lxcri-fs ps` lists mounts",
            };
            return Err(Error::Other {
                message,
                hint: Some(hint.to_owned()),
                exit: Exit::NotFound,
            });
        }
    }
    let mut rows = Vec::new();
    for mounted in mounts {
        // None while a worker is being replaced or after it has failed: there are no counters then.
        match mounted.dir.stats()? {
            Some(stats) => rows.push(row(&mounted, stats)),
            None => complain(
                &format!("the worker of {} does not answer", images(&mounted)),
                Some("`lxcri-fs ps` shows its state"),
            ),
        }
    }
    if args.mountpoint.is_none() {
        note_others("stats")?;
    }
    if args.json {
        return rows.iter().try_for_each(json);
    }
    let text = if args.prometheus {
        prometheus(&rows)
    } else {
        rows.iter().map(table).collect::<Vec<_>>().join("\n")
    };
    lines().write_all(text.as_bytes()).map_err(Error::Output)
}

fn row(mounted: &Mounted, stats: Stats) -> Row {
    let text = |path: &Path| printable(path.as_os_str().as_bytes());
    Row {
        image: images(mounted),
        mountpoints: mounted.seen.iter().map(|s| text(&s.mountpoint)).collect(),
        restarts: mounted.status.restarts,
        stats,
    }
}

fn images(mounted: &Mounted) -> String {
    let images = mounted.status.images.iter();
    images
        .map(|i| printable(i.as_bytes()))
        .collect::<Vec<_>>()
        .join(" ")
}

fn table(row: &Row) -> String {
    let mut out = format!("{} on {}\n", row.image, row.mountpoints.join(" "));
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "  {:<12} {:>10} {:>7} {:>9} {:>9} {:>9} {:>9}",
        "REQUEST", "COUNT", "ERRORS", "50%", "90%", "99%", "MAX"
    );
    for OpStats {
        op,
        count,
        errors,
        p50,
        p90,
        p99,
        max,
        ..
    } in &row.stats.requests
    {
        let [p50, p90, p99, max] = [p50, p90, p99, max].map(|t| time(*t));
        let _ = writeln!(
            out,
            "  {op:<12} {count:>10} {errors:>7} {p50:>9} {p90:>9} {p99:>9} {max:>9}"
        );
    }
    let Stats {
        served_bytes,
        decoded_bytes,
        cache_hits,
        cache_misses,
        damaged,
        ..
    } = row.stats;
    let (served, decoded) = (size(served_bytes), size(decoded_bytes));
    let _ = writeln!(
        out,
        "  read {served}, for which {decoded} were decoded; {} of damage; {}",
        count(damaged, "error", "errors"),
        count(row.restarts, "worker restart", "worker restarts")
    );
    if cache_hits + cache_misses > 0 {
        let _ = writeln!(
            out,
            "  content that is decoded whole: {} found in the cache, {} decoded",
            count(cache_hits, "time", "times"),
            count(cache_misses, "time", "times")
        );
    }
    out
}

/// Formats a time as microseconds, milliseconds or seconds with three digits.
fn time(nanoseconds: u64) -> String {
    #[allow(clippy::cast_precision_loss)] // for people
    let microseconds = nanoseconds as f64 / 1000.0;
    let (value, unit) = match microseconds {
        v if v < 1000.0 => (v, "µs"),
        v if v < 1_000_000.0 => (v / 1000.0, "ms"),
        v => (v / 1_000_000.0, "s"),
    };
    let digits = if value < 10.0 {
        2
    } else {
        usize::from(value < 100.0)
    };
    format!("{value:.digits$} {unit}")
}

fn prometheus(rows: &[Row]) -> String {
    let mut out = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, lines: &mut dyn FnMut(&mut String)| {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        lines(&mut out);
    };
    let each = |out: &mut String, name: &str, value: &dyn Fn(&Row) -> u64| {
        for row in rows {
            let _ = writeln!(out, "{name}{{{}}} {}", labels(row), value(row));
        }
    };
    metric(
        "lxcri_fs_request_seconds",
        "summary",
        "How long requests took, by kind.",
        &mut |out| {
            for (row, op) in rows
                .iter()
                .flat_map(|row| row.stats.requests.iter().map(move |op| (row, op)))
            {
                let labels = format!("{},op=\"{}\"", labels(row), op.op);
                for (quantile, nanoseconds) in [
                    ("0.5", op.p50),
                    ("0.9", op.p90),
                    ("0.99", op.p99),
                    ("1", op.max),
                ] {
                    let _ = writeln!(
                        out,
                        "lxcri_fs_request_seconds{{{labels},quantile=\"{quantile}\"}} {}",
                        seconds(nanoseconds)
                    );
                }
                let _ = writeln!(
                    out,
                    "lxcri_fs_request_seconds_sum{{{labels}}} {}",
                    seconds(op.nanoseconds)
                );
                let _ = writeln!(
                    out,
                    "lxcri_fs_request_seconds_count{{{labels}}} {}",
                    op.count
                );
            }
        },
    );
    metric(
        "lxcri_fs_request_errors_total",
        "counter",
        "Requests that were answered with an I/O error, by kind.",
        &mut |out| {
            for (row, op) in rows
                .iter()
                .flat_map(|row| row.stats.requests.iter().map(move |op| (row, op)))
            {
                let _ = writeln!(
                    out,
                    "lxcri_fs_request_errors_total{{{},op=\"{}\"}} {}",
                    labels(row),
                    op.op,
                    op.errors
                );
            }
        },
    );
    for (name, help, value) in [
        (
            "lxcri_fs_served_bytes_total",
            "Bytes of files given out.",
            (|row| row.stats.served_bytes) as fn(&Row) -> u64,
        ),
        (
            "lxcri_fs_decoded_bytes_total",
            "Bytes of files decoded for that.",
            |row| row.stats.decoded_bytes,
        ),
        (
            "lxcri_fs_cache_hits_total",
            "How often content that is decoded whole was found decoded.",
            |row| row.stats.cache_hits,
        ),
        (
            "lxcri_fs_cache_misses_total",
            "How often content that is decoded whole had to be decoded.",
            |row| row.stats.cache_misses,
        ),
        (
            "lxcri_fs_damage_total",
            "Answers that were an error because the image is damaged or cannot be read.",
            |row| row.stats.damaged,
        ),
        (
            "lxcri_fs_worker_restarts_total",
            "How often a worker was started again.",
            |row| row.restarts,
        ),
    ] {
        metric(name, "counter", help, &mut |out| each(out, name, &value));
    }
    out
}

fn seconds(nanoseconds: u64) -> f64 {
    #[allow(clippy::cast_precision_loss)] // a float is what is asked for
    let value = nanoseconds as f64 / 1e9;
    value
}

/// Labels that tell mounts apart: an image may be mounted twice with different options.
fn labels(row: &Row) -> String {
    let mountpoint = row.mountpoints.first().map_or("", String::as_str);
    format!(
        "image=\"{}\",mountpoint=\"{}\"",
        label(&row.image),
        label(mountpoint)
    )
}

fn label(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        let times = [0, 1500, 45_600, 999_000, 12_345_678, 2_500_000_000].map(time);
        assert_eq!(
            times,
            [
                "0.00 µs", "1.50 µs", "45.6 µs", "999 µs", "12.3 ms", "2.50 s"
            ]
        );
    }

    #[test]
    fn labels_are_escaped() {
        assert_eq!(label("a\"b\\c\n"), r#"a\"b\\c\n"#);
    }
}
