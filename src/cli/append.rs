//! `lxcri-fs append`

use std::ffi::OsString;
use std::path::PathBuf;

use bfc::writer::WriteOptions;
use clap::Args;

use super::build::{WriteArgs, print};
use super::error::Error;
use super::in_place;
use super::progress::Work;
use super::secret::SecretArgs;
use super::store::StoreArgs;
use crate::build::{self, AppendOptions, Platform, sources};
use crate::image::{Events, Layered, Sources, total};
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
    let held = args
        .tag
        .as_ref()
        .map(|_| args.store.open_image(&args.image))
        .transpose()?;
    if args.tag.is_none() {
        in_place::check(&args.store, &args.image, None, args.force)?;
    }
    let sources = sources::Options {
        platform: Platform::host(),
        secret: secret.clone(),
        temp_dir: build::parent(&args.image),
        max_size: args.write.max_size,
    };
    let opened = Sources::open(
        &args.layers,
        &sources,
        &args.store.registries(&args.layers)?,
    )?;
    let events = Work::new("Appending");
    let write = WriteOptions {
        level: args.write.level,
        ..WriteOptions::default()
    };
    if let (Some(reference), Some((path, _file))) = (&args.tag, held) {
        let layered = Layered {
            images: vec![path],
            layers: opened,
            sources,
            write,
        };
        let built = layered.to_store(&args.store.open()?, reference, &events)?;
        return print(reference.familiar(), &built, args.json);
    }
    events.begins(total(&opened.images));
    let options = AppendOptions {
        write,
        secret,
        sources,
    };
    let built =
        opened.build(|images| build::append(&args.image, images, &options, &|n| events.done(n)));
    events.ends();
    print(&args.image.display().to_string(), &built?, args.json)
}
