//! `lxcri-fs snapshots`

use std::ffi::OsString;
use std::io::Write;

use clap::Args;
use serde::Serialize;

use super::error::Error;
use super::output::{json, lines, moment, size, time};
use super::store::StoreArgs;
use super::upper_name::find;

/// List the snapshots of what a container has written, oldest first
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs snapshots web1
  lxcri-fs snapshots zfs:tank/web1 --json")]
pub(super) struct SnapshotsArgs {
    /// The container, the dataset as `zfs:DATASET`, or where it is mounted
    #[arg(value_name = "UPPER")]
    upper: OsString,
    /// Print one JSON object for each snapshot
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// A snapshot as `--json` prints it.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// Full name: `DATASET@NAME`, or its directory.
    snapshot: String,
    created: Option<String>,
    /// The same, seconds since 1970.
    #[serde(skip)]
    created_at: i64,
    /// Bytes that deleting it would free.
    used: u64,
    /// Bytes that it references, shared or not.
    referenced: u64,
    /// Datasets that were cloned from it.
    clones: Vec<String>,
}

fn seconds(time: u64) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

pub(super) fn run(args: &SnapshotsArgs) -> Result<(), Error> {
    let snapshots = find(&args.upper, &args.store)?.snapshots()?;
    let rows: Vec<Row> = snapshots
        .into_iter()
        .map(|info| Row {
            name: info.name,
            snapshot: info.place,
            created: moment(seconds(info.created), 0),
            created_at: seconds(info.created),
            used: info.used,
            referenced: info.referenced,
            clones: info.clones,
        })
        .collect();
    if args.json {
        return rows.iter().try_for_each(json);
    }
    let mut out = lines();
    writeln!(
        out,
        "{:<24} {:<16} {:>10} {:>10}  CLONES",
        "NAME", "CREATED (UTC)", "OWN", "SHOWN"
    )
    .map_err(Error::Output)?;
    for row in rows {
        let created = time(row.created_at);
        let (own, shown) = (size(row.used), size(row.referenced));
        writeln!(
            out,
            "{:<24} {created:<16} {own:>10} {shown:>10}  {}",
            row.name,
            row.clones.join(" ")
        )
        .map_err(Error::Output)?;
    }
    Ok(())
}
