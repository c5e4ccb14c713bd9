//! `lxcri-fs push`

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::error::Error;
use super::open::ImageArgs;
use super::output::{hex, json, say};
use super::progress::Progress;
use crate::build::Digest;
use crate::build::export::{self, MANIFEST, OciImage};
use crate::build::sources::Compression;
use crate::fs::{Options, Rootfs};
use crate::registry::artifact::Artifact;
use crate::registry::push::{Content, Target, Upload, empty_config, file};
use crate::registry::{Reference, Registries, pull};

/// Push an image to a registry
///
/// As an OCI image, whose layers are those that it was built of: any program that pulls images can
/// pull it. Layers that the registry has are not made or sent again. With --artifact the image file
/// itself is pushed, which `lxcri-fs pull` takes back byte for byte.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs push nginx:patched registry.example.org/team/nginx:patched
  lxcri-fs push ./app.bfc registry.example.org/team/app:bfc --artifact")]
pub(super) struct PushArgs {
    #[command(flatten)]
    image: ImageArgs,
    /// Where to push it: HOST[:PORT]/NAME[:TAG]
    reference: String,
    /// How layers are compressed that the registry does not have as they were (default: gzip)
    #[arg(long, value_enum, conflicts_with = "artifact")]
    compression: Option<CompressionArg>,
    /// Push the image file itself, as an artifact
    #[arg(long)]
    artifact: bool,
    /// Below which directory layers are made (default: TMPDIR, or /var/tmp)
    #[arg(long, value_name = "DIR")]
    temp_dir: Option<PathBuf>,
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

#[derive(Serialize)]
struct Report {
    reference: String,
    digest: String,
}

pub(super) fn run(args: &PushArgs) -> Result<(), Error> {
    let reference = pull::parse(&args.reference)?;
    let registries = args.image.store.config()?.registries.value;
    let digest = if args.artifact {
        push_file(args, &reference, &registries)
    } else {
        push_layers(args, &reference, &registries)
    }?;
    if args.json {
        return json(&Report {
            reference: reference.whole(),
            digest: digest.to_string(),
        });
    }
    say(format_args!("{}@{digest}", reference.whole()))?;
    Ok(())
}

fn push_layers(
    args: &PushArgs,
    reference: &Reference,
    registries: &Registries,
) -> Result<Digest, Error> {
    let rootfs = args.image.open(&Options::default())?;
    let target = Target::new(reference, came_from(args, reference)?, registries)?;
    let parent = args
        .temp_dir
        .clone()
        .or_else(|| std::env::var_os("TMPDIR").map(PathBuf::from))
        .unwrap_or_else(|| "/var/tmp".into());
    let dir = tempfile::Builder::new()
        .prefix(".lxcri-fs-push.")
        .tempdir_in(&parent)
        .map_err(Error::io("making a directory in", &parent))?;
    let OciImage {
        manifest,
        config,
        layers,
    } = make(args, &rootfs, &target, dir.path())?;
    let mut uploads: Vec<_> = layers
        .into_iter()
        .map(|blob| Upload {
            digest: blob.digest,
            size: blob.size,
            content: Content::File(blob.path),
        })
        .collect();
    uploads.push(Upload {
        digest: Digest::of(&config),
        size: config.len() as u64,
        content: Content::Owned(config),
    });
    send(args, &target, &uploads, manifest)
}

/// Makes the layers that the registry does not have.
fn make(
    args: &PushArgs,
    rootfs: &Rootfs,
    target: &Target,
    dir: &std::path::Path,
) -> Result<OciImage, Error> {
    let compression = match args.compression {
        None | Some(CompressionArg::Gzip) => Compression::Gzip,
        Some(CompressionArg::Zstd) => Compression::Zstd,
        Some(CompressionArg::None) => Compression::None,
    };
    let progress = progress(args, "Making layers", export::oci_layout_size(rootfs));
    let mut failed = None;
    let mut reuse = |digest: &Digest| {
        args.compression.is_none()
            && failed.is_none()
            && target.has(digest).unwrap_or_else(|error| {
                failed = Some(error);
                false
            })
    };
    let image = export::oci_image(rootfs, dir, compression, &mut reuse, &|n| {
        add(progress.as_ref(), n)
    });
    finish(progress.as_ref());
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(image?),
    }
}

fn push_file(
    args: &PushArgs,
    reference: &Reference,
    registries: &Registries,
) -> Result<Digest, Error> {
    let (path, held) = args.image.store.open_image(&args.image.image)?;
    let failed = |source| crate::fs::Error::Image {
        image: path.clone(),
        source,
    };
    let container = bfc::Container::open(std::sync::Arc::new(held)).map_err(failed)?;
    let locator = container.locator().map_err(failed)?;
    let target = Target::new(reference, None, registries)?;
    // What stands behind the image was never finished, and is nobody's to have.
    let hashing = progress(args, "Reading", container.len());
    let upload = file(&path, container.len(), &|n| add(hashing.as_ref(), n))?;
    finish(hashing.as_ref());
    let root_digest = locator.map(|l| format!("blake3:{}", hex(&l.root_digest)));
    let artifact = Artifact {
        digest: upload.digest,
        size: upload.size,
        root_digest,
    };
    let title = path.file_name().unwrap_or_default().to_string_lossy();
    send(
        args,
        &target,
        &[upload, empty_config()],
        artifact.manifest(&title),
    )
}

fn send(
    args: &PushArgs,
    target: &Target,
    uploads: &[Upload],
    manifest: Vec<u8>,
) -> Result<Digest, Error> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Kind {
        media_type: Option<String>,
    }
    // One that is as it came may be Docker's.
    let media_type = serde_json::from_slice::<Kind>(&manifest)
        .ok()
        .and_then(|kind| kind.media_type);
    let progress = progress(
        args,
        "Pushing",
        uploads.iter().map(|upload| upload.size).sum(),
    );
    let digest = target.push(
        uploads,
        manifest,
        media_type.as_deref().unwrap_or(MANIFEST),
        &|n| add(progress.as_ref(), n),
    );
    finish(progress.as_ref());
    Ok(digest?)
}

/// The repository of the same registry that the image was pulled from.
fn came_from(args: &PushArgs, reference: &Reference) -> Result<Option<String>, Error> {
    let Some((_, image)) = args.image.store.in_store(&args.image.image)? else {
        return Ok(None);
    };
    let names = image
        .facts
        .refs
        .iter()
        .filter_map(|name| pull::parse(name.as_str()).ok());
    let mut others = names
        .filter(|name| name.registry() == reference.registry())
        .map(|name| name.repository().to_owned());
    Ok(others.find(|other| other != reference.repository()))
}

fn progress(args: &PushArgs, what: &'static str, total: u64) -> Option<Progress> {
    (!args.quiet).then(|| Progress::bytes(what, total))
}

fn add(progress: Option<&Progress>, n: u64) {
    if let Some(progress) = progress {
        progress.add(n);
    }
}

fn finish(progress: Option<&Progress>) {
    if let Some(progress) = progress {
        progress.finish();
    }
}
