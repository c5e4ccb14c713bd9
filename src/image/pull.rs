//! Pulls images from registries into a file or a store.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bfc::writer::WriteOptions;

use super::error::Result;
use super::events::Events;
use crate::build::{self, Base, Digest, Platform, sources};
use crate::error::Io;
use crate::registry::{self, Observer, Registries, pull};
use crate::store::{self, Facts, Store, StoredImage, protect};

/// A request to pull an image.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use lxcri_fs::image::Pull;
/// use lxcri_fs::registry::pull::parse;
/// use lxcri_fs::store::{Config, Store};
///
/// let store = Store::open(&Config::load(None)?)?;
/// let reference = parse("nginx:1.27")?;
/// let pulled = Pull::of(&reference).to_store(&store, &"nginx:1.27".parse()?, true, &())?;
/// println!("root digest {}", pulled.facts.root_digest);
/// # Ok(())
/// # }
/// ```
pub struct Pull<'a> {
    /// The image's reference.
    pub reference: &'a registry::Reference,
    /// The image to choose from an index.
    pub platform: Platform,
    /// Settings of registries.
    pub registries: Registries,
    /// How to write contents.
    pub write: WriteOptions,
    /// Limit of all layers together when unpacked, bytes.
    pub max_size: u64,
    /// Whether to fetch everything again, and replace an existing image.
    pub force: bool,
    /// Receives the progress of downloads.
    pub observer: Arc<dyn Observer>,
}

impl std::fmt::Debug for Pull<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pull")
            .field("reference", &self.reference)
            .field("platform", &self.platform)
            .field("force", &self.force)
            .finish_non_exhaustive()
    }
}

/// An image that was pulled.
#[derive(Debug)]
pub struct Pulled {
    /// Its facts.
    pub facts: Facts,
    /// Digest of its manifest.
    pub manifest_digest: Digest,
    /// Whether the store had it already, and nothing was fetched.
    pub up_to_date: bool,
}

/// Asks again whether an image of a store may be used, if the rules have changed since it was
/// pulled. It may if one of the names that it was pulled under is accepted; an image that was built
/// here always may.
///
/// # Errors
/// [`Error`](super::Error), if it may not, or if that cannot be found out.
pub fn ask_again(store: &Store, image: &StoredImage, registries: &Registries) -> Result<()> {
    let mut refused = None;
    for verdict in &image.facts.trust {
        match pull::ask_again(verdict, registries) {
            Ok(now) if now == *verdict => return Ok(()),
            Ok(now) => return Ok(store.accept(image, now)?),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    refused.map_or(Ok(()), |error| Err(error.into()))
}

impl<'a> Pull<'a> {
    /// A pull for this machine's platform, which fetches nothing that the store has.
    pub fn of(reference: &'a registry::Reference) -> Self {
        Self {
            reference,
            platform: Platform::host(),
            registries: Registries::default(),
            write: WriteOptions::default(),
            max_size: build::MAX_SIZE,
            force: false,
            observer: Arc::new(()),
        }
    }

    /// Pulls into a file.
    ///
    /// # Errors
    /// [`Error`](super::Error). A file that existed before is unchanged then.
    pub fn to_file(&self, path: &Path) -> Result<Pulled> {
        let dir = build::parent(path);
        protect::refuse_to_write_in(&dir, path)?;
        let options = self.options(dir);
        let found = pull::find(self.reference, &options)?;
        let manifest_digest = found.digest();
        self.fetch(found, options.temp_dir, path, None, false)?;
        let file = std::fs::File::open(path).map_err(Io::at("opening the image", path))?;
        Ok(Pulled {
            facts: Facts::of(path, file)?,
            manifest_digest,
            up_to_date: false,
        })
    }

    /// Pulls into a store under a name, unless the image is up to date. With `share`, layers of
    /// other images in the store are reused.
    ///
    /// # Errors
    /// [`Error`](super::Error). The store is unchanged then, and the next attempt continues with
    /// what was fetched.
    pub fn to_store(
        &self,
        store: &Store,
        name: &store::Reference,
        share: bool,
        events: &dyn Events,
    ) -> Result<Pulled> {
        let _one_at_a_time = store.lock_reference(name, || events.waiting(name))?;
        let options = self.options(store.temp_dir()?);
        let known = if self.force {
            None
        } else {
            self.up_to_date(store, name)?
        };
        let up_to_date = |(image, manifest_digest): (StoredImage, Digest)| Pulled {
            facts: image.facts,
            manifest_digest,
            up_to_date: true,
        };
        let known = match known {
            Some(known) if self.is_accepted(&known.0)? => return Ok(up_to_date(known)),
            known => known,
        };
        let found = pull::find(self.reference, &options)?;
        let (manifest_digest, verdict) = (found.digest(), found.verdict().clone());
        // The rules have changed, the image has not.
        if let Some(known) = known.filter(|(_, digest)| *digest == manifest_digest) {
            found.leave();
            store.accept(&known.0, verdict)?;
            return Ok(up_to_date(known));
        }
        let base = match &found {
            pull::Fetchable::Image(source) if share && !self.force => {
                let layers: Vec<_> = source
                    .image
                    .layers
                    .iter()
                    .map(|layer| layer.diff_id)
                    .collect();
                store.best_base(&layers, "zstd", "none")?
            }
            _ => None,
        };
        let new = store.begin_image(base.as_ref())?;
        self.fetch(
            found,
            options.temp_dir,
            &new.path(),
            new.base(),
            new.is_clone(),
        )?;
        let pulled = store::Pulled {
            manifest_digest,
            verdict,
        };
        let published = new.publish(name, Some(pulled), self.force)?;
        Ok(Pulled {
            facts: published.image.facts,
            manifest_digest,
            up_to_date: false,
        })
    }

    /// Whether the image was accepted under the rules that count now.
    fn is_accepted(&self, image: &StoredImage) -> Result<bool> {
        let verdicts = &image.facts.trust;
        Ok(pull::is_accepted(
            self.reference,
            verdicts,
            &self.registries,
        )?)
    }

    fn options(&self, temp_dir: PathBuf) -> pull::PullOptions {
        let (platform, registries) = (self.platform.clone(), self.registries.clone());
        pull::PullOptions {
            platform,
            registries,
            temp_dir,
            observer: self.observer.clone(),
        }
    }

    /// Fetches the image into a file, starting from `base` if there is one; `is_clone` means that
    /// the file is already a clone of it.
    fn fetch(
        &self,
        found: pull::Fetchable,
        temp_dir: PathBuf,
        output: &Path,
        base: Option<&Path>,
        is_clone: bool,
    ) -> Result<()> {
        match found {
            pull::Fetchable::Image(source) => {
                let sources = sources::SourceOptions {
                    platform: self.platform.clone(),
                    secret: None,
                    temp_dir,
                    max_size: self.max_size,
                };
                let options = build::BuildOptions {
                    output: output.to_owned(),
                    force: self.force,
                    sources,
                    write: self.write.clone(),
                    base: base.map(Path::to_owned),
                    is_clone,
                    changes: Vec::new(),
                };
                let built = build::build(vec![source.image], &options, &|_| ());
                Ok(source
                    .blobs
                    .finish(built.map(|_| ()).map_err(registry::Error::from))?)
            }
            pull::Fetchable::File(file) => {
                Ok(file
                    .blobs
                    .finish(file.write_to(output, self.force, &|_| ()))?)
            }
        }
    }

    /// The image of this name, if the reference still leads to it, which takes one request.
    fn up_to_date(
        &self,
        store: &Store,
        name: &store::Reference,
    ) -> Result<Option<(StoredImage, Digest)>> {
        let Some(image) = store
            .images()?
            .into_iter()
            .find(|image| image.facts.refs.contains(name))
        else {
            return Ok(None);
        };
        let Some(have) = image.facts.manifest_digest else {
            return Ok(None);
        };
        if !store.is_sound(&image)? {
            return Ok(None);
        }
        // Images for all platforms of an index have its digest.
        let base = Base::open(&image.path, store.open_image(&image)?)?;
        if !sources::is_for(&base.config, &self.platform) {
            return Ok(None);
        }
        let now = pull::digest(self.reference, &self.registries)?;
        Ok((now == have).then_some((image, now)))
    }
}
