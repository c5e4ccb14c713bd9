//! `lxcri-fs upgrade`.

use clap::Args;

use super::error::Error;
use super::output::note;
use crate::error::chain;
use crate::serve::{overview, upgrade};

/// Have this user's live mounts go on as this version of the program, without unmounting them
#[derive(Debug, Args)]
#[command(after_help = "\
Run it after another version was installed, for instance from a package's postinst script.

Example: lxcri-fs upgrade && lxcri-fs ps")]
pub(super) struct UpgradeArgs {}

/// Runs the command.
pub(super) fn run(_args: &UpgradeArgs) -> Result<(), Error> {
    let mut failed = None;
    for mounted in overview::all()? {
        // One that stays as it is keeps nobody else from going on.
        if let Err(error) = upgrade::upgrade(&mounted)
            && let Some(before) = failed.replace(error)
        {
            note(format_args!("lxcri-fs: {}", chain(&before)));
        }
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}
