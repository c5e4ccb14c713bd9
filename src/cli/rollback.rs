//! `lxcri-fs rollback`

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::error::Error;
use super::store::StoreArgs;
use super::upper_name::{UpperName, find};
use crate::zfs::Newer;

/// Roll back what a container has written to a snapshot
///
/// Everything written since the snapshot is lost. `rollback` refuses if the container is mounted,
/// and on ZFS if there are newer snapshots.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs rollback web1@before-upgrade
  lxcri-fs rollback zfs:tank/web1@before-upgrade --force")]
pub(super) struct RollbackArgs {
    /// The container, the dataset as `zfs:DATASET`, or where it is mounted; and the snapshot's name
    #[arg(
        value_name = "UPPER@NAME",
        value_parser = OsStringValueParser::new().map(UpperName::parse)
    )]
    name: UpperName,
    /// If it is mounted and not in use, unmount it first, and mount it again afterwards
    #[arg(short, long)]
    force: bool,
    /// Destroy newer snapshots (ZFS)
    #[arg(long)]
    destroy_newer: bool,
    #[command(flatten)]
    store: StoreArgs,
}

pub(super) fn run(args: &RollbackArgs) -> Result<(), Error> {
    let name = args.name.snapshot()?;
    let newer = if args.destroy_newer {
        Newer::Destroy
    } else {
        Newer::Keep
    };
    Ok(find(&args.name.upper, &args.store)?.rollback(name, newer, args.force)?)
}
