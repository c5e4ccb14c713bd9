//! `lxcri-fs delete`.

use clap::Args;

use super::error::Error;
use super::output::note;
use super::store::StoreArgs;
use crate::runtime::delete::delete;

/// Delete a container: unmount it, and remove its configuration and what it wrote
///
/// The image stays. So does what was written to an --upper of its own.
#[derive(Debug, Args)]
#[command(after_help = "Example: lxcri-fs delete web1")]
pub(super) struct DeleteArgs {
    /// The container
    #[arg(value_name = "NAME")]
    name: String,
    /// Keep what it wrote, with its snapshots: a create of this name and image goes on with it
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// Runs the command.
pub(super) fn run(args: &DeleteArgs) -> Result<(), Error> {
    if let Some(place) = delete(&args.store.open()?, &args.name, args.keep)? {
        note(format_args!(
            "lxcri-fs: what {} wrote is in {place}, and stays",
            args.name
        ));
    }
    Ok(())
}
