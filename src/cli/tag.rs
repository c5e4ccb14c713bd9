//! `lxcri-fs tag`

use clap::Args;

use super::error::Error;
use super::output::note;
use super::store::StoreArgs;
use crate::runtime::status::behind;
use crate::store::{Reference, Store};

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
    for name in &args.names {
        store.tag(&image, name)?;
        tell_behind(&store, name)?;
    }
    Ok(())
}

/// Says which containers of a name are behind, now that it means another image.
pub(super) fn tell_behind(store: &Store, name: &Reference) -> Result<(), Error> {
    let behind = behind(store, name)?;
    if let [first, ..] = &behind[..] {
        let all = behind.join(", ");
        note(format_args!(
            "lxcri-fs: behind {}: {all}; `lxcri-fs update {first}` updates it",
            name.familiar()
        ));
    }
    Ok(())
}
