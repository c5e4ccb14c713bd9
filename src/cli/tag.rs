//! `lxcri-fs tag`

use clap::Args;

use super::error::Error;
use super::store::StoreArgs;
use crate::store::Reference;

/// Give an image in the store more names
///
/// If another image has one of these names, it loses it.
#[derive(Debug, Args)]
#[command(after_help = "Example: lxcri-fs tag nginx:1.27 registry.example.org/web:stable")]
pub(super) struct TagArgs {
    /// Name or digest of the image
    image: String,
    /// The new names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<Reference>,
    #[command(flatten)]
    store: StoreArgs,
}

pub(super) fn run(args: &TagArgs) -> Result<(), Error> {
    let store = args.store.open()?;
    let image = args.store.named(&store, &args.image)?;
    Ok(args
        .names
        .iter()
        .try_for_each(|name| store.tag(&image, name))?)
}
