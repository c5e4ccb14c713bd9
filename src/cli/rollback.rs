//! `lxcri-fs rollback`

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::error::Error;
use super::store::StoreArgs;
use super::upper_name::{UpperName, find};
use crate::zfs::Newer;

/// Have a container's files go back to a snapshot (ZFS)
///
/// What was written since is lost. Refused while it is mounted, and when there are younger
/// snapshots.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs rollback web1@before-upgrade
  lxcri-fs rollback zfs:tank/web1@before-upgrade --force")]
pub(super) struct RollbackArgs {
    /// The container, the dataset after `zfs:`, or where it is mounted; and the snapshot's name
    #[arg(
        value_name = "UPPER@NAME",
        value_parser = OsStringValueParser::new().map(UpperName::parse)
    )]
    name: UpperName,
    /// Unmount it where it is mounted, if nobody uses it, and mount it again as it was
    #[arg(short, long)]
    force: bool,
    /// Destroy the snapshots that were taken since
    #[arg(long)]
    destroy_newer: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// Runs the command.
pub(super) fn run(args: &RollbackArgs) -> Result<(), Error> {
    let name = args.name.snapshot()?;
    let newer = if args.destroy_newer {
        Newer::Destroy
    } else {
        Newer::Keep
    };
    Ok(find(&args.name.upper, &args.store)?.rollback(name, newer, args.force)?)
}
