//! `lxcri-fs clone`

use std::ffi::OsString;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::error::{Error, Exit};
use super::size;
use super::store::StoreArgs;
use super::upper_name::{UpperName, find};
use crate::upper::dataset::Limits;
use crate::upper::{Upper, snapshots};

/// Clone what a container has written into a new dataset; the two share the blocks they have in
/// common (ZFS)
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs clone zfs:tank/web1 zfs:tank/web2
  lxcri-fs clone web1@before-upgrade zfs:tank/web2 --quota 10G
  lxcri-fs mount nginx.bfc /mnt/web2 --upper zfs:tank/web2")]
pub(super) struct CloneArgs {
    /// The container, the dataset as `zfs:DATASET`, or where it is mounted; and the name of the
    /// snapshot to clone (default: take a new snapshot)
    #[arg(
        value_name = "UPPER[@NAME]",
        value_parser = OsStringValueParser::new().map(UpperName::parse)
    )]
    from: UpperName,
    /// The new dataset, in the same pool
    #[arg(value_name = "zfs:NEW")]
    to: OsString,
    /// The most that the new dataset may hold, such as 10G (default: no limit)
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    quota: Option<u64>,
    /// Space to reserve for the new dataset, such as 1G (default: none)
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    reservation: Option<u64>,
    #[command(flatten)]
    store: StoreArgs,
}

pub(super) fn run(args: &CloneArgs) -> Result<(), Error> {
    let Upper::Zfs { dataset: to, .. } = Upper::parse(&args.to)? else {
        return Err(Error::Other {
            message: format!("{} is not a dataset", args.to.display()),
            hint: Some("name a dataset that does not exist yet: zfs:POOL/NEW".to_owned()),
            exit: Exit::Usage,
        });
    };
    let from = find(&args.from.upper, &args.store)?;
    let limits = Limits {
        quota: args.quota,
        reservation: args.reservation,
    };
    snapshots::clone(&from, args.from.snapshot.as_deref(), &to, limits)?;
    Ok(())
}
