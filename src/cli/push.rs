//! `lxcri-fs push`

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::error::Error;
use super::open::ImageArgs;
use super::output::{json, say};
use super::progress::Work;
use super::tls::TlsArgs;
use super::transfer::Transfer;
use crate::build::Digest;
use crate::build::export::Compression;
use crate::fs::ImageOptions;
use crate::image::{Events, Layers, Push};
use crate::registry::pull;

/// Push an image to a registry
///
/// The image is pushed as an OCI image with the layers that it was built from, so that any program
/// can pull it. Layers that the registry has already are not sent again. With --artifact, the image
/// file itself is pushed; only `lxcri-fs pull` can use it, and gets the same bytes back.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs push nginx:patched registry.example.org/team/nginx:patched
  lxcri-fs push ./app.bfc registry.example.org/team/app:bfc --artifact")]
pub(super) struct PushArgs {
    #[command(flatten)]
    image: ImageArgs,
    /// Where to push the image: HOST[:PORT]/NAME[:TAG]
    reference: String,
    /// Compress all layers in this way (default: reuse layers that the registry has in the form in
    /// which the image was pulled, and compress the others with gzip)
    #[arg(long, value_enum, conflicts_with = "artifact")]
    compression: Option<CompressionArg>,
    /// Push the image file itself as an OCI artifact
    #[arg(long)]
    artifact: bool,
    /// Directory for temporary files, which may grow as large as the layers (default: TMPDIR, or
    /// else /var/tmp)
    #[arg(long, value_name = "DIR")]
    temp_dir: Option<PathBuf>,
    #[command(flatten)]
    tls: TlsArgs,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CompressionArg {
    Gzip,
    Zstd,
    None,
}

impl From<CompressionArg> for Compression {
    fn from(arg: CompressionArg) -> Self {
        match arg {
            CompressionArg::Gzip => Compression::Gzip,
            CompressionArg::Zstd => Compression::Zstd,
            CompressionArg::None => Compression::None,
        }
    }
}

#[derive(Serialize)]
struct Report {
    reference: String,
    digest: String,
}

pub(super) fn run(args: &PushArgs) -> Result<(), Error> {
    let reference = pull::parse(&args.reference)?;
    let registries = args.image.store.registries(args.tls)?;
    let transfer = Arc::new(Transfer::of_push(args.quiet));
    let push = Push {
        reference: &reference,
        registries: &registries,
        observer: transfer.clone(),
    };
    let work = Work::new("Pushing");
    let events: &dyn Events = if args.quiet { &() } else { &work };
    let digest = send(args, &push, events);
    transfer.finish();
    let digest = digest?;
    if args.json {
        return json(&Report {
            reference: reference.whole(),
            digest: digest.to_string(),
        });
    }
    say(format_args!("{}@{digest}", reference.whole()))?;
    Ok(())
}

fn send(args: &PushArgs, push: &Push<'_>, events: &dyn Events) -> Result<Digest, Error> {
    if args.artifact {
        let (path, file) = args.image.store.open_image(&args.image.image)?;
        return Ok(push.file(&path, file, events)?);
    }
    let stored = args.image.store.in_store(&args.image.image)?;
    let layers = Layers {
        came_from: stored.as_ref().and_then(|(_, image)| push.came_from(image)),
        compression: args.compression.map(Into::into),
        store: stored.as_ref().map(|(store, _)| store),
        temp_dir: args.temp_dir.clone().unwrap_or_else(temp_dir),
    };
    let rootfs = args.image.open(&ImageOptions::default())?;
    Ok(push.layers(&rootfs, &layers, events)?)
}

fn temp_dir() -> PathBuf {
    let set = std::env::var_os("TMPDIR").map(PathBuf::from);
    set.unwrap_or_else(|| "/var/tmp".into())
}
