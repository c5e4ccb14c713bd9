//! Layers on top of images, as a new image of a store.

use std::path::PathBuf;

use bfc::writer::WriteOptions;

use super::error::Result;
use super::events::Events;
use super::sources::{Sources, total};
use crate::build::{self, Base, Built, Spec, sources};
use crate::store::{Reference, Store};

/// Layers on top of images.
#[derive(Debug)]
pub struct Layered {
    /// The images below, the lowest first.
    pub images: Vec<PathBuf>,
    /// What is put on top, the lowest first.
    pub layers: Sources,
    /// How images are opened; temporary files are the store's.
    pub sources: sources::Options,
    /// How contents are written.
    pub write: WriteOptions,
}

impl Layered {
    /// Puts it into the store under a name; an image that has the name keeps its layers, and loses
    /// the name.
    ///
    /// # Errors
    /// Those of [`Error`](super::Error); the store is then as it was.
    pub fn to_store(self, store: &Store, name: &Reference, events: &dyn Events) -> Result<Built> {
        let _one_at_a_time = store.lock_reference(name, || events.waiting(name))?;
        let sources = sources::Options {
            temp_dir: store.temp_dir()?,
            ..self.sources
        };
        // A plain v1 image has no layers to continue from.
        let has_layers = |path: &PathBuf| {
            std::fs::File::open(path)
                .is_ok_and(|file| Base::open(path, file).is_ok_and(|base| !base.layers.is_empty()))
        };
        let base = self.images.first().cloned().filter(has_layers);
        let stored = store
            .images()?
            .into_iter()
            .find(|image| Some(&image.path) == base.as_ref());
        let stored = match stored {
            Some(image) if store.is_sound(&image)? => Some(image),
            _ => None,
        };
        let new = store.begin_image(stored.as_ref())?;
        let base = new.base().map(PathBuf::from).or(base);
        let mut images = Vec::new();
        for path in self.images {
            images.push(sources::open(
                &Spec {
                    kind: sources::Kind::Bfc,
                    path,
                    reference: None,
                },
                &sources,
            )?);
        }
        events.begins(total(&self.layers.images));
        let (output, is_clone) = (new.path(), new.is_clone());
        let options = build::Options {
            output,
            force: false,
            sources,
            write: self.write,
            base,
            is_clone,
        };
        let built = self.layers.build(|layers| {
            images.extend(layers);
            build::build(images, &options, &|n| events.done(n))
        });
        events.ends();
        let built = built?;
        new.publish(name, None, false)?;
        Ok(built)
    }
}
