//! A new image of the store.

use std::fs::File;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::backend::{Begun, Scan, StoredImage};
use super::error::{Error, Result};
use super::facts::{Facts, stamp};
use super::name::Name;
use super::reference::Reference;
use super::{Store, directory};
use crate::build::Digest;
use crate::error::Io;
use crate::sys::lock::Lock;
use crate::trust::Verdict;

/// An image that is being written. Dropping it removes what was written.
#[derive(Debug)]
pub struct NewImage<'a> {
    store: &'a Store,
    work: Name,
    begun: Begun,
    /// The image whose first layers it has, kept open so that it is not removed.
    base: Option<(StoredImage, File)>,
    published: bool,
    /// Shows other processes that this image is being written.
    _lock: Lock,
}

/// What is known of an image that comes from a registry.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// The registry's digest for the reference.
    pub manifest_digest: Digest,
    /// Why it may be pulled.
    pub verdict: Verdict,
}

/// A new image that was published.
#[derive(Debug)]
pub struct Published {
    /// The image in the store.
    pub image: StoredImage,
    /// Whether the store had it already, and it only got the reference.
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
            Io::at("locking", &store.backend.locks())(std::io::ErrorKind::ResourceBusy)
        })?;
        let begun = match store
            .backend
            .begin(&work, base.as_ref().map(|(image, _)| image))
        {
            Ok(begun) => begun,
            Err(error) => {
                // Part of it may exist.
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

    /// Where to write the image. The file does not exist yet, unless it is a clone.
    pub fn path(&self) -> PathBuf {
        self.begun.dir.join(format!("{}.bfc", self.work))
    }

    /// Whether the file is a clone of the base, to be overwritten.
    pub fn is_clone(&self) -> bool {
        self.begun.is_clone
    }

    /// The base's image file.
    pub fn base(&self) -> Option<&Path> {
        self.base.as_ref().map(|(image, _)| image.path.as_path())
    }

    /// Puts the image, which is complete and closed, into the store under a reference, which
    /// another image loses. `pulled` is what is known of one that comes from a registry. If the
    /// store has an image with the same root digest, that stays, unless `replace`
    /// says that its file may be damaged.
    ///
    /// # Errors
    /// [`Error`]; the store is unchanged then.
    pub fn publish(
        mut self,
        reference: &Reference,
        pulled: Option<Pulled>,
        replace: bool,
    ) -> Result<Published> {
        let path = directory::image_file(&self.begun.dir, &self.work)?;
        let file = File::open(&path).map_err(Io::at("opening the image", &path))?;
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
        if let Some(pulled) = &pulled {
            facts.manifest_digest = Some(pulled.manifest_digest);
            facts.accept(pulled.verdict.clone());
        }
        let same = |scan: &Scan| {
            let mut images = scan.images.iter();
            images
                .find(|i| i.facts.root_digest == facts.root_digest)
                .cloned()
        };
        // This may read all of it, for which nobody else must wait.
        let replace = replace
            || match same(&self.store.backend.scan()?) {
                Some(same) => !self.store.is_sound(&same)?,
                None => false,
            };
        let _lock = self.store.change()?;
        let scan = self.store.backend.scan()?;
        if let Some(mut same) = same(&scan) {
            if let Some(pulled) = pulled {
                same.facts.manifest_digest = Some(pulled.manifest_digest);
                same.facts.accept(pulled.verdict);
                self.store.backend.set_facts(&same.name, &same.facts)?;
            }
            if replace {
                self.store.backend.replace(&same.name, &path)?;
                let now =
                    File::open(&same.path).map_err(Io::at("opening the image", &same.path))?;
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
            let image = self.store.image_named(&same.name)?;
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
            image: self.store.image_named(&name)?,
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
