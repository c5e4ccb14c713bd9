//! The store, which holds images and containers in a directory or on ZFS.
//!
//! [`Store`] contains what is the same for all stores: names, removal, locking. A [`Backend`]
//! contains what differs. docs/STORE.md describes the layout.

mod backend;
mod compressed;
pub mod config;
mod containers;
mod directory;
pub mod doctor;
mod error;
mod facts;
mod gc;
pub mod graph;
mod name;
mod new_image;
pub mod protect;
mod reference;
mod remove_tree;
mod room;
pub mod size;
mod sound;
mod spare;
mod uses;
mod volumes;
mod zfs;

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;

use jiff::Timestamp;

pub use crate::sys::extents::Usage;
pub use crate::sys::lock::{Lock, Locks};
pub use backend::{Backend, Container, ImageUse, Scan, StoredImage};
pub use config::{Config, Location};
pub use error::{Error, Result};
pub use facts::Facts;
pub use gc::{Garbage, Outcome, Step};
pub use name::Name;
pub use new_image::{NewImage, Published, Pulled};
pub use reference::Reference;
pub use remove_tree::{mounts_below, refuse_mounts, remove_tree};
pub use sound::{SoundBase, is_sound_file};
pub use spare::Limits;

pub(crate) use self::uses::file_id;
use self::zfs::ZfsStore;
use crate::build::Digest;
use crate::error::Io;
use crate::zfs::Dataset;
use directory::DirectoryStore;

/// The lock under which the store changes. It is held only for moments.
const STORE_LOCK: &str = "store";
/// Fewest digits of a root digest that stand for an image.
const MIN_DIGEST: usize = 6;

/// What [`Store::remove`] did.
#[derive(Debug)]
pub enum Removed {
    /// One of several names was removed.
    Reference(Reference),
    /// The image was removed.
    Image {
        /// How many bytes that freed.
        freed: u64,
    },
}

/// A store.
#[derive(Debug)]
pub struct Store {
    location: Location,
    backend: Box<dyn Backend>,
    locks: Locks,
}

impl Store {
    /// Opens the store that the configuration names. Nothing is created before something is put
    /// there.
    ///
    /// # Errors
    /// [`Error::Location`].
    pub fn open(config: &Config) -> Result<Self> {
        Self::at(config.store.value.clone())
    }

    /// The store of this place.
    ///
    /// # Errors
    /// [`Error::Location`].
    pub fn at(location: Location) -> Result<Self> {
        tracing::debug!("the store is {location}");
        let backend: Box<dyn Backend> = match &location {
            Location::Directory(path) => Box::new(DirectoryStore::new(path.clone())),
            Location::Zfs(parent) => Box::new(ZfsStore::new(parent.clone())?),
        };
        Ok(Self {
            locks: Locks::new(backend.locks()),
            location,
            backend,
        })
    }

    /// Where it is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// The images, ordered by name; each reference belongs to one image only.
    ///
    /// # Errors
    /// [`Error`]; images that cannot be read are left out: [`Store::scan`] returns them too.
    pub fn images(&self) -> Result<Vec<StoredImage>> {
        Ok(self.scan()?.images)
    }

    /// Everything in the directory or dataset of images, valid or not.
    ///
    /// # Errors
    /// [`Error`].
    pub fn scan(&self) -> Result<Scan> {
        let mut scan = self.backend.scan()?;
        settle_references(&mut scan.images);
        scan.images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(scan)
    }

    /// The image that `text` names: by a reference, by `blake3:` and the root digest or its
    /// beginning, or by the bare beginning. The directory that an image is in says nothing: its
    /// reference may have moved on.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`], [`Error::Reference`] if it cannot be the name of
    /// an image; the error of reading the image that has this name.
    pub fn image(&self, text: &str) -> Result<StoredImage> {
        let Scan { images, broken, .. } = self.scan()?;
        let reference = text.parse::<Reference>();
        if let Ok(reference) = &reference
            && let Some(image) = images.iter().find(|i| i.facts.refs.contains(reference))
        {
            return Ok(image.clone());
        }
        let is_named = |name: &Name| {
            name.as_str() == text
                || reference
                    .as_ref()
                    .is_ok_and(|r| name.reference().as_ref() == Some(r))
        };
        if let Some((_, error)) = broken.into_iter().find(|(name, _)| is_named(name)) {
            return Err(error);
        }
        let digest = text.strip_prefix("blake3:").unwrap_or(text);
        let mut found = images
            .into_iter()
            .filter(|i| digest.len() >= MIN_DIGEST && i.facts.root_digest.starts_with(digest));
        match (found.next(), found.next(), reference) {
            (Some(image), None, _) => Ok(image),
            (Some(one), Some(two), _) => {
                let names = [one, two]
                    .into_iter()
                    .chain(found)
                    .map(|i| i.name.to_string())
                    .collect();
                Err(Error::Ambiguous {
                    text: text.to_owned(),
                    names,
                })
            }
            (None, _, Err(error)) if digest == text => Err(error),
            (None, ..) => Err(self.not_found("image", text)),
        }
    }

    /// The image with this name in the store.
    fn image_named(&self, name: &Name) -> Result<StoredImage> {
        let mut images = self.images()?.into_iter();
        images
            .find(|image| image.name == *name)
            .ok_or_else(|| self.not_found("image", name.as_str()))
    }

    /// Opens an image. It is not removed while any process has the file open.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it has been removed.
    pub fn open_image(&self, image: &StoredImage) -> Result<File> {
        let file = match File::open(&image.path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(self.not_found("image", image.name.as_str()));
            }
            other => other.map_err(Io::at("opening the image", &image.path))?,
        };
        tracing::debug!("image {} is {}", image.name, image.path.display());
        uses::hold(&file, &image.path)?;
        // It may have been removed before it was locked.
        if image.path.exists() {
            Ok(file)
        } else {
            Err(self.not_found("image", image.name.as_str()))
        }
    }

    /// Waits until no other process is making the image of this reference; calls `waiting` once if
    /// one is. The image may exist then.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn lock_reference(&self, reference: &Reference, waiting: impl FnOnce()) -> Result<Lock> {
        Ok(self
            .locks
            .lock(&format!("make-{}", Name::of(reference, 1)), waiting)?)
    }

    /// Waits until no other process is creating or removing the container of this name; calls
    /// `waiting` once if one is.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Io`].
    pub fn lock_container(&self, name: &str, waiting: impl FnOnce()) -> Result<Lock> {
        Ok(self
            .locks
            .lock(&format!("container-{}", Name::new(name)?), waiting)?)
    }

    /// A directory for temporary files, on the store's file system.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Zfs`].
    pub fn temp_dir(&self) -> Result<PathBuf> {
        self.backend.temp_dir()
    }

    /// The image that begins with most of these layers and is written in the same way; if there are
    /// several, the oldest. Skips damaged images.
    ///
    /// # Errors
    /// [`Error`].
    pub fn best_base(
        &self,
        layers: &[Option<Digest>],
        compression: &str,
        encryption: &str,
    ) -> Result<Option<StoredImage>> {
        let common = |image: &StoredImage| {
            image
                .facts
                .layers
                .iter()
                .zip(layers)
                .take_while(|(have, wanted)| Some(**have) == **wanted)
                .count()
        };
        let fits = |image: &StoredImage| {
            image.facts.compression == compression
                && image.facts.encryption == encryption
                && common(image) > 0
        };
        let mut images: Vec<StoredImage> = self.images()?.into_iter().filter(fits).collect();
        images.sort_by(|a, b| {
            common(b)
                .cmp(&common(a))
                .then_with(|| a.facts.created.cmp(&b.facts.created))
        });
        for image in images {
            if self.is_sound(&image)? {
                return Ok(Some(image));
            }
        }
        Ok(None)
    }

    /// Begins a new image, whose first layers are those of `base`. It is invisible until it is
    /// published, and removed if it is not.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Zfs`], [`Error::NotFound`] when the base has been removed meanwhile.
    pub fn begin_image(&self, base: Option<&StoredImage>) -> Result<NewImage<'_>> {
        NewImage::begin(self, base)
    }

    /// The containers, ordered by name. Mounts nothing.
    ///
    /// # Errors
    /// [`Error`].
    pub fn containers(&self) -> Result<Vec<Container>> {
        Ok(self.backend.containers()?.0)
    }

    /// A container; its dataset is mounted if necessary.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Zfs`] when its dataset cannot be mounted.
    pub fn container(&self, name: &str) -> Result<Container> {
        let container = self
            .listed(name)?
            .ok_or_else(|| self.not_found("container", name))?;
        Ok(Container {
            path: self.reach(&container)?,
            ..container
        })
    }

    /// The directory of a container, which is mounted if necessary.
    ///
    /// # Errors
    /// [`Error::Zfs`] if that fails, so that nothing is known about its contents.
    pub fn reach(&self, container: &Container) -> Result<PathBuf> {
        self.directory_of(&container.name)
    }

    /// The directory that the container of this name has, if there is one, mounted.
    ///
    /// # Errors
    /// As [`Store::reach`].
    pub fn directory_of(&self, container: &Name) -> Result<PathBuf> {
        self.backend.reach(container)
    }

    /// A container, as [`Store::containers`] lists it.
    fn listed(&self, name: &str) -> Result<Option<Container>> {
        Ok(self
            .containers()?
            .into_iter()
            .find(|c| c.name.as_str() == name))
    }

    /// What distinguishes a container from all others on this host, and from copies of it in other
    /// stores.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Zfs`].
    pub fn place(&self, container: &Name) -> Result<String> {
        self.backend.place(container)
    }

    /// Creates a container from images, the lowest first, which cannot be removed from now on. Its
    /// directory contains only the store's own record, and it is marked as unfinished.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::Name`], [`Error::NotFound`] when an image has been removed
    /// meanwhile.
    pub fn create_container(&self, name: &str, images: &[&StoredImage]) -> Result<Container> {
        let name = containers::new_name(name)?;
        let _lock = self.change()?;
        if let Some(gone) = images.iter().find(|image| !image.path.exists()) {
            return Err(self.not_found("image", gone.name.as_str()));
        }
        let uses = images.iter().map(|i| ImageUse {
            name: i.name.to_string(),
            root_digest: i.facts.root_digest.clone(),
        });
        self.backend
            .create_container(&name, &uses.collect::<Vec<_>>())
    }

    /// Marks a container as unfinished; only a marked container is ever taken for a leftover.
    /// `create` clears the mark last.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Zfs`].
    pub fn mark_unfinished(&self, container: &Container, unfinished: bool) -> Result<()> {
        self.backend.mark(&container.name, unfinished)
    }

    /// Refuses a container that cannot be removed, because something is mounted in its directory,
    /// or there are foreign datasets below its own.
    ///
    /// # Errors
    /// [`Error::InUse`], which names the obstacle.
    pub fn refuse_to_remove(&self, container: &Container) -> Result<()> {
        let own = container.dataset.is_some().then_some(&container.path);
        let mounted = mounts_below(&container.path)?
            .into_iter()
            .filter(|m| Some(m) != own);
        let mut users: Vec<_> = mounted
            .map(|m| format!("mounted on {}", m.display()))
            .collect();
        users.extend(self.backend.in_the_way(&container.name)?);
        if users.is_empty() {
            Ok(())
        } else {
            Err(Error::InUse {
                kind: "container",
                name: container.name.to_string(),
                users,
            })
        }
    }

    /// Removes a container with everything that it wrote.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::InUse`] as [`Store::refuse_to_remove`] says.
    pub fn remove_container(&self, name: &str) -> Result<()> {
        let _lock = self.change()?;
        let container = self
            .listed(name)?
            .ok_or_else(|| self.not_found("container", name))?;
        self.refuse_to_remove(&container)?;
        self.backend.remove_container(&container.name)
    }

    /// Gives an image a reference; another image that has it loses it.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the image is gone.
    pub fn tag(&self, image: &StoredImage, reference: &Reference) -> Result<()> {
        let _lock = self.change()?;
        // It may have been removed since it was looked up.
        if !self
            .backend
            .scan()?
            .images
            .iter()
            .any(|i| i.name == image.name && i.facts.root_digest == image.facts.root_digest)
        {
            return Err(self.not_found("image", image.name.as_str()));
        }
        self.give(&image.name, reference)
    }

    /// Removes a name of an image, and with its last name the image. If `text` is a digest, removes
    /// the image with all its names. With `force`, uppers outside the store keep no image.
    ///
    /// # Errors
    /// [`Error::InUse`] if something uses the image, [`Error::NotFound`].
    pub fn remove(&self, text: &str, force: bool) -> Result<Removed> {
        let _lock = self.change()?;
        let mut image = self.image(text)?;
        if let Some(at) = text
            .parse()
            .ok()
            .and_then(|reference: Reference| image.facts.refs.iter().position(|r| *r == reference))
            && image.facts.refs.len() > 1
        {
            let reference = image.facts.refs.remove(at);
            self.backend.set_facts(&image.name, &image.facts)?;
            return Ok(Removed::Reference(reference));
        }
        Ok(Removed::Image {
            freed: self.remove_image(&image, force)?,
        })
    }

    /// Removes an image that is not in use. The caller holds the store's lock.
    fn remove_image(&self, image: &StoredImage, force: bool) -> Result<u64> {
        // Held until the image is removed, so that no process starts to use it meanwhile.
        let held = uses::claim(&image.path)?;
        let mut users = self.users_but_open(image)?;
        if !force {
            users.extend(uses::uppers(image));
        }
        if held.is_none() && users.is_empty() {
            users.push(uses::OPEN.to_owned());
        }
        if !users.is_empty() {
            let name = image
                .facts
                .refs
                .first()
                .map_or_else(|| image.name.to_string(), ToString::to_string);
            return Err(Error::InUse {
                kind: "image",
                name,
                users,
            });
        }
        for child in self
            .backend
            .scan()?
            .images
            .iter()
            .filter(|i| i.facts.parent.as_ref() == Some(&image.facts.root_digest))
        {
            self.backend.set_facts(
                &child.name,
                &Facts {
                    parent: None,
                    ..child.facts.clone()
                },
            )?;
        }
        self.backend.remove(&image.name, held)
    }

    /// The space that an image takes.
    ///
    /// # Errors
    /// [`Error`].
    pub fn usage_of(&self, image: &StoredImage) -> Result<Usage> {
        self.backend.usage(&image.name)
    }

    /// The space that a container takes.
    ///
    /// # Errors
    /// [`Error`].
    pub fn usage_of_container(&self, container: &Container) -> Result<Usage> {
        self.backend.container_usage(&container.name)
    }

    /// Free space in bytes.
    ///
    /// # Errors
    /// [`Error`].
    pub fn free(&self) -> Result<u64> {
        self.backend.free()
    }

    /// Takes the lock under which the store changes.
    fn change(&self) -> Result<Lock> {
        Ok(self.locks.lock(STORE_LOCK, || {})?)
    }

    fn not_found(&self, kind: &'static str, name: &str) -> Error {
        Error::NotFound {
            kind,
            name: name.to_owned(),
            store: self.location.to_string(),
        }
    }

    /// Gives an image a reference, and removes it from the image that had it.
    fn give(&self, name: &Name, reference: &Reference) -> Result<()> {
        // A kill in between leaves two images with the reference: the newer one has it.
        let images = self.backend.scan()?.images;
        for image in images
            .iter()
            .filter(|i| i.name == *name && !i.facts.refs.contains(reference))
        {
            let mut facts = image.facts.clone();
            facts.name(reference);
            self.backend.set_facts(name, &facts)?;
        }
        for image in images
            .iter()
            .filter(|i| i.name != *name && i.facts.refs.contains(reference))
        {
            let mut facts = image.facts.clone();
            facts.unname(reference, Timestamp::now());
            self.backend.set_facts(&image.name, &facts)?;
        }
        Ok(())
    }
}

/// Whether the container that [`Store::place`] identified exists. Returns true if that cannot be
/// found out.
///
/// # Errors
/// [`Error::Zfs`] if it is not a valid place.
pub fn is_there(place: &str) -> Result<bool> {
    match place.split_once(':') {
        Some(("zfs", dataset)) => Ok(dataset.parse::<Dataset>()?.exists().unwrap_or(true)),
        Some(("dir", path)) => Ok(PathBuf::from(path).symlink_metadata().is_ok()),
        _ => Ok(true),
    }
}

/// Leaves a reference only to the newest of several images that have it: one may have been received
/// from another host, or a process was killed while it moved the reference.
fn settle_references(images: &mut [StoredImage]) {
    images.sort_by(|a, b| {
        b.facts
            .created
            .cmp(&a.facts.created)
            .then_with(|| a.name.cmp(&b.name))
    });
    let mut taken: HashMap<Reference, Timestamp> = HashMap::new();
    for image in images {
        for reference in image.facts.refs.clone() {
            match taken.get(&reference) {
                Some(since) => image.facts.unname(&reference, *since),
                None => drop(taken.insert(reference, image.facts.created)),
            }
        }
    }
}
