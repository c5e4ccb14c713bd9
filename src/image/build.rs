//! Builds images from sources, into a file or a store.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use bfc::format::Compression;
use bfc::writer::WriteOptions;

use super::error::Result;
use super::events::{Events, Stage};
use super::sources::{Sources, total};
use crate::build::{self, Built, ConfigChange, Platform, sources};
use crate::registry::Registries;
use crate::store::{self, Reference, SoundBase, Store, StoredImage, protect};

/// A request to build an image.
#[derive(Debug)]
pub struct Build {
    /// The sources, the lowest first, as [`Spec`](crate::build::Spec) parses them; `docker://`
    /// sources are fetched.
    pub sources: Vec<OsString>,
    /// Settings of registries.
    pub registries: Registries,
    /// The image to choose from an index.
    pub platform: Platform,
    /// The password or key of encrypted sources.
    pub secret: Option<bfc::Secret>,
    /// Limit of all layers together when unpacked, bytes.
    pub max_size: u64,
    /// How to write contents.
    pub write: WriteOptions,
    /// What to change in the configuration of the first source.
    pub changes: Vec<ConfigChange>,
    /// An image whose first layers are reused if the sources have the same.
    pub base: Option<PathBuf>,
    /// For a file, whether to replace it; for a store, whether to read everything again and replace
    /// the same image.
    pub force: bool,
}

/// The result of a build into a store.
#[derive(Debug)]
pub enum Made {
    /// It was built.
    Built(Built),
    /// The store had an image with the same layers and configuration already.
    Known(Box<StoredImage>),
}

impl Build {
    /// A build from one source, such as a directory, an OCI layout or an archive, for this
    /// machine's platform.
    pub fn of(source: &Path) -> Self {
        Self {
            sources: vec![source.as_os_str().to_owned()],
            registries: Registries::default(),
            platform: Platform::host(),
            secret: None,
            max_size: build::MAX_SIZE,
            write: WriteOptions::default(),
            changes: Vec::new(),
            base: None,
            force: false,
        }
    }

    /// Builds a file.
    ///
    /// # Errors
    /// [`Error`](super::Error). A file that existed before is unchanged then.
    pub fn to_file(&self, output: &Path, events: &dyn Events) -> Result<Built> {
        let dir = build::parent(output);
        protect::refuse_to_write_in(&dir, output)?;
        let options = build::BuildOptions {
            output: output.to_owned(),
            base: self.sound_base()?,
            force: self.force,
            ..self.options(dir)
        };
        run(
            Sources::open(&self.sources, &options.sources, &self.registries)?,
            &options,
            events,
        )
    }

    /// Builds into a store under a name; another image that has the name loses it. With `share`,
    /// layers of other images in the store are reused.
    ///
    /// # Errors
    /// [`Error`](super::Error). The store is unchanged then.
    pub fn to_store(
        &self,
        store: &Store,
        name: &Reference,
        share: bool,
        events: &dyn Events,
    ) -> Result<Made> {
        let _one_at_a_time = store.lock_reference(name, || events.waiting(name))?;
        let options = self.options(store.temp_dir()?);
        let opened = Sources::open(&self.sources, &options.sources, &self.registries)?;
        if !self.force
            && let Some(image) = self.same_image(store, name, &opened.images)?
        {
            return Ok(Made::Known(Box::new(image)));
        }
        let base = match &self.base {
            Some(base) => store.sound_base(base, self.secret.clone())?,
            // Everything is read again.
            None if !share || self.force => None,
            None => self
                .best_base(store, &opened.images)?
                .map(|image| SoundBase::Stored(Box::new(image))),
        };
        let new = store.begin_image(base.as_ref().and_then(SoundBase::stored))?;
        let base = base.map(SoundBase::into_path);
        let built = run(
            opened,
            &build::BuildOptions {
                output: new.path(),
                base,
                is_clone: new.is_clone(),
                ..options
            },
            events,
        )?;
        new.publish(name, None, self.force)?;
        Ok(Made::Built(built))
    }

    /// The base, unless it is damaged: its layers are then read from the sources.
    fn sound_base(&self) -> Result<Option<PathBuf>> {
        match &self.base {
            Some(base) if !store::is_sound_file(base, self.secret.clone())? => Ok(None),
            base => Ok(base.clone()),
        }
    }

    fn options(&self, temp_dir: PathBuf) -> build::BuildOptions {
        let (platform, secret, max_size) =
            (self.platform.clone(), self.secret.clone(), self.max_size);
        let sources = sources::SourceOptions {
            platform,
            secret,
            temp_dir,
            max_size,
        };
        build::BuildOptions {
            output: PathBuf::new(),
            force: false,
            sources,
            write: self.write.clone(),
            base: None,
            is_clone: false,
            changes: self.changes.clone(),
        }
    }

    /// The image of this name, if it has the same layers, written in the same way, and the same
    /// configuration.
    fn same_image(
        &self,
        store: &Store,
        name: &Reference,
        images: &[build::SourceImage],
    ) -> Result<Option<StoredImage>> {
        // The configuration after changes is known once it is made.
        let [image] = images else { return Ok(None) };
        if !self.changes.is_empty() {
            return Ok(None);
        }
        let layers: Option<Vec<_>> = image.layers.iter().map(|layer| layer.diff_id).collect();
        let found = store
            .images()?
            .into_iter()
            .find(|i| i.facts.refs.contains(name));
        let same = found.filter(|i| {
            Some(&i.facts.layers) == layers.as_ref()
                && i.facts.compression == self.compression()
                && i.facts.encryption == "none"
                && self.write.key.is_none()
        });
        let Some(same) = same else { return Ok(None) };
        let Ok(file) = store.open_image(&same) else {
            return Ok(None);
        };
        if !store.is_sound(&same)? {
            return Ok(None);
        }
        let config = build::Base::open(&same.path, file)?.config;
        Ok((config == image.config).then_some(same))
    }

    fn best_base(
        &self,
        store: &Store,
        images: &[build::SourceImage],
    ) -> Result<Option<StoredImage>> {
        let layers: Vec<_> = images
            .iter()
            .flat_map(|image| &image.layers)
            .map(|layer| layer.diff_id)
            .collect();
        // An encrypted image has its own salt, and perhaps another password.
        if self.write.key.is_some() {
            Ok(None)
        } else {
            Ok(store.best_base(&layers, self.compression(), "none")?)
        }
    }

    fn compression(&self) -> &'static str {
        if self.write.compression == Compression::None {
            "none"
        } else {
            "zstd"
        }
    }
}

fn run(opened: Sources, options: &build::BuildOptions, events: &dyn Events) -> Result<Built> {
    events.begins(Stage::Write, total(&opened.images));
    let built = opened.build(|images| build::build(images, options, &|n| events.done(n)));
    events.ends();
    built
}
