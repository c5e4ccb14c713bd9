//! What a store needs of the place where it is: few operations, each of which happens as a whole or
//! not at all.

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
    /// What is known of it.
    pub facts: Facts,
    /// The image that it was cloned from, where the file system knows.
    pub parent: Option<Name>,
}

/// A container in a store.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its name.
    pub name: Name,
    /// Its directory. On ZFS, where it is when it is mounted: [`Store::reach`](super::Store::reach)
    /// sees to that.
    pub path: PathBuf,
    /// Its dataset, on ZFS.
    pub dataset: Option<Dataset>,
    /// The images that it is made of, the lowest first.
    pub images: Vec<ImageUse>,
    /// Whether somebody is making or removing it, or was killed while doing so.
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

/// What is found where images are.
#[derive(Debug, Default)]
pub struct Scan {
    /// Images that are complete.
    pub images: Vec<StoredImage>,
    /// What has an image's name and cannot be used as one.
    pub broken: Vec<(Name, Error)>,
    /// Images that are being written or removed, or were when somebody was killed.
    pub work: Vec<Name>,
    /// Names that are none of ours.
    pub strange: Vec<String>,
}

/// Where an image is being written.
#[derive(Debug)]
pub struct Begun {
    /// The directory.
    pub dir: PathBuf,
    /// Whether the image's file is there: a clone of the base.
    pub is_clone: bool,
}

/// A place for images and containers. What changes something is called under the store's lock, but
/// for [`Backend::begin`].
pub trait Backend: Debug + Send + Sync {
    /// Where locks are.
    fn locks(&self) -> PathBuf;

    /// All that is there.
    fn scan(&self) -> Result<Scan>;

    /// A directory for temporary files.
    fn temp_dir(&self) -> Result<PathBuf>;

    /// A directory to write an image in; [`Name::work`] gives its name. Given a base, and where
    /// whole files can be cloned only, it has a clone of that.
    fn begin(&self, work: &Name, base: Option<&StoredImage>) -> Result<Begun>;

    /// Makes what was begun an image: it is synced to the disk, and then there under this name,
    /// facts included.
    fn publish(&self, work: &Name, name: &Name, facts: &Facts) -> Result<()>;

    /// Replaces an image's file by `new`, which has the same root digest. Whoever has the old one
    /// open continues with it.
    fn replace(&self, name: &Name, new: &Path) -> Result<()>;

    /// Replaces an image's facts.
    fn set_facts(&self, name: &Name, facts: &Facts) -> Result<()>;

    /// What an image takes, complete or not.
    fn usage(&self, name: &Name) -> Result<Usage>;

    /// What a container takes.
    fn container_usage(&self, name: &Name) -> Result<Usage>;

    /// How many bytes may still be written.
    fn free(&self) -> Result<u64>;

    /// What else depends on an image: what was cloned from it and is none of the store's, what
    /// somebody made in its dataset.
    fn dependents(&self, name: &Name) -> Result<Vec<String>>;

    /// Removes an image, complete or not; how many bytes are freed. `held` is the image's lock:
    /// nobody opens it while it is held.
    fn remove(&self, name: &Name, held: Option<File>) -> Result<u64>;

    /// The containers, and what is left of containers that were being made or removed.
    fn containers(&self) -> Result<(Vec<Container>, Vec<Name>)>;

    /// The directory of a container, mounted.
    fn reach(&self, name: &Name) -> Result<PathBuf>;

    /// Makes a container's directory, marked as unfinished, unless there is a container of this
    /// name.
    fn create_container(&self, name: &Name, images: &[ImageUse]) -> Result<Container>;

    /// Marks a container as unfinished, or takes the mark away.
    fn mark(&self, name: &Name, unfinished: bool) -> Result<()>;

    /// What keeps a container from being removed, and is none of the store's.
    fn in_the_way(&self, name: &Name) -> Result<Vec<String>>;

    /// What tells a container from all others on this host, copies of it too.
    fn place(&self, name: &Name) -> Result<String>;

    /// Removes a container with all that is in its directory.
    fn remove_container(&self, name: &Name) -> Result<()>;
}
