//! `lxcri-fs build`

use std::ffi::OsString;
use std::path::PathBuf;

use bfc::format::Compression;
use bfc::writer::{LEVEL, WriteOptions};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::error::Error;
use super::output::{count, json, say, size};
use super::progress::Work;
use super::secret::SecretArgs;
use super::store::StoreArgs;
use super::tls::TlsArgs;
use crate::build::{self, ConfigChange, MAX_SIZE, NotAChange, Platform};
use crate::image::{self, Build, Made};
use crate::runtime::signal;
use crate::store::{self, Reference};
use crate::text::hex;

/// Build an image from a directory, an OCI image, an archive, or an image in a registry
///
/// SOURCE is dir:PATH, oci:PATH[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF], tar:FILE,
/// bfc:IMAGE or docker://REFERENCE; skopeo, if it is installed, also reads
/// containers-storage:REFERENCE and docker-daemon:REFERENCE. Without a prefix, it is a file or
/// directory, whose kind lxcri-fs finds out, or the name of an image in the store. As FILE, - is
/// standard input. Tars may be compressed with gzip, zstd or xz. All digests are checked; a failed
/// build leaves nothing behind.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs build oci:nginx:1.27 -t nginx:1.27
  lxcri-fs build rootfs/ -o debian.bfc --layer upper/
  lxcri-fs build nginx:1.27 --layer site/ -t site
  lxcri-fs build rootfs.tar.xz -t debian --change 'CMD [\"bash\"]'
  docker save app | lxcri-fs build docker-archive:- -t app")]
pub(super) struct BuildArgs {
    /// What to build the image from
    source: OsString,
    #[command(flatten)]
    target: Target,
    /// Add the layers of another source on top; can be given several times, lowest first
    #[arg(long = "layer", value_name = "SOURCE")]
    layers: Vec<OsString>,
    /// Reuse the layers that this image has in common with SOURCE instead of reading them again;
    /// they share disk space if the file system supports it
    #[arg(long, value_name = "IMAGE")]
    from: Option<PathBuf>,
    /// Read all layers from SOURCE, even if an image in the store begins with the same layers
    /// (default: start from that image)
    #[arg(long, conflicts_with = "from")]
    no_share: bool,
    /// With -o, replace the file if it exists; with -t, read everything again and replace the same
    /// image in the store
    #[arg(short, long)]
    force: bool,
    /// The platform to choose if SOURCE has images for several: OS/ARCHITECTURE[/VARIANT] (default:
    /// this machine's)
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// How to compress file contents
    #[arg(long, value_enum, default_value_t = CompressionArg::Zstd)]
    compression: CompressionArg,
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

/// Where the image goes: exactly one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Target {
    /// Write the image into this file
    #[arg(short, long, value_name = "IMAGE")]
    output: Option<PathBuf>,
    /// Put the image into the store under this name; another image that has the name loses it, but
    /// stays in the store until `gc` removes it
    #[arg(short, long, value_name = "NAME")]
    tag: Option<Reference>,
}

/// What `build` and `append` have in common.
#[derive(Debug, Args)]
pub(super) struct WriteArgs {
    /// zstd compression level, from 1 (fastest) to 22 (smallest)
    #[arg(long, default_value_t = LEVEL, value_parser = clap::value_parser!(i32).range(1..=22))]
    pub level: i32,
    /// Fail if all layers together are larger than this when unpacked: bytes, or with a unit such
    /// as 10G
    #[arg(
        long,
        value_name = "SIZE",
        default_value_t = MAX_SIZE,
        value_parser = super::size::parse
    )]
    pub max_size: u64,
}

/// What `build`, `append` and `commit` change in the configuration.
#[derive(Debug, Args)]
pub(super) struct ChangeArgs {
    /// Change the image's configuration, as `podman commit --change` does: CMD, ENTRYPOINT, ENV,
    /// EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR, such as 'CMD ["nginx"]' or 'ENV
    /// LANG=C.UTF-8'; can be given several times
    #[arg(short, long = "change", value_name = "INSTRUCTION", value_parser = change)]
    pub changes: Vec<ConfigChange>,
}

/// A change that a container can be made of later.
fn change(text: &str) -> Result<ConfigChange, String> {
    let change: ConfigChange = text.parse().map_err(|e: NotAChange| e.to_string())?;
    if let ConfigChange::StopSignal(signal) = &change {
        signal::number(signal).map_err(|e| e.to_string())?;
    }
    Ok(change)
}

impl WriteArgs {
    /// How contents are written.
    pub(super) fn options(&self) -> WriteOptions {
        WriteOptions {
            level: self.level,
            ..WriteOptions::default()
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CompressionArg {
    Zstd,
    None,
}

#[derive(Serialize)]
struct Report {
    image: String,
    /// Whether the store had it already.
    known: bool,
    size: u64,
    root_digest: String,
    layers: Vec<LayerReport>,
    #[serde(flatten)]
    contents: Option<Contents>,
}

/// What an image that was built has.
#[derive(Serialize)]
struct Contents {
    contents: u64,
    content_bytes: u64,
    stored_bytes: u64,
    paths_not_in_v1: u64,
}

#[derive(Serialize)]
struct LayerReport {
    diff_id: String,
    size: Option<u64>,
    entries: Option<u64>,
}

pub(super) fn run(args: &BuildArgs) -> Result<(), Error> {
    // Reading a directory takes one descriptor for each of its levels.
    super::limits::raise_open_files();
    // Keeps the image open for as long as the build reads it.
    let held = args
        .from
        .as_ref()
        .map(|base| args.store.open_image(base))
        .transpose()?;
    let sources: Vec<_> = std::iter::once(&args.source)
        .chain(&args.layers)
        .cloned()
        .collect();
    args.secret.refuse_both(&sources)?;
    let secret = args.secret.load()?;
    let compression = match args.compression {
        CompressionArg::Zstd => Compression::Zstd,
        CompressionArg::None => Compression::None,
    };
    let key = secret.clone().map(new_key).transpose()?;
    let (sources, _held) = args.store.sources(&sources)?;
    let build = Build {
        registries: args.store.registries_for(&sources, args.tls)?,
        sources,
        platform: args.platform.clone().unwrap_or_else(Platform::host),
        secret,
        max_size: args.write.max_size,
        write: WriteOptions {
            compression,
            key,
            ..args.write.options()
        },
        changes: args.change.changes.clone(),
        base: held.as_ref().map(|(path, _)| path.clone()),
        force: args.force,
    };
    let events = Work::new("Building");
    match &args.target {
        Target {
            tag: Some(name), ..
        } => match build.to_store(&args.store.open()?, name, !args.no_share, &events)? {
            Made::Built(built) => print(name.familiar(), &built, args.json),
            Made::Known(image) => print_known(name, &image, args.json),
        },
        Target {
            output: Some(path), ..
        } => {
            args.store.refuse_to_replace(path)?;
            let built = build.to_file(path, &events)?;
            print(&path.display().to_string(), &built, args.json)
        }
        Target {
            output: None,
            tag: None,
        } => Ok(()),
    }
}

fn print_known(
    reference: &Reference,
    image: &store::StoredImage,
    as_json: bool,
) -> Result<(), Error> {
    let root_digest = format!("blake3:{}", image.facts.root_digest);
    if as_json {
        let layer = |diff_id: &build::Digest| LayerReport {
            diff_id: diff_id.to_string(),
            size: None,
            entries: None,
        };
        return json(&Report {
            image: reference.familiar().to_owned(),
            known: true,
            size: image.facts.size,
            root_digest,
            layers: image.facts.layers.iter().map(layer).collect(),
            contents: None,
        });
    }
    say(format_args!("{reference}: already in the store"))?;
    say(format_args!("root digest {root_digest}"))?;
    Ok(())
}

/// Prints what was built.
pub(super) fn print(name: &str, built: &build::Built, as_json: bool) -> Result<(), Error> {
    if as_json {
        let layer = |l: &build::BuiltLayer| LayerReport {
            diff_id: l.diff_id.to_string(),
            size: Some(l.size),
            entries: Some(l.entries),
        };
        return json(&Report {
            image: name.to_owned(),
            known: false,
            size: built.image.len,
            root_digest: format!("blake3:{}", hex(&built.image.root_digest)),
            layers: built.layers.iter().map(layer).collect(),
            contents: Some(Contents {
                contents: built.image.contents,
                content_bytes: built.image.content_bytes,
                stored_bytes: built.image.stored_bytes,
                paths_not_in_v1: built.image.unsaid,
            }),
        });
    }
    say(format_args!(
        "{name}: {}, {}",
        size(built.image.len),
        count(built.layers.len() as u64, "layer", "layers")
    ))?;
    say(format_args!(
        "root digest blake3:{}",
        hex(&built.image.root_digest)
    ))?;
    Ok(())
}

/// The key of a new image, and its salt.
fn new_key(secret: bfc::Secret) -> Result<(bfc::Key, [u8; 32]), Error> {
    let mut salt = [0; 32];
    if matches!(secret, bfc::Secret::Password(_)) {
        salt = bfc::key::new_salt().map_err(|e| image::Error::Secret {
            what: "making a salt".into(),
            source: Some(e),
        })?;
    }
    let key = secret.key(&salt).map_err(|e| image::Error::Secret {
        what: "deriving the key".into(),
        source: Some(e),
    })?;
    Ok((key, salt))
}
