//! Commits uppers: adds what was written as a layer, to a new image or to the image itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bfc::writer::WriteOptions;

use super::error::{Error, Result};
use super::events::Events;
use super::file::open_file;
use super::in_place::{ContainerAndImage, InPlace};
use super::layered::Layered;
use super::sources::Sources;
use crate::build::{self, AppendOptions, Built, ConfigChange, Platform, sources};
use crate::fs::{ImageFile, ImageOptions, Rootfs};
use crate::store::{Reference, Store};
use crate::upper::record::{self, UpperRecord};
use crate::upper::written::Written;

/// A request to commit an upper.
#[derive(Debug)]
pub struct Commit {
    /// The upper.
    pub written: Written,
    /// The images below, the lowest first; if it is empty, those in the upper's record.
    pub images: Vec<PathBuf>,
    /// The password or key of the images.
    pub secret: Option<bfc::Secret>,
    /// Comment for the layer in the image's history.
    pub message: String,
    /// How to write contents.
    pub write: WriteOptions,
    /// What to change in the configuration.
    pub changes: Vec<ConfigChange>,
    /// Limit of the unpacked layer, bytes.
    pub max_size: u64,
}

impl Commit {
    /// Makes a new image in a file; `force` replaces an existing file.
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

    /// Makes a new image in a store, under a name.
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

    /// Appends to the image itself, which must not be in `store`; `containers` and `force` as
    /// in [`InPlace::check`]. Returns the image's path, and what was appended.
    ///
    /// # Errors
    /// [`Error`], [`Error::Several`]; the image is unchanged then.
    pub fn in_place(
        &self,
        store: &Store,
        containers: &[ContainerAndImage],
        force: bool,
        events: &dyn Events,
    ) -> Result<(PathBuf, Built)> {
        let below = self.below()?;
        let [path] = &below.paths[..] else {
            return Err(Error::Several);
        };
        let own = Some(self.written.layout.upper.as_path());
        let target = InPlace::check(store, path, own, containers, force)?;
        let options = AppendOptions {
            write: self.write.clone(),
            secret: self.secret.clone(),
            sources: self.sources(build::parent(path)),
            changes: self.changes.clone(),
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

    /// Calls a function with the layer, while the upper cannot change.
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
            changes: self.changes.clone(),
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

/// The images below an upper.
struct Below {
    record: UpperRecord,
    image: Arc<Rootfs>,
    paths: Vec<PathBuf>,
}

/// Opens the images below an upper: those that are named, or else those that its record names.
///
/// # Errors
/// [`Error::Io`], [`Error::Fs`], and [`Error::Upper`] if the upper does not belong to them.
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
    let found = UpperRecord::new(
        found,
        record.subdir.clone(),
        record.idmap.clone(),
        record.overlay.engine,
    );
    record.check(&found, "the upper".as_ref())?;
    let options = ImageOptions {
        subdir: record.subdir.clone(),
        ..ImageOptions::default()
    };
    Ok(Rootfs::open(sources, &options)?)
}
