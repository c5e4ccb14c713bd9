//! What a store needs of the place that holds it: few operations, each of them atomic.

use std::fmt::Debug;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use super::facts::Facts;
use super::name::Name;
use crate::sys::extents::Usage;
use crate::zfs::Dataset;

/// An image in a store.
#[derive(Debug, Clone)]
pub struct StoredImage {
    /// Its name among the store's directories or datasets.
    pub name: Name,
    /// The image file.
    pub path: PathBuf,
    /// Its facts.
    pub facts: Facts,
    /// The image that it was cloned from, if the file system knows.
    pub parent: Option<Name>,
}

/// A container in a store.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its name.
    pub name: Name,
    /// Its directory. On ZFS, its path once [`Store::reach`](super::Store::reach) has mounted it.
    pub path: PathBuf,
    /// Its dataset, on ZFS.
    pub dataset: Option<Dataset>,
    /// The images that it needs: its own first, then those that it can go back to; `None` if their
    /// list is damaged: it may need any image.
    pub images: Option<Vec<ImageUse>>,
    /// Whether a process is creating or removing it, or was killed while doing so.
    pub unfinished: bool,
}

/// An image that a container is made of.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ImageUse {
    /// The image's name in the store.
    pub name: String,
    /// Its root digest, 64 hexadecimal digits.
    pub root_digest: String,
}

/// What the directory or dataset of images contains.
#[derive(Debug, Default)]
pub struct Scan {
    /// Images that are complete.
    pub images: Vec<StoredImage>,
    /// Entries with an image's name that cannot be used as images.
    pub broken: Vec<(Name, Error)>,
    /// Images that are being written or removed, and those that a killed process left.
    pub work: Vec<Name>,
    /// Names that do not belong to the store.
    pub strange: Vec<String>,
}

/// Where an image is being written.
#[derive(Debug)]
pub struct Begun {
    /// The directory.
    pub dir: PathBuf,
    /// Whether it holds a clone of the base.
    pub is_clone: bool,
}

/// A place for images and containers. Methods that change something, except [`Backend::begin`], are
/// called under the store's lock.
pub trait Backend: Debug + Send + Sync {
    /// The directory of locks.
    fn locks(&self) -> PathBuf;

    /// All that is there.
    fn scan(&self) -> Result<Scan>;

    /// A directory for temporary files.
    fn temp_dir(&self) -> Result<PathBuf>;

    /// A directory to write an image in, with a name from [`Name::work`]. It contains a clone of
    /// the base if the backend can only clone whole files.
    fn begin(&self, work: &Name, base: Option<&StoredImage>) -> Result<Begun>;

    /// Publishes what was begun as an image: it is synced, and then appears under this name with
    /// its facts.
    fn publish(&self, work: &Name, name: &Name, facts: &Facts) -> Result<()>;

    /// Replaces an image's file by `new`, which has the same root digest. Processes that have the
    /// old one open keep it.
    fn replace(&self, name: &Name, new: &Path) -> Result<()>;

    /// Replaces an image's facts.
    fn set_facts(&self, name: &Name, facts: &Facts) -> Result<()>;

    /// The space that an image takes, complete or not.
    fn usage(&self, name: &Name) -> Result<Usage>;

    /// The space that a container takes.
    fn container_usage(&self, name: &Name) -> Result<Usage>;

    /// Free space in bytes.
    fn free(&self) -> Result<u64>;

    /// What else depends on an image: clones outside the store, and foreign datasets below its own.
    fn dependents(&self, name: &Name) -> Result<Vec<String>>;

    /// Removes an image, complete or not. Returns how many bytes that freed. `held` is the image's
    /// lock: no process opens the image while it is held.
    fn remove(&self, name: &Name, held: Option<File>) -> Result<u64>;

    /// The containers, and the remains of containers that were being created or removed.
    fn containers(&self) -> Result<(Vec<Container>, Vec<Name>)>;

    /// The directory of a container, which is mounted if necessary.
    fn reach(&self, name: &Name) -> Result<PathBuf>;

    /// Creates a container's directory, marked as unfinished. Fails if a container of this name
    /// exists.
    fn create_container(&self, name: &Name, images: &[ImageUse]) -> Result<Container>;

    /// Creates a container's directory with what another one's has, or had at a snapshot, except
    /// `without`, marked as unfinished. `None` if the backend can only copy files.
    fn clone_container(
        &self,
        from: &Container,
        snapshot: Option<&str>,
        name: &Name,
        without: &str,
    ) -> Result<Option<Container>>;

    /// Sets the images that a container needs.
    fn set_images(&self, name: &Name, images: &[ImageUse]) -> Result<()>;

    /// Sets or clears the mark of an unfinished container.
    fn mark(&self, name: &Name, unfinished: bool) -> Result<()>;

    /// Things outside the store that keep a container from being removed.
    fn in_the_way(&self, name: &Name) -> Result<Vec<String>>;

    /// What distinguishes a container from all others on this host, even from its copies.
    fn place(&self, name: &Name) -> Result<String>;

    /// Removes a container with all that is in its directory.
    fn remove_container(&self, name: &Name) -> Result<()>;

    /// The directory of a volume, which is made if it is missing, and mounted if necessary.
    fn volume(&self, name: &Name) -> Result<PathBuf>;

    /// The volumes.
    fn volumes(&self) -> Result<Vec<Name>>;

    /// The space that a volume takes.
    fn volume_usage(&self, name: &Name) -> Result<Usage>;

    /// Removes a volume with all that is in it.
    fn remove_volume(&self, name: &Name) -> Result<()>;
}
