//! `lxcri-fs delete`.

use clap::Args;

use super::error::Error;
use super::output::note;
use super::store::StoreArgs;
use crate::runtime::delete::delete;

/// Delete a container: unmount it, and remove its configuration and what it has written
///
/// The image stays in the store. What was written to a directory or dataset of `create --upper`
/// stays as well.
#[derive(Debug, Args)]
#[command(after_help = "Example: lxcri-fs delete web1")]
pub(super) struct DeleteArgs {
    /// The container's name
    #[arg(value_name = "NAME")]
    name: String,
    /// Keep what the container has written, and its snapshots; `create` with the same name and
    /// image continues with it
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    store: StoreArgs,
}

pub(super) fn run(args: &DeleteArgs) -> Result<(), Error> {
    if let Some(place) = delete(&args.store.open()?, &args.name, args.keep)? {
        note(format_args!(
            "lxcri-fs: what {} has written stays in {place}",
            args.name
        ));
    }
    Ok(())
}
