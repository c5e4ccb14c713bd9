//! Appends layers to the file of an image.

use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use super::events::{Events, Stage};
use super::sources::{Sources, total};
use crate::build::{self, AppendOptions, Built};
use crate::error::Io;
use crate::serve::overview;
use crate::store::{Container, Store, file_id};

/// A container in a store, and the file of its image.
#[derive(Debug)]
pub struct ContainerAndImage {
    /// The container.
    pub container: Container,
    /// Its image.
    pub image: PathBuf,
}

/// An image whose file may be changed: it is not in the store, and no other upper belongs to it.
#[derive(Debug)]
pub struct InPlace {
    image: PathBuf,
}

impl InPlace {
    /// Refuses an image in the store and, without `force`, an image with uppers: with another layer
    /// it becomes another image, which they no longer fit. `own` is the upper that becomes the new
    /// layer; `containers` are those in the store.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no such file, [`Error::Store`], [`Error::WouldNotFit`].
    pub fn check(
        store: &Store,
        image: &Path,
        own: Option<&Path>,
        containers: &[ContainerAndImage],
        force: bool,
    ) -> Result<Self> {
        if !image.exists() {
            let missing = std::io::ErrorKind::NotFound;
            return Err(Io::at("opening the image", image)(missing).into());
        }
        store.refuse_to_change(image)?;
        let uppers = uppers_on(image, own, containers)?;
        let image = image.to_owned();
        if force || uppers.is_empty() {
            return Ok(Self { image });
        }
        Err(Error::WouldNotFit { image, uppers })
    }

    /// Appends layers, the lowest first. Mounts of the image keep showing the old state.
    ///
    /// # Errors
    /// [`Error`]; the image is unchanged then.
    pub fn append(
        &self,
        layers: Sources,
        options: &AppendOptions,
        events: &dyn Events,
    ) -> Result<Built> {
        events.begins(Stage::Write, total(&layers.images));
        let built =
            layers.build(|images| build::append(&self.image, images, options, &|n| events.done(n)));
        events.ends();
        built
    }
}

/// Refuses to replace the file of an image with uppers: what they hold belongs to the image that is
/// there now. `containers` are those in the store.
///
/// # Errors
/// [`Error::WouldNotFit`].
pub fn refuse_to_replace(image: &Path, containers: &[ContainerAndImage]) -> Result<()> {
    let uppers = uppers_on(image, None, containers)?;
    if uppers.is_empty() {
        return Ok(());
    }
    let image = image.to_owned();
    Err(Error::WouldNotFit { image, uppers })
}

/// The uppers over an image except `own`, of mounts and of containers. Sorted.
fn uppers_on(
    image: &Path,
    own: Option<&Path>,
    containers: &[ContainerAndImage],
) -> Result<Vec<String>> {
    let id = file_id(image);
    let is_it = |path: &Path| id.is_some() && file_id(path) == id;
    let mut uppers: Vec<String> = Vec::new();
    for mounted in overview::all()? {
        if !mounted
            .status
            .images
            .iter()
            .any(|path| is_it(path.as_ref()))
        {
            continue;
        }
        let others = mounted.seen.iter().filter_map(|seen| seen.upper.as_deref());
        let others = others.filter(|upper| Some(*upper) != own);
        uppers.extend(others.map(|upper| upper.display().to_string()));
    }
    for ContainerAndImage { container, image } in containers {
        let is_own = own.is_some_and(|own| own.starts_with(&container.path));
        if !is_own && is_it(image) {
            uppers.push(format!("container {}", container.name));
        }
    }
    uppers.sort();
    uppers.dedup();
    Ok(uppers)
}
