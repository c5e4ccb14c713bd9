//! `lxcri-fs ps`.

use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use serde::Serialize;

use super::error::Error;
use super::output::{json, lines, printable};
use crate::serve::overview::{self, Mounted, Seen};
use crate::serve::users;
use crate::upper::place::is_ephemeral;

/// List mounts, the processes that keep and serve them, and how many use them
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  lxcri-fs ps\n  lxcri-fs ps --json | jq -r .mountpoints[]")]
pub struct PsArgs {
    /// One JSON object per image
    #[arg(long)]
    json: bool,
}

/// A mounted image as `--json` prints it.
#[derive(Debug, Serialize)]
struct Row {
    /// Where it is seen, by itself or under an upper; `\xNN` for bytes that are not UTF-8, here and in all paths.
    mountpoints: Vec<String>,
    /// The mounts that can be written to.
    uppers: Vec<UpperRow>,
    images: Vec<String>,
    keeper: u32,
    worker: Option<u32>,
    version: String,
    restarts: u64,
    uptime_seconds: u64,
    /// How many processes use it.
    users: usize,
    /// Why nobody serves it any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
}

#[derive(Debug, Serialize)]
struct UpperRow {
    mountpoint: String,
    /// The upper directory; none when what is written goes with the mount.
    upper: Option<String>,
}

/// Runs the command.
pub fn run(args: &PsArgs) -> Result<(), Error> {
    let users = users::count_by_device();
    let rows: Vec<Row> = overview::all()?.into_iter().map(|mounted| row(mounted, &users)).collect();
    if args.json {
        return rows.iter().try_for_each(json);
    }
    let mut out = lines();
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "{:>7} {:>7} {:>8} {:>9} {:>5}  {:<7} {:<32} MOUNTED ON",
        "KEEPER", "WORKER", "RESTARTS", "UPTIME", "USERS", "STATE", "IMAGE"
    )
    .map_err(Error::Output)?;
    for row in &rows {
        let worker = row.worker.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let state = if row.failed.is_some() { "failed" } else { "serving" };
        let (image, mounted) = (row.images.join(" "), row.mountpoints.join(" "));
        let uptime = duration(row.uptime_seconds);
        writeln!(out, "{:>7} {worker:>7} {:>8} {uptime:>9} {:>5}  {state:<7} {image:<32} {mounted}", row.keeper, row.restarts, row.users)
            .map_err(Error::Output)?;
        for UpperRow { mountpoint, upper } in &row.uppers {
            let upper = upper.as_deref().unwrap_or("nothing that is kept");
            writeln!(out, "{:>8}{mountpoint} is written to {upper}", "").map_err(Error::Output)?;
        }
        if let Some(why) = &row.failed {
            writeln!(out, "{:>8}{why}", "").map_err(Error::Output)?;
        }
    }
    Ok(())
}

fn row(mounted: Mounted, users: &HashMap<(u32, u32), usize>) -> Row {
    let status = mounted.status;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let devices: BTreeSet<(u32, u32)> = mounted.seen.iter().map(|s| s.dev).chain([status.dev]).collect();
    Row {
        mountpoints: mounted.seen.iter().map(|s| text(&s.mountpoint)).collect(),
        uppers: mounted.seen.iter().filter_map(upper).collect(),
        images: status.images.iter().map(|i| text(&PathBuf::from(i))).collect(),
        keeper: status.pid,
        worker: status.worker,
        version: status.version,
        restarts: status.restarts,
        uptime_seconds: now.saturating_sub(status.since),
        users: devices.iter().filter_map(|dev| users.get(dev)).sum(),
        failed: status.failed,
    }
}

fn text(path: &Path) -> String {
    printable(path.as_os_str().as_bytes())
}

fn upper(seen: &Seen) -> Option<UpperRow> {
    let upper = seen.upper.as_ref()?;
    Some(UpperRow { mountpoint: text(&seen.mountpoint), upper: (!is_ephemeral(upper)).then(|| text(upper)) })
}

/// `3d 4h`, `5h 6m`, `7m 8s`.
fn duration(seconds: u64) -> String {
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let first = units.iter().position(|(unit, _)| seconds >= *unit).unwrap_or(3).min(2);
    let [(large, a), (small, b)] = [units[first], units[first + 1]];
    format!("{}{a} {}{b}", seconds / large, seconds % large / small)
}

#[cfg(test)]
mod tests {
    #[test]
    fn durations() {
        let seconds = [0, 59, 60, 3599, 3600, 90_061, 864_000];
        let texts: Vec<String> = seconds.into_iter().map(super::duration).collect();
        assert_eq!(texts, ["0m 0s", "0m 59s", "1m 0s", "59m 59s", "1h 0m", "1d 1h", "10d 0h"]);
    }
}
