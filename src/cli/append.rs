//! `lxcri-fs append`

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::build::{ChangeArgs, WriteArgs, print};
use super::error::Error;
use super::progress::Work;
use super::secret::SecretArgs;
use super::store::StoreArgs;
use super::tls::TlsArgs;
use crate::build::{self, AppendOptions, Platform, sources};
use crate::image::{InPlace, Layered, Sources};
use crate::runtime::record::images;
use crate::store::Reference;

/// Add layers on top of an image, in place or as a new image in the store
///
/// LAYER is a directory (with whiteouts in overlayfs or OCI form), a tar, or any SOURCE of `build`.
/// An interrupted append leaves the image unchanged. Existing mounts keep showing the image as it
/// was. Images in a store never change: use -t to make a new image from one.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs append nginx.bfc upper/
  lxcri-fs append nginx:1.27 upper/ -t nginx:patched")]
pub(super) struct AppendArgs {
    /// The image: a file, or with -t also the name or digest of an image in the store
    image: PathBuf,
    /// The layers to add, lowest first
    #[arg(required = true, value_name = "LAYER")]
    layers: Vec<OsString>,
    /// Put the result into the store under this name, and leave IMAGE unchanged (default: append to
    /// the file IMAGE itself)
    #[arg(short, long, value_name = "NAME")]
    tag: Option<Reference>,
    /// Append even if uppers exist that fit only the image as it is now; they can no longer be
    /// mounted
    #[arg(short, long, conflicts_with = "tag")]
    force: bool,
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    secret: SecretArgs,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    store: StoreArgs,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &AppendArgs) -> Result<(), Error> {
    super::limits::raise_open_files();
    args.secret.refuse_both(&args.layers)?;
    let secret = args.secret.load()?;
    let (layers, _layers_held) = args.store.sources(&args.layers)?;
    let registries = args.store.registries_for(&layers, args.tls)?;
    let write = args.write.options();
    let events = Work::new("Appending");
    let (path, held) = args.store.open_image(&args.image)?;
    let sources = |temp_dir| sources::SourceOptions {
        platform: Platform::host(),
        secret: secret.clone(),
        temp_dir,
        max_size: args.write.max_size,
    };
    if let Some(reference) = &args.tag {
        let store = args.store.open()?;
        let sources = sources(store.temp_dir()?);
        let layered = Layered {
            images: vec![path],
            layers: Sources::open(&layers, &sources, &registries)?,
            sources,
            write,
            changes: args.change.changes.clone(),
        };
        let built = layered.to_store(&store, reference, &events)?;
        // Open for as long as it was read.
        drop(held);
        return print(reference.familiar(), &built, args.json);
    }
    drop(held);
    let sources = sources(build::parent(&path));
    let store = args.store.open()?;
    let image = InPlace::check(&store, &path, None, &images(&store), args.force)?;
    let added = Sources::open(&layers, &sources, &registries)?;
    let options = AppendOptions {
        write,
        secret: secret.clone(),
        sources,
        changes: args.change.changes.clone(),
    };
    let built = image.append(added, &options, &events)?;
    print(&args.image.display().to_string(), &built, args.json)
}
