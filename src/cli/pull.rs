//! `lxcri-fs pull`

use std::path::PathBuf;
use std::sync::Arc;

use bfc::writer::WriteOptions;
use clap::Args;
use serde::Serialize;

use super::build::WriteArgs;
use super::error::Error;
use super::output::{json, say, size};
use super::progress::Waiting;
use super::store::StoreArgs;
use super::tag::tell_behind;
use super::tls::TlsArgs;
use super::transfer::Transfer;
use crate::build::Platform;
use crate::image::{Pull, Pulled};
use crate::store::Reference;

/// Pull an image from a registry into the store
///
/// REFERENCE is NAME[:TAG][@DIGEST]; `nginx` stands for `docker.io/library/nginx:latest`. `pull`
/// does not fetch what the store has already: an image that is up to date, or layers that another
/// image has too. An interrupted pull leaves no image; repeat the command to continue it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs pull nginx:1.27
  lxcri-fs pull registry.example.org:5000/team/app --platform linux/arm64 -o app.bfc")]
pub(super) struct PullArgs {
    /// The image to pull
    reference: String,
    /// Name for the image in the store (default: REFERENCE)
    #[arg(short, long, value_name = "NAME", conflicts_with = "output")]
    tag: Option<Reference>,
    /// Write the image to this file instead of the store
    #[arg(short, long, value_name = "IMAGE")]
    output: Option<PathBuf>,
    /// Fetch everything again, and replace the image in the store or the file of -o
    #[arg(short, long)]
    force: bool,
    /// The platform to choose if REFERENCE has images for several: OS/ARCHITECTURE[/VARIANT]
    /// (default: this machine's)
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Fetch all layers, even those that another image in the store has (default: share them)
    #[arg(long)]
    no_share: bool,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    store: StoreArgs,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    image: &'a str,
    /// Whether the store had the image already.
    up_to_date: bool,
    manifest_digest: String,
    root_digest: String,
    layers: usize,
    size: u64,
    fetched_bytes: u64,
}

pub(super) fn run(args: &PullArgs) -> Result<(), Error> {
    super::limits::raise_open_files();
    let registries = args.store.registries(args.tls)?;
    let reference = registries.resolve(&args.reference)?;
    let transfer = Arc::new(Transfer::new(args.quiet));
    let pull = Pull {
        reference: &reference,
        platform: args.platform.clone().unwrap_or_else(Platform::host),
        registries,
        write: WriteOptions {
            level: args.write.level,
            ..WriteOptions::default()
        },
        max_size: args.write.max_size,
        force: args.force,
        observer: transfer.clone(),
    };
    if let Some(path) = &args.output {
        args.store.refuse_to_replace(path)?;
    }
    let (name, pulled) = match &args.output {
        Some(path) => (path.display().to_string(), pull.to_file(path)),
        None => {
            let name: Reference = match &args.tag {
                Some(name) => name.clone(),
                None => reference.whole().parse()?,
            };
            (
                name.familiar().to_owned(),
                pull.to_store(&args.store.open()?, &name, !args.no_share, &Waiting),
            )
        }
    };
    transfer.finish();
    print(args, &name, &pulled?, transfer.fetched_bytes())?;
    match args.output.is_none().then(|| name.parse::<Reference>()) {
        Some(Ok(name)) => tell_behind(&args.store.open()?, &name),
        _ => Ok(()),
    }
}

fn print(args: &PullArgs, name: &str, pulled: &Pulled, fetched: u64) -> Result<(), Error> {
    let Pulled {
        facts,
        manifest_digest,
        up_to_date,
    } = pulled;
    if args.json {
        return json(&Report {
            image: name,
            up_to_date: *up_to_date,
            manifest_digest: manifest_digest.to_string(),
            root_digest: format!("blake3:{}", facts.root_digest),
            layers: facts.layers.len(),
            size: facts.size,
            fetched_bytes: fetched,
        });
    }
    tell(name, pulled, fetched)
}

/// Prints what was pulled; `fetched` bytes came from the registry.
pub(super) fn tell(name: &str, pulled: &Pulled, fetched: u64) -> Result<(), Error> {
    let Pulled {
        facts, up_to_date, ..
    } = pulled;
    if *up_to_date {
        say(format_args!("{name} is up to date"))?;
        return Ok(());
    }
    let layers = facts.layers.len();
    say(format_args!(
        "{name}: {}, {layers} layer{}; {} fetched",
        size(facts.size),
        if layers == 1 { "" } else { "s" },
        size(fetched)
    ))?;
    say(format_args!("root digest blake3:{}", facts.root_digest))?;
    Ok(())
}
