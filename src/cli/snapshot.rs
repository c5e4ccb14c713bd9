//! `lxcri-fs snapshot`

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::error::Error;
use super::store::StoreArgs;
use super::upper_name::{UpperName, find};

/// Take a snapshot of what a container has written
///
/// On ZFS at any time, also while it runs. On btrfs and XFS while no process uses it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs snapshot web1@before-upgrade
  lxcri-fs snapshot zfs:tank/web1@before-upgrade
  lxcri-fs snapshot --delete web1@before-upgrade")]
pub(super) struct SnapshotArgs {
    /// The container, the dataset as `zfs:DATASET`, or where it is mounted; and the snapshot's name
    #[arg(
        value_name = "UPPER@NAME",
        value_parser = OsStringValueParser::new().map(UpperName::parse)
    )]
    name: UpperName,
    /// Delete the snapshot instead of taking it
    #[arg(short, long)]
    delete: bool,
    #[command(flatten)]
    store: StoreArgs,
}

pub(super) fn run(args: &SnapshotArgs) -> Result<(), Error> {
    let name = args.name.snapshot()?;
    let written = find(&args.name.upper, &args.store)?;
    if args.delete {
        return Ok(written.delete_snapshot(name)?);
    }
    written.snapshot(name)?;
    Ok(())
}
