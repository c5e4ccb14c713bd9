//! Images and containers of a store on ZFS that somebody knows by a path only: records of
//! containers and uppers, hooks, users. Their datasets may not be mounted, and then nothing is at
//! that path.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::error::{Error, Result};
use super::name::Dataset;
use crate::error::Io;

/// Name of the dataset of a store that has the images.
pub const IMAGES: &str = "images";
/// Name of the dataset of a store that has the containers.
pub const CONTAINERS: &str = "containers";
/// Name of the dataset of a store that has the volumes.
pub const VOLUMES: &str = "volumes";

/// Opens an image. One that is not found is looked for again after [`reach_directory`].
///
/// # Errors
/// [`Io`], and those of [`reach_directory`].
pub fn open_image<E: From<Error> + From<Io>>(path: &Path) -> Result<File, E> {
    // Without O_NONBLOCK, opening a fifo would wait for a writer.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let open = || File::options().read(true).custom_flags(flags).open(path);
    let file = match (open(), path.parent()) {
        (Err(error), Some(dir))
            if error.kind() == io::ErrorKind::NotFound && reach_directory(dir)? =>
        {
            open()
        }
        (opened, _) => opened,
    };
    Ok(file.map_err(Io::at("opening the image", path))?)
}

/// Mounts the dataset of an image, container or volume whose directory this is, after the datasets
/// that it lies in; whether there is one. No other dataset is mounted: the path may be anybody's
/// choice.
///
/// # Errors
/// Those of [`Dataset::reach`].
pub fn reach_directory(dir: &Path) -> Result<bool> {
    if !dir.is_absolute() {
        return Ok(false);
    }
    // Without ZFS, nothing is missing because of it.
    let found = Dataset::of_directory(dir).unwrap_or_default();
    let is_of_store = |dataset: &&Dataset| {
        dataset
            .parent()
            .is_some_and(|parent| [IMAGES, CONTAINERS, VOLUMES].contains(&parent.name()))
    };
    let found: Vec<&Dataset> = found.iter().filter(is_of_store).collect();
    // Copies of a store may have kept their directories: which of them is meant is not known.
    let [dataset] = found[..] else {
        return Ok(false);
    };
    dataset.reach().map(|_| true)
}
