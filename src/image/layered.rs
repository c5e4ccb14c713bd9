//! Adds layers on top of images, as a new image.

use std::path::{Path, PathBuf};

use bfc::writer::WriteOptions;

use super::error::Result;
use super::events::{Events, Stage};
use super::sources::{Sources, total};
use crate::build::{self, Base, Built, ConfigChange, Spec, sources};
use crate::store::{Reference, SoundBase, Store, protect};

/// A request to add layers on top of images.
#[derive(Debug)]
pub struct Layered {
    /// The images below, the lowest first.
    pub images: Vec<PathBuf>,
    /// The layers to add, the lowest first.
    pub layers: Sources,
    /// How to open images. For an image that goes into a store, temporary files go there too.
    pub sources: sources::SourceOptions,
    /// How to write contents.
    pub write: WriteOptions,
    /// What to change in the configuration.
    pub changes: Vec<ConfigChange>,
}

impl Layered {
    /// Writes the new image to a file, which shares blocks with the first image if the file system
    /// supports it. `force` replaces an existing file.
    ///
    /// # Errors
    /// [`Error`](super::Error); a file that existed before is unchanged then.
    pub fn to_file(self, output: &Path, force: bool, events: &dyn Events) -> Result<Built> {
        protect::refuse_to_write_in(&build::parent(output), output)?;
        let base = self.base();
        let options = build::BuildOptions {
            output: output.to_owned(),
            force,
            sources: self.sources.clone(),
            write: self.write.clone(),
            base,
            is_clone: false,
            changes: self.changes.clone(),
        };
        self.build(&options, events)
    }

    /// Puts the new image into the store under a name; another image that has the name loses it.
    ///
    /// # Errors
    /// [`Error`](super::Error). The store is unchanged then.
    pub fn to_store(self, store: &Store, name: &Reference, events: &dyn Events) -> Result<Built> {
        let _one_at_a_time = store.lock_reference(name, || events.waiting(name))?;
        // The layers of one that is damaged are read and checked as those of any source, which
        // names the damage.
        let base = match self.base() {
            Some(path) => store.sound_base(&path, self.sources.secret.clone())?,
            None => None,
        };
        let new = store.begin_image(base.as_ref().and_then(SoundBase::stored))?;
        let options = build::BuildOptions {
            output: new.path(),
            force: false,
            sources: sources::SourceOptions {
                temp_dir: store.temp_dir()?,
                ..self.sources.clone()
            },
            write: self.write.clone(),
            base: base.map(SoundBase::into_path),
            is_clone: new.is_clone(),
            changes: self.changes.clone(),
        };
        let built = self.build(&options, events)?;
        new.publish(name, None, false)?;
        Ok(built)
    }

    /// The lowest image, unless it is a plain v1 image, which has no layers to append to.
    fn base(&self) -> Option<PathBuf> {
        let has_layers = |path: &&PathBuf| {
            std::fs::File::open(path)
                .is_ok_and(|file| Base::open(path, file).is_ok_and(|base| !base.layers.is_empty()))
        };
        self.images.first().filter(has_layers).cloned()
    }

    fn build(self, options: &build::BuildOptions, events: &dyn Events) -> Result<Built> {
        let mut images = Vec::new();
        for path in self.images {
            let spec = Spec {
                kind: sources::SourceKind::Bfc,
                path,
                reference: None,
            };
            images.push(sources::open(&spec, &options.sources)?);
        }
        events.begins(Stage::Write, total(&self.layers.images));
        let built = self.layers.build(|layers| {
            images.extend(layers);
            build::build(images, options, &|n| events.done(n))
        });
        events.ends();
        built
    }
}
