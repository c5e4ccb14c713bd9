//! `lxcri-fs rollback`

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::error::Error;
use super::output::{printable, say};
use super::store::StoreArgs;
use super::upper_name::{UpperName, find};
use crate::runtime::restart::Lxc;
use crate::runtime::update::rollback;
use crate::runtime::{self, delete};
use crate::store::{self, Name};
use crate::zfs::Newer;

/// Roll back what a container has written to a snapshot, or go back to before its last update
///
/// With the name of a snapshot, everything written since the snapshot is lost. `rollback` refuses
/// if the container is mounted, and on ZFS if there are newer snapshots.
///
/// Without one, the container gets the image and the files again that it had before its last
/// `update`. What it wrote since then is kept: the next `rollback` goes back to that. A running LXC
/// container is stopped and started again.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs rollback web1
  lxcri-fs rollback web1@before-upgrade
  lxcri-fs rollback zfs:tank/web1@before-upgrade --force")]
pub(super) struct RollbackArgs {
    /// The container, the dataset as `zfs:DATASET`, or where it is mounted; and the snapshot's name
    #[arg(
        value_name = "UPPER[@NAME]",
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
    let Some(name) = &args.name.snapshot else {
        return before_update(args);
    };
    let newer = if args.destroy_newer {
        Newer::Destroy
    } else {
        Newer::Keep
    };
    Ok(find(&args.name.upper, &args.store)?.rollback(name, newer, args.force)?)
}

/// Goes back to before the last update, of a container or of another upper.
fn before_update(args: &RollbackArgs) -> Result<(), Error> {
    let store = args.store.open()?;
    let name = args
        .name
        .upper
        .to_str()
        .filter(|name| Name::new(name).is_ok());
    let record = match name.map(|name| delete::find(&store, name)) {
        Some(Ok((record, _))) => Some(record),
        Some(Err(runtime::Error::Store(store::Error::NotFound { .. }))) | None => None,
        Some(Err(error)) => return Err(error.into()),
    };
    let Some(record) = record else {
        let written = find(&args.name.upper, &args.store)?;
        return Ok(written.before_update()?);
    };
    let lxc = Lxc::of(&record);
    let running = match &lxc {
        Some(lxc) if lxc.is_running()? => Some(lxc),
        _ => None,
    };
    running.map_or(Ok(()), Lxc::stop)?;
    let gone_back = rollback(&store, &record.name);
    let started = running.map_or(Ok(()), Lxc::start);
    let image = gone_back?;
    started?;
    say(format_args!(
        "{}: back to {}; `lxcri-fs rollback {0}` returns",
        record.name,
        printable(image.name.as_bytes())
    ))
}
