//! `lxcri-fs pull`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bfc::writer::WriteOptions;
use clap::Args;
use serde::Serialize;

use super::build::WriteArgs;
use super::error::Error;
use super::output::{json, note, say, size};
use super::store::StoreArgs;
use super::store::open_image;
use super::transfer::Transfer;
use crate::build::{self, Base, Digest, Platform, sources};
use crate::registry::{self, pull};
use crate::store::{Facts, Image, Reference, Store, protect};

/// Pull an image from a registry into the store
///
/// REFERENCE is NAME[:TAG][@DIGEST]; nginx is docker.io/library/nginx:latest. What the store has already is not fetched again: the whole image
/// when it is up to date, layers when another image has them. An interrupted pull leaves no image, and goes on when it is repeated.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  lxcri-fs pull nginx:1.27\n  lxcri-fs pull registry.example.org:5000/team/app --platform linux/arm64 -o app.bfc"
)]
pub struct PullArgs {
    /// What to pull
    reference: String,
    /// Its name in the store, if it is not to be the reference
    #[arg(short, long, value_name = "NAME", conflicts_with = "output")]
    tag: Option<Reference>,
    /// Write the image into this file, not into the store
    #[arg(short, long, value_name = "IMAGE")]
    output: Option<PathBuf>,
    /// Replace the file if it exists; fetch all anew and replace what is in the store already
    #[arg(short, long)]
    force: bool,
    /// Which image of an index: OS/ARCHITECTURE[/VARIANT] (default: this machine's)
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Fetch all layers, also those that another image of the store has
    #[arg(long)]
    no_share: bool,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    pub(super) store: StoreArgs,
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
    /// Whether anything was to do.
    up_to_date: bool,
    manifest_digest: String,
    root_digest: String,
    layers: usize,
    size: u64,
    fetched_bytes: u64,
}

pub fn run(args: &PullArgs) -> Result<(), Error> {
    super::limits::raise_open_files();
    let reference = pull::parse(&args.reference)?;
    match &args.output {
        Some(path) => to_file(args, &reference, path),
        None => to_store(args, &reference),
    }
}

/// What is pulled, and how.
struct Work<'a> {
    args: &'a PullArgs,
    platform: Platform,
    options: pull::Options,
    transfer: Arc<Transfer>,
}

impl<'a> Work<'a> {
    fn new(args: &'a PullArgs, temp_dir: PathBuf) -> Result<Self, Error> {
        let transfer = Arc::new(Transfer::new(args.quiet));
        let platform = args.platform.clone().unwrap_or_else(Platform::host);
        let registries = args.store.config()?.registries.value;
        let options = pull::Options { platform: platform.clone(), registries, temp_dir, observer: transfer.clone() };
        Ok(Self { args, platform, options, transfer })
    }

    /// Fetches what was found into a file, beginning from `base` if there is one; `is_clone` when the file is a clone of that.
    fn fetch(&self, found: pull::Found, output: &Path, base: Option<&Path>, is_clone: bool) -> Result<(), Error> {
        let fetched = match found {
            pull::Found::Image(source) => {
                let sources = sources::Options {
                    platform: self.platform.clone(),
                    secret: None,
                    temp_dir: self.options.temp_dir.clone(),
                    max_size: self.args.write.max_size,
                };
                let write = WriteOptions { level: self.args.write.level, ..WriteOptions::default() };
                let options = build::Options {
                    output: output.to_owned(),
                    force: self.args.force,
                    sources,
                    write,
                    base: base.map(Path::to_owned),
                    is_clone,
                };
                let built = build::build(vec![source.image], &options, &|_| ());
                source.blobs.finish(built.map(|_| ()).map_err(registry::Error::from))
            }
            pull::Found::File(file) => file.blobs.finish(file.write_to(output, self.args.force, &|_| ())),
        };
        self.transfer.finish();
        Ok(fetched?)
    }

    fn print(&self, name: &str, facts: &Facts, digest: Digest, up_to_date: bool) -> Result<(), Error> {
        let fetched = self.transfer.fetched_bytes();
        if self.args.json {
            return json(&Report {
                image: name,
                up_to_date,
                manifest_digest: digest.to_string(),
                root_digest: facts.root_digest.clone(),
                layers: facts.layers.len(),
                size: facts.size,
                fetched_bytes: fetched,
            });
        }
        if up_to_date {
            say(format_args!("{name} is up to date"))?;
            return Ok(());
        }
        let layers = facts.layers.len();
        say(format_args!("{name}: {}, {layers} layer{}; {} fetched", size(facts.size), if layers == 1 { "" } else { "s" }, size(fetched)))?;
        say(format_args!("root digest blake3:{}", facts.root_digest))?;
        Ok(())
    }
}

fn to_file(args: &PullArgs, reference: &registry::Reference, path: &Path) -> Result<(), Error> {
    protect::refuse_to_write_in(&build::parent(path), path)?;
    let work = Work::new(args, build::parent(path))?;
    let found = pull::find(reference, &work.options)?;
    let digest = found.digest();
    work.fetch(found, path, None, false)?;
    work.print(&path.display().to_string(), &Facts::of(path, open_image(path)?)?, digest, false)
}

fn to_store(args: &PullArgs, reference: &registry::Reference) -> Result<(), Error> {
    let name = match &args.tag {
        Some(name) => name.clone(),
        None => reference.whole().parse()?,
    };
    let store = args.store.open()?;
    let _one_at_a_time = store.lock_reference(&name, || note(format_args!("lxcri-fs: waiting for another process that makes {name}")))?;
    let work = Work::new(args, store.temp_dir()?)?;
    if !args.force
        && let Some((image, digest)) = up_to_date(&store, &name, reference, &work)?
    {
        return work.print(name.familiar(), &image.facts, digest, true);
    }
    let found = pull::find(reference, &work.options)?;
    let digest = found.digest();
    let base = match &found {
        pull::Found::Image(source) if !args.no_share && !args.force => {
            let layers: Vec<_> = source.image.layers.iter().map(|layer| layer.diff_id).collect();
            store.best_base(&layers, "zstd", "none")?
        }
        _ => None,
    };
    let new = store.begin_image(base.as_ref())?;
    work.fetch(found, &new.path(), new.base(), new.is_clone())?;
    let published = new.publish(&name, Some(digest), args.force)?;
    work.print(name.familiar(), &published.image.facts, digest, false)
}

/// The image of this name, if it is what the reference leads to now: one request tells.
fn up_to_date(store: &Store, name: &Reference, reference: &registry::Reference, work: &Work<'_>) -> Result<Option<(Image, Digest)>, Error> {
    let Some(image) = store.images()?.into_iter().find(|image| image.facts.refs.contains(name)) else { return Ok(None) };
    let Some(have) = image.facts.manifest_digest else { return Ok(None) };
    if !store.has_its_digest(&image)? {
        return Ok(None);
    }
    // An index has images for other platforms, under the same digest.
    let base = Base::open(&image.path, store.open_image(&image)?)?;
    if !sources::is_for(&base.config, &work.platform) {
        return Ok(None);
    }
    let now = pull::digest(reference, &work.options.registries)?;
    Ok((now == have).then_some((image, now)))
}
