//! `lxcri-fs append`

use std::ffi::OsString;
use std::path::PathBuf;

use bfc::writer::WriteOptions;
use clap::Args;

use super::build::{WriteArgs, print, total};
use super::error::Error;
use super::progress::Progress;
use super::secret::SecretArgs;
use super::sources::Sources;
use crate::build::{self, AppendOptions, Platform, sources};

/// Put layers on top of an image, in place
///
/// LAYER is a directory (in overlayfs or OCI form), a tar, or anything that `build` takes. When it is interrupted, the image is what it was.
/// Mounts of the image go on showing what it was.
#[derive(Debug, Args)]
#[command(after_help = "Example: lxcri-fs append nginx.bfc upper/")]
pub struct AppendArgs {
    /// The image
    image: PathBuf,
    /// What to put on top, lowest first
    #[arg(required = true, value_name = "LAYER")]
    layers: Vec<OsString>,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    secret: SecretArgs,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &AppendArgs) -> Result<(), Error> {
    super::limits::raise_open_files();
    let secret = args.secret.load()?;
    let sources = sources::Options {
        platform: Platform::host(),
        secret: secret.clone(),
        temp_dir: build::parent(&args.image),
        max_size: args.write.max_size,
    };
    let opened = Sources::open(&args.layers, &sources)?;
    let progress = Progress::bytes("Appending", total(&opened.images));
    let options = AppendOptions { write: WriteOptions { level: args.write.level, ..WriteOptions::default() }, secret, sources };
    let built = opened.build(|images| build::append(&args.image, images, &options, &|n| progress.add(n)));
    progress.finish();
    print(&args.image.display().to_string(), &built?, args.json)
}
