//! Layers at the end of an image's own file.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use super::events::{Events, Step};
use super::sources::{Sources, total};
use crate::build::{self, AppendOptions, Built};
use crate::runtime::record::ContainerRecord;
use crate::serve::overview;
use crate::store::Store;

/// An image whose file may be changed: it is none of the store's, and no upper fits it only as it
/// is now.
#[derive(Debug)]
pub struct InPlace {
    image: PathBuf,
}

impl InPlace {
    /// Refuses an image of the store, and, without `force`, one that uppers lie on: with another
    /// layer it is another image, and they do not fit it. `own` is the upper that is to be that
    /// layer.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no such file, [`Error::Store`], [`Error::WouldNotFit`].
    pub fn check(store: &Store, image: &Path, own: Option<&Path>, force: bool) -> Result<Self> {
        if !image.exists() {
            let missing = std::io::ErrorKind::NotFound;
            return Err(Error::io("opening the image", image)(missing));
        }
        store.refuse_to_change(image)?;
        let uppers = uppers_on(store, image, own)?;
        let image = image.to_owned();
        if force || uppers.is_empty() {
            return Ok(Self { image });
        }
        Err(Error::WouldNotFit { image, uppers })
    }

    /// Appends layers, the lowest first. Mounts of the image keep showing what it was.
    ///
    /// # Errors
    /// [`Error`]; the image is unchanged then.
    pub fn append(
        &self,
        layers: Sources,
        options: &AppendOptions,
        events: &dyn Events,
    ) -> Result<Built> {
        events.begins(Step::Write, total(&layers.images));
        let built =
            layers.build(|images| build::append(&self.image, images, options, &|n| events.done(n)));
        events.ends();
        built
    }
}

/// The uppers on an image, but `own`: of mounts, and of the store's containers. Sorted.
fn uppers_on(store: &Store, image: &Path, own: Option<&Path>) -> Result<Vec<String>> {
    let id = |path: &Path| path.metadata().ok().map(|m| (m.dev(), m.ino()));
    let is_it = |path: &Path| id(path).is_some() && id(path) == id(image);
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
    for container in store.containers().unwrap_or_default() {
        let dir = store.reach(&container).ok();
        let record = dir.and_then(|dir| ContainerRecord::read(&dir).ok().flatten());
        let is_own = own.is_some_and(|own| own.starts_with(&container.path));
        if !is_own && record.is_some_and(|record| is_it(&record.image.path)) {
            uppers.push(format!("container {}", container.name));
        }
    }
    uppers.sort();
    uppers.dedup();
    Ok(uppers)
}
