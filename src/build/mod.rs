//! Builds images: sources become layer tars; layer tars become contents, skeletons and a merged
//! tree.
//!
//! A layer is always a tar stream, whatever its source was. [`crate::layer::read`] parses it, its
//! contents go to the image's writer, the rest into a skeleton, and [`crate::layer::merge`] puts
//! its changes on top of the tree of the layers below.

mod append;
mod base;
mod config;
mod config_change;
mod content;
mod digest;
mod error;
pub mod export;
mod output;
pub mod sources;
mod stream;

use std::path::{Path, PathBuf};

use bfc::format::Compression;
use bfc::rootfs::{LayerEntry, Tree};
use bfc::writer::{ContentSink, Documents, ImageWriter, Keep, WriteOptions, Written};

pub use append::{AppendOptions, append};
pub use base::Base;
pub use config_change::{ConfigChange, NotAChange};
pub use digest::Digest;
pub use error::{Error, Mismatch, Result};
pub use output::{Output, parent};
pub use sources::{Platform, SourceImage, Spec};

use crate::error::Io;
use crate::layer::{self, Budget, merge};
use config::LayerFact;

/// Default of `--max-size`: a terabyte, more than any image has, and less than a gzip bomb makes of
/// a gigabyte.
pub const MAX_SIZE: u64 = 1 << 40;

/// How to build.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// The image file to write.
    pub output: PathBuf,
    /// Whether to replace an existing file.
    pub force: bool,
    /// How sources are opened.
    pub sources: sources::SourceOptions,
    /// How the image is written.
    pub write: WriteOptions,
    /// An image whose first layers are reused if the sources have the same, instead of reading them
    /// again. The new image then has its frame length and its salt.
    pub base: Option<PathBuf>,
    /// Whether the image file is already a clone of that image, which is overwritten.
    pub is_clone: bool,
    /// What to change in the image's configuration.
    pub changes: Vec<ConfigChange>,
}

/// A layer that was built.
#[derive(Debug, Clone, Copy)]
pub struct BuiltLayer {
    /// SHA-256 of its tar.
    pub diff_id: Digest,
    /// Length of its tar.
    pub size: u64,
    /// How many entries it has.
    pub entries: u64,
}

/// An image that was built.
#[derive(Debug)]
pub struct Built {
    /// The writer's result.
    pub image: Written,
    /// The layers, lowest first.
    pub layers: Vec<BuiltLayer>,
}

/// Builds an image from `images`, lowest first, with its configuration.
///
/// # Errors
/// [`Error`]; an existing file is unchanged then, and nothing else is left.
pub fn build(
    images: Vec<SourceImage>,
    options: &BuildOptions,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Built> {
    let output = if options.is_clone {
        Output::existing(&options.output)?
    } else {
        Output::create(&options.output, options.force)?
    };
    check_space(&images, &output, options)?;
    let diff_ids: Vec<_> = images
        .iter()
        .flat_map(|image| &image.layers)
        .map(|layer| layer.diff_id)
        .collect();
    let mut start = start(&diff_ids, &output, options)?;
    let mut found = Documents::default();
    if let Some(first) = images.first() {
        found.config.clone_from(&first.config);
        found.manifest.clone_from(&first.manifest);
    }
    let mut budget = Budget::new(options.sources.max_size);
    for source in images
        .into_iter()
        .flat_map(|image| image.layers)
        .skip(start.layers.len())
    {
        start.layers.push(added(
            source,
            &mut start.writer,
            &mut start.tree,
            &mut budget,
            &options.output,
            progress,
        )?);
    }
    found.layers = start.layers;
    let built = finish(
        start.writer,
        start.tree,
        found,
        (&options.sources.platform, &options.changes),
        &options.output,
    )?;
    output.publish()?;
    Ok(built)
}

/// The start of a build: nothing, or the first layers of another image.
struct Start {
    writer: ImageWriter,
    tree: Tree,
    layers: Vec<LayerEntry>,
}

fn start(diff_ids: &[Option<Digest>], output: &Output, options: &BuildOptions) -> Result<Start> {
    if let Some(path) = &options.base {
        let base = Base::open(
            path,
            std::fs::File::open(path).map_err(Io::at("opening the image", path))?,
        )?;
        let common = base.common(diff_ids);
        tracing::debug!(base = %path.display(), common, "reusing layers");
        if common > 0 {
            let write = WriteOptions {
                key: base.key(options.sources.secret.as_ref())?,
                ..options.write.clone()
            };
            let file = output.file()?;
            if !options.is_clone {
                base.copy_layers(common, &file)?;
            }
            let writer = base.resume(file, Keep::Layers(common), write)?;
            return Ok(Start {
                writer,
                tree: base.tree(common)?,
                layers: base.layers[..common].to_vec(),
            });
        }
    }
    let file = output.file()?;
    if options.is_clone {
        file.set_len(0)
            .map_err(Io::at("emptying", &options.output))?;
    }
    let writer = ImageWriter::create(file, options.write.clone());
    let writer = writer.map_err(|source| Error::Image {
        path: options.output.clone(),
        source,
    })?;
    Ok(Start {
        writer,
        tree: Tree::default(),
        layers: Vec::new(),
    })
}

/// Writes what follows the contents: the adapted configuration, the tree, and the indexes.
fn finish(
    writer: ImageWriter,
    tree: Tree,
    found: Documents,
    (platform, changes): (&Platform, &[ConfigChange]),
    path: &Path,
) -> Result<Built> {
    let Documents {
        layers,
        config,
        manifest,
    } = found;
    let facts: Vec<_> = layers
        .iter()
        .map(|l| LayerFact {
            diff_id: Digest(l.record.diff_id),
            created_by: &l.created_by,
        })
        .collect();
    let new_config = config::config(&config, &facts, platform, changes)?;
    // A manifest describes the layers that it came with, and no others.
    let manifest = if config == new_config {
        manifest
    } else {
        Vec::new()
    };
    let built = layers
        .iter()
        .map(|l| BuiltLayer {
            diff_id: Digest(l.record.diff_id),
            size: l.record.tar_size,
            entries: l.record.entries,
        })
        .collect();
    let written = writer.finish(
        tree,
        Documents {
            layers,
            config: new_config,
            manifest,
        },
    );
    let image = written.map_err(|source| Error::Image {
        path: path.to_owned(),
        source,
    })?;
    Ok(Built {
        image,
        layers: built,
    })
}

/// Reads a layer, writes its contents, and puts it on top of the tree.
fn added(
    source: sources::SourceLayer,
    writer: &mut ImageWriter,
    tree: &mut Tree,
    budget: &mut Budget,
    path: &Path,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<LayerEntry> {
    let sources::SourceLayer {
        name,
        created_by,
        diff_id: wanted,
        tar,
        ..
    } = source;
    let (read, digest, tar_size) = read_layer(&name, tar, writer, budget, progress)?;
    if let Some(wanted) = wanted.filter(|wanted| *wanted != digest) {
        let reason = Mismatch::DiffId {
            found: digest.to_string(),
            wanted: wanted.to_string(),
        };
        return Err(Error::Mismatch { name, reason });
    }
    merge::apply(tree, read.changes).map_err(|source| Error::Merge { name, source })?;
    let mut record = writer.end_layer().map_err(|source| Error::Image {
        path: path.to_owned(),
        source,
    })?;
    record.diff_id = digest.0;
    record.skeleton_size = read.skeleton.size;
    record.tar_size = tar_size;
    record.entries = read.entries;
    Ok(LayerEntry {
        record,
        skeleton: read.skeleton.compressed,
        created_by,
    })
}

/// Makes the tar in one thread and parses it in another.
fn read_layer(
    name: &str,
    tar: Box<dyn sources::TarSource>,
    sink: &mut dyn ContentSink,
    budget: &mut Budget,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(layer::ReadLayer, Digest, u64)> {
    let (mut out, mut input) = stream::channel();
    std::thread::scope(|scope| {
        let maker = scope.spawn(move || {
            tar.write_to(&mut out, progress)?;
            std::io::Write::flush(&mut out)
                .map_err(Io::at("unpacking", Path::new("the layer")))
                .map_err(Error::from)
        });
        let read = layer::read::read(&mut input, sink, budget);
        let ended = input.ended();
        let (digest, size) = input.finish();
        let made = maker
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (read, made) {
            // The tar ended because its source failed, or is wrong because the blob does not match.
            (_, Err(e)) if ended || matches!(e, Error::Mismatch { .. }) => Err(e),
            (Err(source), _) => Err(Error::Layer {
                name: name.to_owned(),
                source,
            }),
            (Ok(_), Err(e)) => Err(e),
            (Ok(read), Ok(())) => Ok((read, Digest(digest), size)),
        }
    })
}

/// Fails early if there is not enough space.
fn check_space(images: &[SourceImage], output: &Output, options: &BuildOptions) -> Result<()> {
    // An image is about as large as its compressed layers. Uncompressed layers shrink by an unknown
    // factor, which is assumed to be at most five.
    let estimate =
        |layer: &sources::SourceLayer| match (layer.compressed, options.write.compression) {
            (false, Compression::Zstd) => layer.size / 5,
            (true, _) | (_, Compression::None) => layer.size,
        };
    let needed: u64 = images
        .iter()
        .flat_map(|image| &image.layers)
        .map(estimate)
        .fold(0, u64::saturating_add);
    let free = output.free_space()?;
    if free < needed {
        return Err(Error::Source {
            name: options.output.display().to_string(),
            reason: format!("the image needs at least {needed} bytes, but only {free} are free"),
            hint: None,
        });
    }
    Ok(())
}
