//! `lxcri-fs append`

use std::ffi::OsString;
use std::path::PathBuf;

use bfc::writer::WriteOptions;
use clap::Args;

use super::build::{WriteArgs, print, total};
use super::error::Error;
use super::in_place;
use super::layered::Layered;
use super::progress::Progress;
use super::secret::SecretArgs;
use super::sources::Sources;
use super::store::StoreArgs;
use crate::build::{self, AppendOptions, Platform, sources};
use crate::store::Reference;

/// Put layers on top of an image: in place, or as a new image in the store
///
/// LAYER is a directory (in overlayfs or OCI form), a tar, or anything that `build` takes. When it is interrupted, the image is what it was.
/// Mounts of the image go on showing what it was. An image of a store is not changed: -t makes another one of it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  lxcri-fs append nginx.bfc upper/\n  lxcri-fs append nginx:1.27 upper/ -t nginx:patched")]
pub struct AppendArgs {
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

pub fn run(args: &AppendArgs) -> Result<(), Error> {
    super::limits::raise_open_files();
    let secret = args.secret.load()?;
    let held = args.tag.as_ref().map(|_| args.store.open_image(&args.image)).transpose()?;
    if args.tag.is_none() {
        in_place::check(&args.store, &args.image, None, args.force)?;
    }
    let sources = sources::Options {
        platform: Platform::host(),
        secret: secret.clone(),
        temp_dir: build::parent(&args.image),
        max_size: args.write.max_size,
    };
    let opened = Sources::open(&args.layers, &sources)?;
    let write = WriteOptions { level: args.write.level, ..WriteOptions::default() };
    if let (Some(reference), Some((path, _file))) = (&args.tag, held) {
        let layered = Layered { images: vec![path], layers: opened, sources, write };
        return layered.put_into_store(&args.store.open()?, reference, "Appending", args.json);
    }
    let progress = Progress::bytes("Appending", total(&opened.images));
    let options = AppendOptions { write, secret, sources };
    let built = opened.build(|images| build::append(&args.image, images, &options, &|n| progress.add(n)));
    progress.finish();
    print(&args.image.display().to_string(), &built?, args.json)
}
