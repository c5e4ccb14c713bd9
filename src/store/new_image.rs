//! An image on its way into the store.

use std::fs::File;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::backend::{Begun, StoredImage};
use super::error::{Error, Result};
use super::facts::{Facts, stamp};
use super::name::Name;
use super::reference::Reference;
use super::{Store, directory};
use crate::build::Digest;
use crate::sys::lock::Lock;

/// An image that is being written. Dropping it removes what was written.
#[derive(Debug)]
pub struct NewImage<'a> {
    store: &'a Store,
    work: Name,
    begun: Begun,
    /// The image whose first layers it has, open so that it is not removed.
    base: Option<(StoredImage, File)>,
    published: bool,
    /// Tells others that somebody is at work.
    _lock: Lock,
}

/// What became of a new image.
#[derive(Debug)]
pub struct Published {
    /// The image in the store.
    pub image: StoredImage,
    /// Whether it was there already, and has only been given the reference.
    pub known: bool,
}

impl<'a> NewImage<'a> {
    pub(super) fn begin(store: &'a Store, base: Option<&StoredImage>) -> Result<Self> {
        let base = base
            .map(|base| Ok::<_, Error>((base.clone(), store.open_image(base)?)))
            .transpose()?;
        let work = Name::work()?;
        let lock = store.locks.try_lock(work.as_str())?;
        let lock = lock.ok_or_else(|| {
            Error::io("locking", &store.backend.locks())(std::io::ErrorKind::ResourceBusy)
        })?;
        let begun = match store
            .backend
            .begin(&work, base.as_ref().map(|(image, _)| image))
        {
            Ok(begun) => begun,
            Err(error) => {
                // Half of it may be there.
                let _ = store.backend.remove(&work, None);
                return Err(error);
            }
        };
        Ok(Self {
            store,
            work,
            begun,
            base,
            published: false,
            _lock: lock,
        })
    }

    /// Where to write the image: nothing is there yet, unless it is a clone.
    pub fn path(&self) -> PathBuf {
        self.begun.dir.join(format!("{}.bfc", self.work))
    }

    /// Whether a clone of the base is there, to be written over.
    pub fn is_clone(&self) -> bool {
        self.begun.is_clone
    }

    /// The base's image file.
    pub fn base(&self) -> Option<&Path> {
        self.base.as_ref().map(|(image, _)| image.path.as_path())
    }

    /// Puts the image, which is complete and closed, into the store under a reference, which is
    /// taken from the image that had it. `manifest_digest` is what a registry says that the
    /// reference leads to; else it is the manifest in the image. An image with the same root digest
    /// stays as it is, unless `replace` says that its file may not be what it was.
    ///
    /// # Errors
    /// [`Error`]; the store is unchanged then.
    pub fn publish(
        mut self,
        reference: &Reference,
        manifest_digest: Option<Digest>,
        replace: bool,
    ) -> Result<Published> {
        let path = directory::image_file(&self.begun.dir, &self.work)?;
        let file = File::open(&path).map_err(Error::io("opening the image", &path))?;
        let checked = Some(stamp(&path, &file)?);
        let mut facts = Facts {
            refs: vec![reference.clone()],
            created: Timestamp::now(),
            checked,
            ..Facts::of(&path, file)?
        };
        facts.parent = self
            .base
            .as_ref()
            .map(|(image, _)| image.facts.root_digest.clone());
        if manifest_digest.is_some() {
            facts.manifest_digest = manifest_digest;
        }
        let _lock = self.store.change()?;
        let scan = self.store.backend.scan()?;
        if let Some(same) = scan
            .images
            .iter()
            .find(|i| i.facts.root_digest == facts.root_digest)
        {
            let mut same = same.clone();
            if manifest_digest.is_some() && manifest_digest != same.facts.manifest_digest {
                same.facts.manifest_digest = manifest_digest;
                self.store.backend.set_facts(&same.name, &same.facts)?;
            }
            if replace || !self.store.has_its_digest(&same)? {
                self.store.backend.replace(&same.name, &path)?;
                let now =
                    File::open(&same.path).map_err(Error::io("opening the image", &same.path))?;
                let checked = Some(stamp(&same.path, &now)?);
                self.store.backend.set_facts(
                    &same.name,
                    &Facts {
                        checked,
                        size: facts.size,
                        ..same.facts.clone()
                    },
                )?;
            }
            self.store.give(&same.name, reference)?;
            let image = self.store.image(same.name.as_str())?;
            return Ok(Published { image, known: true });
        }
        let is_taken = |name: &Name| {
            scan.images.iter().any(|i| i.name == *name)
                || scan.broken.iter().any(|(broken, _)| broken == name)
        };
        let name = (1..=u32::MAX)
            .map(|generation| Name::of(reference, generation))
            .find(|name| !is_taken(name));
        let name = name.unwrap_or_else(|| self.work.clone());
        self.store.backend.publish(&self.work, &name, &facts)?;
        self.published = true;
        self.store.give(&name, reference)?;
        Ok(Published {
            image: self.store.image(name.as_str())?,
            known: false,
        })
    }
}

impl Drop for NewImage<'_> {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        if let Err(error) = self.store.backend.remove(&self.work, None) {
            tracing::warn!(
                "could not remove the remains of an unfinished image: {}",
                crate::error::chain(&error)
            );
        }
    }
}
