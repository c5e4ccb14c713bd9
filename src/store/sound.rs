//! Checks that an image is still what it was when it came into the store, before its layers are
//! reused or it is reported as already in the store.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::Store;
use super::backend::StoredImage;
use super::error::{Error, Result};
use super::facts::{Facts, stamp};
use crate::error::{Io, chain};
use crate::fs::{self, ImageFile, ImageOptions, Rootfs};

impl Store {
    /// Whether an image's file has the root digest that the store recorded. Reads only its end.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn has_its_digest(&self, image: &StoredImage) -> Result<bool> {
        let file = File::open(&image.path).map_err(Io::at("opening the image", &image.path))?;
        Ok(Facts::of(&image.path, file)
            .is_ok_and(|found| found.root_digest == image.facts.root_digest))
    }

    /// The image in a file, which may belong to the store, if it is sound. Its layers are copied
    /// unread, and count as checked then. `secret` is for an encrypted one outside the store.
    ///
    /// # Errors
    /// [`Error`], except for damage, which is logged.
    pub fn sound_base(
        &self,
        path: &Path,
        secret: Option<bfc::Secret>,
    ) -> Result<Option<SoundBase>> {
        let mut images = self.images()?.into_iter();
        Ok(match images.find(|image| image.path == path) {
            Some(image) => self
                .is_sound(&image)?
                .then(|| SoundBase::Stored(Box::new(image))),
            None => is_sound_file(path, secret)?.then(|| SoundBase::Loose(path.to_owned())),
        })
    }

    /// Whether the whole image is sound. Reads all of it once, and remembers the result until the
    /// file is written to. Logs damage.
    ///
    /// # Errors
    /// [`Error`], except for damage.
    pub fn is_sound(&self, image: &StoredImage) -> Result<bool> {
        let file = match self.open_image(image) {
            Err(Error::NotFound { .. } | Error::InUse { .. }) => return Ok(false),
            other => other?,
        };
        let now = stamp(&image.path, &file)?;
        if image.facts.checked.as_ref() == Some(&now) {
            return Ok(true);
        }
        let damage = if self.has_its_digest(image)? {
            first_damage(&image.path, file, None)
        } else {
            Some("its root digest has changed".to_owned())
        };
        if let Some(damage) = damage {
            tracing::warn!("image {} is damaged, and is not used: {damage}", image.name);
            return Ok(false);
        }
        let _lock = self.change()?;
        let known = self
            .backend
            .scan()?
            .images
            .into_iter()
            .find(|i| i.name == image.name && i.facts.root_digest == image.facts.root_digest);
        if let Some(known) = known {
            self.backend.set_facts(
                &known.name,
                &Facts {
                    checked: Some(now),
                    ..known.facts
                },
            )?;
        }
        Ok(true)
    }
}

/// An image whose layers may be copied into a new one.
#[derive(Debug)]
pub enum SoundBase {
    /// An image of the store.
    Stored(Box<StoredImage>),
    /// A file outside it.
    Loose(PathBuf),
}

impl SoundBase {
    /// The image, if it is one of the store.
    pub fn stored(&self) -> Option<&StoredImage> {
        match self {
            Self::Stored(image) => Some(image),
            Self::Loose(_) => None,
        }
    }

    /// Its file.
    pub fn into_path(self) -> PathBuf {
        match self {
            Self::Stored(image) => image.path,
            Self::Loose(path) => path,
        }
    }
}

/// Whether the whole image in a file outside a store is sound. Reads all of it. Logs damage.
///
/// # Errors
/// [`Error::Io`].
pub fn is_sound_file(path: &Path, secret: Option<bfc::Secret>) -> Result<bool> {
    let file = File::open(path).map_err(Io::at("opening the image", path))?;
    let damage = first_damage(path, file, secret);
    if let Some(damage) = &damage {
        tracing::warn!("image {} is damaged: {damage}", path.display());
    }
    Ok(damage.is_none())
}

/// The first damage of an image.
fn first_damage(path: &Path, file: File, secret: Option<bfc::Secret>) -> Option<String> {
    let source = ImageFile {
        path: path.to_owned(),
        file,
        secret,
    };
    match Rootfs::open(
        vec![source],
        &ImageOptions {
            check_hash: true,
            ..ImageOptions::default()
        },
    ) {
        Ok(rootfs) => fs::verify(&rootfs, &|_| {})
            .damage
            .first()
            .map(|first| chain(&first.error)),
        Err(error) => Some(chain(&error)),
    }
}
