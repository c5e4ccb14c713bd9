//! `lxcri-fs delete`.

use clap::Args;

use super::error::Error;
use super::output::{all_or, note};
use super::store::StoreArgs;
use crate::runtime::delete::delete;

/// Delete containers: unmount them, and remove their configuration and what they have written
///
/// The image stays in the store. What was written to a directory or dataset of `create --upper`
/// stays as well.
#[derive(Debug, Args)]
#[command(after_help = "Example: lxcri-fs delete web1")]
pub(super) struct DeleteArgs {
    /// The containers' names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Keep what a container has written, and its snapshots; `create` with the same name and
    /// image continues with it
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    store: StoreArgs,
}

pub(super) fn run(args: &DeleteArgs) -> Result<(), Error> {
    let store = args.store.open()?;
    let mut failures = Vec::new();
    for name in &args.names {
        match delete(&store, name, args.keep) {
            Ok(None) => {}
            Ok(Some(place)) => note(format_args!(
                "lxcri-fs: what {name} has written stays in {place}"
            )),
            Err(error) => failures.push(Error::from(error)),
        }
    }
    all_or(failures, args.names.len(), "containers were not deleted")
}
