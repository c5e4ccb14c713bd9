//! `lxcri-fs volumes`

use std::io::Write;

use clap::Args;
use serde::Serialize;

use super::error::Error;
use super::output::{all_or, json, lines, size};
use super::store::StoreArgs;
use crate::runtime::volumes::{all, remove};

/// List the volumes in the store, or delete some
///
/// They are made by `create --volume NAME:DEST`, and stay when their containers are deleted. The
/// volumes of a container's own are not listed: `inspect` shows them.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs volumes
  lxcri-fs volumes --delete old-database")]
pub(super) struct VolumesArgs {
    /// Delete these volumes, unless a container uses them
    #[arg(short, long, value_name = "NAME", num_args = 1.., conflicts_with_all = ["quiet", "json"])]
    delete: Vec<String>,
    /// Print names only
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// Print one JSON object for each volume
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// A volume as `--json` prints it.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    bytes: u64,
    /// The containers that use it.
    containers: Vec<String>,
}

pub(super) fn run(args: &VolumesArgs) -> Result<(), Error> {
    let store = args.store.open()?;
    if !args.delete.is_empty() {
        let failures = args
            .delete
            .iter()
            .filter_map(|name| remove(&store, name).err());
        let failures = failures.map(Error::from).collect();
        return all_or(failures, args.delete.len(), "volumes were not deleted");
    }
    let mut out = lines();
    if args.quiet {
        let mut names = store.volumes()?.into_iter();
        return names
            .try_for_each(|name| writeln!(out, "{name}"))
            .map_err(Error::Output);
    }
    let rows = all(&store)?.into_iter().map(|volume| Row {
        name: volume.name.to_string(),
        bytes: volume.bytes,
        containers: volume.containers,
    });
    if args.json {
        return rows.into_iter().try_for_each(|row| json(&row));
    }
    writeln!(out, "{:<24} {:>10}  CONTAINERS", "NAME", "SIZE").map_err(Error::Output)?;
    for row in rows {
        let (size, users) = (size(row.bytes), row.containers.join(" "));
        writeln!(out, "{:<24} {size:>10}  {users}", row.name).map_err(Error::Output)?;
    }
    Ok(())
}
