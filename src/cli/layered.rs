//! Layers on top of images, as a new image of the store.

use std::path::PathBuf;

use bfc::writer::WriteOptions;

use super::build::{print, total};
use super::error::Error;
use super::output::note;
use super::progress::Progress;
use super::sources::Sources;
use crate::build::{self, Base, Spec, sources};
use crate::store::{Reference, Store};

/// What the new image is made of.
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
    /// Puts it into the store under a name; an image that has the name keeps its layers, and loses the name.
    ///
    /// # Errors
    /// Those of [`Error`]; the store is then as it was.
    pub fn put_into_store(self, store: &Store, reference: &Reference, doing: &'static str, as_json: bool) -> Result<(), Error> {
        let _one_at_a_time =
            store.lock_reference(reference, || note(format_args!("lxcri-fs: waiting for another process that makes {reference}")))?;
        let sources = sources::Options { temp_dir: store.temp_dir()?, ..self.sources };
        // A plain v1 image has no layers to continue from.
        let first = self.images.first().cloned();
        let base = first
            .filter(|path| super::store::open_image(path).is_ok_and(|file| Base::open(path, file).is_ok_and(|b| !b.layers.is_empty())));
        let stored = store.images()?.into_iter().find(|image| Some(&image.path) == base.as_ref());
        let stored = match stored {
            Some(image) if store.is_sound(&image)? => Some(image),
            _ => None,
        };
        let new = store.begin_image(stored.as_ref())?;
        let base = new.base().map(PathBuf::from).or(base);
        let mut images = Vec::new();
        for path in self.images {
            images.push(sources::open(&Spec { kind: sources::Kind::Bfc, path, reference: None }, &sources)?);
        }
        let progress = Progress::bytes(doing, total(&self.layers.images));
        let (output, is_clone) = (new.path(), new.is_clone());
        let options = build::Options { output, force: false, sources, write: self.write, base, is_clone };
        let built = self.layers.build(|layers| {
            images.extend(layers);
            build::build(images, &options, &|n| progress.add(n))
        });
        progress.finish();
        let built = built?;
        new.publish(reference, None, false)?;
        print(reference.familiar(), &built, as_json)
    }
}
