//! What was written over images, as a layer of a new image or of the image itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bfc::writer::WriteOptions;

use super::error::{Error, Result};
use super::events::Events;
use super::file::open_file;
use super::in_place::InPlace;
use super::layered::Layered;
use super::sources::Sources;
use crate::build::{self, AppendOptions, Built, Platform, sources};
use crate::fs::{ImageFile, ImageOptions, Rootfs};
use crate::store::{Reference, Store};
use crate::upper::record::{self, UpperRecord};
use crate::upper::written::Written;

/// What is committed, and how.
#[derive(Debug)]
pub struct Commit {
    /// What was written.
    pub written: Written,
    /// The images below, the lowest first; where the upper's record says they are when there are
    /// none here.
    pub images: Vec<PathBuf>,
    /// What opens them.
    pub secret: Option<bfc::Secret>,
    /// What the layer's history says.
    pub message: String,
    /// How contents are written.
    pub write: WriteOptions,
    /// Longest layer that is taken, unpacked, bytes.
    pub max_size: u64,
}

impl Commit {
    /// Makes a new image in a file; `force`: one that is there already is replaced.
    ///
    /// # Errors
    /// [`Error`]; a file that existed before is unchanged then.
    pub fn to_file(&self, output: &Path, force: bool, events: &dyn Events) -> Result<Built> {
        let below = self.below()?;
        let sources = self.sources(build::parent(output));
        self.with_layer(&below, |layers| {
            self.layered(&below, layers, sources)
                .to_file(output, force, events)
        })
    }

    /// Makes a new image of a store, under a name.
    ///
    /// # Errors
    /// [`Error`]; the store is unchanged then.
    pub fn to_store(&self, store: &Store, name: &Reference, events: &dyn Events) -> Result<Built> {
        let below = self.below()?;
        let sources = self.sources(store.temp_dir()?);
        self.with_layer(&below, |layers| {
            self.layered(&below, layers, sources)
                .to_store(store, name, events)
        })
    }

    /// Appends to the image itself, which `store` may not have; `force` as in [`InPlace::check`].
    /// The image's path, and what was appended.
    ///
    /// # Errors
    /// [`Error`], [`Error::Several`]; the image is unchanged then.
    pub fn in_place(
        &self,
        store: &Store,
        force: bool,
        events: &dyn Events,
    ) -> Result<(PathBuf, Built)> {
        let below = self.below()?;
        let [path] = &below.paths[..] else {
            return Err(Error::Several);
        };
        let target = InPlace::check(store, path, Some(&self.written.layout.upper), force)?;
        let options = AppendOptions {
            write: self.write.clone(),
            secret: self.secret.clone(),
            sources: self.sources(build::parent(path)),
        };
        let built = self.with_layer(&below, |layers| target.append(layers, &options, events))?;
        Ok((path.clone(), built))
    }

    fn below(&self) -> Result<Below> {
        let record = self.written.record()?;
        if record.subdir.is_some() {
            return Err(Error::Subdirectory);
        }
        let image = open_lower(&record, &self.images, self.secret.as_ref())?;
        let paths = image.paths().map(PathBuf::from).collect();
        Ok(Below {
            record,
            image: Arc::new(image),
            paths,
        })
    }

    /// Does something with the layer, while nobody writes to it.
    fn with_layer(
        &self,
        below: &Below,
        act: impl FnOnce(Sources) -> Result<Built>,
    ) -> Result<Built> {
        let still = self.written.hold()?;
        let layer = still.source(&below.record, below.image.clone())?;
        act(Sources::from(vec![layer.into_image(&self.message)?]))
    }

    fn layered(&self, below: &Below, layers: Sources, sources: sources::SourceOptions) -> Layered {
        Layered {
            images: below.paths.clone(),
            layers,
            sources,
            write: self.write.clone(),
        }
    }

    fn sources(&self, temp_dir: PathBuf) -> sources::SourceOptions {
        sources::SourceOptions {
            platform: Platform::host(),
            secret: self.secret.clone(),
            temp_dir,
            max_size: self.max_size,
        }
    }
}

/// What lies below an upper.
struct Below {
    record: UpperRecord,
    image: Arc<Rootfs>,
    paths: Vec<PathBuf>,
}

/// Opens the images below an upper: those that are named, or else those that its record names.
///
/// # Errors
/// [`Error::Io`], [`Error::Fs`], and [`Error::Upper`] when they are not the ones that the upper was
/// made on.
pub fn open_lower(
    record: &UpperRecord,
    named: &[PathBuf],
    secret: Option<&bfc::Secret>,
) -> Result<Rootfs> {
    let paths: Vec<PathBuf> = if named.is_empty() {
        record.images.iter().map(|i| i.path.clone()).collect()
    } else {
        named.to_vec()
    };
    let (mut sources, mut found) = (Vec::new(), Vec::new());
    for path in paths {
        let file = open_file(&path)?;
        found.push(record::identify(&path, &file)?);
        sources.push(ImageFile {
            path,
            file,
            secret: secret.cloned(),
        });
    }
    let found = UpperRecord::new(found, record.subdir.clone(), record.idmap.clone());
    record.check(&found, "the upper".as_ref())?;
    let options = ImageOptions {
        subdir: record.subdir.clone(),
        ..ImageOptions::default()
    };
    Ok(Rootfs::open(sources, &options)?)
}
