//! `lxcri-fs append`

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::build::{WriteArgs, print};
use super::error::Error;
use super::progress::Work;
use super::secret::SecretArgs;
use super::store::StoreArgs;
use crate::build::{self, AppendOptions, Platform, sources};
use crate::image::{InPlace, Layered, Sources};
use crate::store::Reference;

/// Put layers on top of an image: in place, or as a new image in the store
///
/// LAYER is a directory (in overlayfs or OCI form), a tar, or anything that `build` takes. When it
/// is interrupted, the image is what it was. Mounts of the image go on showing what it was. An
/// image of a store is not changed: -t makes another one of it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs append nginx.bfc upper/
  lxcri-fs append nginx:1.27 upper/ -t nginx:patched")]
pub(super) struct AppendArgs {
    /// The image: a file, or with -t also the name or digest of an image in the store
    image: PathBuf,
    /// What to put on top, lowest first
    #[arg(required = true, value_name = "LAYER")]
    layers: Vec<OsString>,
    /// Put the result into the store under this name, and leave the image as it is
    #[arg(short, long, value_name = "NAME")]
    tag: Option<Reference>,
    /// Append although there are uppers that only fit the image as it is now
    #[arg(short, long, conflicts_with = "tag")]
    force: bool,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    secret: SecretArgs,
    #[command(flatten)]
    store: StoreArgs,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &AppendArgs) -> Result<(), Error> {
    super::limits::raise_open_files();
    let secret = args.secret.load()?;
    let sources = sources::Options {
        platform: Platform::host(),
        secret: secret.clone(),
        temp_dir: build::parent(&args.image),
        max_size: args.write.max_size,
    };
    let registries = args.store.registries(&args.layers)?;
    let write = args.write.options();
    let events = Work::new("Appending");
    if let Some(reference) = &args.tag {
        // Open for as long as it is read.
        let (path, _held) = args.store.open_image(&args.image)?;
        let layered = Layered {
            images: vec![path],
            layers: Sources::open(&args.layers, &sources, &registries)?,
            sources,
            write,
        };
        let built = layered.to_store(&args.store.open()?, reference, &events)?;
        return print(reference.familiar(), &built, args.json);
    }
    let image = InPlace::check(&args.store.open()?, &args.image, None, args.force)?;
    let layers = Sources::open(&args.layers, &sources, &registries)?;
    let options = AppendOptions {
        write,
        secret,
        sources,
    };
    let built = image.append(layers, &options, &events)?;
    print(&args.image.display().to_string(), &built, args.json)
}
