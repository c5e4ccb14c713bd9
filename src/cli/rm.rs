//! `lxcri-fs rm`

use clap::Args;

use super::error::Error;
use super::output::{all_or, say, size};
use super::store::StoreArgs;
use crate::store::Removed;

/// Remove images from the store
///
/// If an image has several names, `rm NAME` removes only that name; `rm DIGEST` removes the image
/// with all its names. Images that are mounted or that a container needs are not removed.
#[derive(Debug, Args)]
#[command(after_help = "Example: lxcri-fs rm nginx:1.26 nginx:1.25")]
pub(super) struct RmArgs {
    /// Names or digests of images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Remove images also if what was written over them outside the store (`mount --upper`) can no
    /// longer be used without them
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    store: StoreArgs,
}

pub(super) fn run(args: &RmArgs) -> Result<(), Error> {
    let store = args.store.open()?;
    let mut failures = Vec::new();
    for image in &args.images {
        match store.remove(image, args.force) {
            Ok(Removed::Reference(reference)) => say(format_args!("{reference}: name removed"))?,
            Ok(Removed::Image { freed }) => {
                say(format_args!("{image}: removed, {} freed", size(freed)))?
            }
            Err(error) => failures.push(Error::from(error)),
        }
    }
    all_or(failures, args.images.len(), "images were not removed")
}
