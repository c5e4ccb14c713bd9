//! `lxcri-fs upgrade`.

use clap::Args;

use super::error::Error;
use super::output::complain;
use super::ps::note_others;
use crate::error::chain;
use crate::serve::{overview, upgrade};

/// Move this user's mounts to this version of the program without unmounting them
#[derive(Debug, Args)]
#[command(after_help = "\
It moves the mounts of the user who runs it, and says how many mounts others have.

Run it after installing another version, for instance from a package's postinst script.

Example: lxcri-fs upgrade && lxcri-fs ps")]
pub(super) struct UpgradeArgs {}

pub(super) fn run(_args: &UpgradeArgs) -> Result<(), Error> {
    let mut failed = None;
    for mounted in overview::all()? {
        // A mount that cannot be upgraded does not keep the others from it.
        if let Err(error) = upgrade::upgrade(&mounted)
            && let Some(before) = failed.replace(error)
        {
            complain(&chain(&before), None);
        }
    }
    note_others("upgrade")?;
    failed.map_or(Ok(()), |error| Err(error.into()))
}
