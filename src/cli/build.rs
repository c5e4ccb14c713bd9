//! `lxcri-fs build`

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use bfc::format::Compression;
use bfc::writer::{LEVEL, WriteOptions};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::error::Error;
use super::output::{hex, json, note, say, size};
use super::progress::Progress;
use super::secret::SecretArgs;
use super::sources::Sources;
use super::store::StoreArgs;
use crate::build::{self, MAX_SIZE, Platform, sources};
use crate::store::{self, Reference, Store, protect};

/// Build an image of a directory, an OCI image, an archive, or of an image in a registry
///
/// SOURCE is dir:PATH, oci:PATH[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF], docker://REFERENCE, tar:FILE or bfc:FILE; what
/// it is is guessed when the prefix is left out. All digests are checked, and nothing is left behind when something is wrong.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  lxcri-fs build oci:nginx:1.27 -t nginx:1.27\n  lxcri-fs build rootfs/ -o debian.bfc --layer upper/")]
pub struct BuildArgs {
    /// What to build the image of
    source: OsString,
    #[command(flatten)]
    target: Target,
    /// Put the layers of another source on top; may be given several times
    #[arg(long = "layer", value_name = "SOURCE")]
    layers: Vec<OsString>,
    /// Take the layers that this image has too from it, instead of reading them again: shared where the file system can
    #[arg(long, value_name = "IMAGE")]
    from: Option<PathBuf>,
    /// Do not look in the store for an image with the same first layers to begin from
    #[arg(long, conflicts_with = "from")]
    no_share: bool,
    /// Replace the image file if it exists; read all anew and replace what is in the store already
    #[arg(short, long)]
    force: bool,
    /// Which image of an index: OS/ARCHITECTURE[/VARIANT] (default: this machine's)
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// How contents are compressed
    #[arg(long, value_enum, default_value_t = CompressionArg::Zstd)]
    compression: CompressionArg,
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

/// Where the image goes; to one of them at least.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Target {
    /// Write the image into this file
    #[arg(short, long, value_name = "IMAGE")]
    output: Option<PathBuf>,
    /// Put the image into the store under this name; an image that has the name keeps its layers, and loses the name
    #[arg(short, long, value_name = "NAME")]
    tag: Option<Reference>,
}

/// What `build` and `append` have in common.
#[derive(Debug, Args)]
pub struct WriteArgs {
    /// zstd level, 1 to 22
    #[arg(long, default_value_t = LEVEL, value_parser = clap::value_parser!(i32).range(1..=22))]
    pub level: i32,
    /// Refuse layers that are larger when unpacked, all together, bytes
    #[arg(long, value_name = "BYTES", default_value_t = MAX_SIZE)]
    pub max_size: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CompressionArg {
    Zstd,
    None,
}

#[derive(Serialize)]
struct Report {
    image: String,
    size: u64,
    root_digest: String,
    layers: Vec<LayerReport>,
    contents: u64,
    content_bytes: u64,
    stored_bytes: u64,
    paths_not_in_v1: u64,
}

#[derive(Serialize)]
struct LayerReport {
    diff_id: String,
    size: u64,
    entries: u64,
}

pub fn run(args: &BuildArgs) -> Result<(), Error> {
    // A descriptor for each level of a directory.
    super::limits::raise_open_files();
    match &args.target {
        Target { tag: Some(reference), .. } => to_store(args, reference),
        Target { output: Some(path), .. } => to_file(args, path),
        Target { output: None, tag: None } => Ok(()),
    }
}

fn to_file(args: &BuildArgs, output: &Path) -> Result<(), Error> {
    protect::refuse_to_write_in(&build::parent(output), output)?;
    // Open for as long as it is read.
    let held = args.from.as_ref().map(|base| args.store.open_image(base)).transpose()?;
    let base = held.as_ref().map(|(path, _)| path.clone());
    let (opened, options) = sources(args, &build::parent(output))?;
    let built = build(opened, &build::Options { output: output.to_owned(), force: args.force, base, is_clone: false, ..options })?;
    print(&output.display().to_string(), &built, args.json)
}

fn to_store(args: &BuildArgs, reference: &Reference) -> Result<(), Error> {
    let store = args.store.open()?;
    let _one_at_a_time =
        store.lock_reference(reference, || note(format_args!("lxcri-fs: waiting for another process that makes {reference}")))?;
    let (opened, options) = sources(args, &store.temp_dir()?)?;
    if !args.force
        && let Some(image) = same_image(&store, reference, &opened.images, &options)?
    {
        return print_known(reference, &image, args.json);
    }
    let base = match &args.from {
        Some(base) => args.store.in_store(base)?.map(|(_, image)| image),
        // All is to be read anew.
        None if args.no_share || args.force => None,
        None => best_base(&store, &opened.images, &options)?,
    };
    let new = store.begin_image(base.as_ref())?;
    // One that is not in the store can be copied.
    let base = new.base().or(args.from.as_deref()).map(Path::to_owned);
    let built = build(opened, &build::Options { output: new.path(), base, is_clone: new.is_clone(), ..options })?;
    new.publish(reference, None, args.force)?;
    print(reference.familiar(), &built, args.json)
}

/// The image that has the name, when it is the one to build, as far as that can be told: somebody may have made it while we waited.
fn same_image(store: &Store, name: &Reference, images: &[build::Image], options: &build::Options) -> Result<Option<store::Image>, Error> {
    let [image] = images else { return Ok(None) };
    let layers: Option<Vec<_>> = image.layers.iter().map(|layer| layer.diff_id).collect();
    let found = store.images()?.into_iter().find(|i| i.facts.refs.contains(name));
    let same = found.filter(|i| {
        Some(&i.facts.layers) == layers.as_ref()
            && i.facts.compression == compression(options)
            && i.facts.encryption == "none"
            && options.write.key.is_none()
    });
    let Some(same) = same else { return Ok(None) };
    let Ok(file) = store.open_image(&same) else { return Ok(None) };
    if !store.has_its_digest(&same)? {
        return Ok(None);
    }
    let config = build::Base::open(&same.path, file)?.config;
    Ok((config == image.config).then_some(same))
}

fn compression(options: &build::Options) -> &'static str {
    if options.write.compression == Compression::None { "none" } else { "zstd" }
}

fn print_known(reference: &Reference, image: &store::Image, as_json: bool) -> Result<(), Error> {
    let root_digest = format!("blake3:{}", image.facts.root_digest);
    if as_json {
        return json(
            &serde_json::json!({ "image": reference.familiar(), "size": image.facts.size, "root_digest": image.facts.root_digest, "known": true }),
        );
    }
    say(format_args!("{reference}: there already"))?;
    say(format_args!("root digest {root_digest}"))?;
    Ok(())
}

/// The image of the store that has most of the layers already.
fn best_base(store: &Store, images: &[build::Image], options: &build::Options) -> Result<Option<store::Image>, Error> {
    let layers: Vec<_> = images.iter().flat_map(|image| &image.layers).map(|layer| layer.diff_id).collect();
    // What is encrypted has a salt of its own, and another password perhaps.
    if options.write.key.is_some() { Ok(None) } else { Ok(store.best_base(&layers, compression(options), "none")?) }
}

/// What a build works on, and how; what concerns the output is left to fill in.
fn sources(args: &BuildArgs, temp_dir: &Path) -> Result<(Sources, build::Options), Error> {
    let secret = args.secret.load()?;
    let sources = sources::Options {
        platform: args.platform.clone().unwrap_or_else(Platform::host),
        secret: secret.clone(),
        temp_dir: temp_dir.to_owned(),
        max_size: args.write.max_size,
    };
    let opened = Sources::open(std::iter::once(&args.source).chain(&args.layers), &sources)?;
    let compression = match args.compression {
        CompressionArg::Zstd => Compression::Zstd,
        CompressionArg::None => Compression::None,
    };
    let write = WriteOptions { compression, level: args.write.level, key: secret.map(new_key).transpose()?, ..WriteOptions::default() };
    Ok((opened, build::Options { output: PathBuf::new(), force: false, sources, write, base: None, is_clone: false }))
}

fn build(opened: Sources, options: &build::Options) -> Result<build::Built, Error> {
    let progress = Progress::bytes("Building", total(&opened.images));
    let built = opened.build(|images| build::build(images, options, &|n| progress.add(n)));
    progress.finish();
    built
}

/// How many bytes will be read for these images.
pub fn total(images: &[build::Image]) -> u64 {
    images.iter().flat_map(|image| &image.layers).map(|layer| layer.size).fold(0, u64::saturating_add)
}

/// Tells what was built.
pub fn print(name: &str, built: &build::Built, as_json: bool) -> Result<(), Error> {
    if as_json {
        let layer = |l: &build::BuiltLayer| LayerReport { diff_id: l.diff_id.to_string(), size: l.size, entries: l.entries };
        return json(&Report {
            image: name.to_owned(),
            size: built.image.len,
            root_digest: hex(&built.image.root_digest),
            layers: built.layers.iter().map(layer).collect(),
            contents: built.image.contents,
            content_bytes: built.image.content_bytes,
            stored_bytes: built.image.stored_bytes,
            paths_not_in_v1: built.image.unsaid,
        });
    }
    let layers = built.layers.len();
    say(format_args!("{name}: {}, {layers} layer{}", size(built.image.len), if layers == 1 { "" } else { "s" }))?;
    say(format_args!("root digest blake3:{}", hex(&built.image.root_digest)))?;
    Ok(())
}

/// The key of a new image, and its salt.
fn new_key(secret: bfc::Secret) -> Result<(bfc::Key, [u8; 32]), Error> {
    let mut salt = [0; 32];
    if matches!(secret, bfc::Secret::Password(_)) {
        salt = bfc::key::new_salt().map_err(|e| Error::Secret { what: "making a salt".into(), source: Some(Box::new(e)) })?;
    }
    let key = secret.key(&salt).map_err(|e| Error::Secret { what: "deriving the key".into(), source: Some(Box::new(e)) })?;
    Ok((key, salt))
}
