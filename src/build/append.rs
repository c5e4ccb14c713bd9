//! Adds layers to an image in place.

use std::fs::{File, TryLockError};
use std::path::Path;

use bfc::rootfs::LayerEntry;
use bfc::writer::{Documents, Keep, WriteOptions};

use super::base::Base;
use super::config_change::ConfigChange;
use super::error::{Error, Result};
use super::{Built, SourceImage, added, finish};
use crate::error::Io;
use crate::layer::Budget;

/// How to append.
#[derive(Debug, Clone)]
pub struct AppendOptions {
    /// How contents are written; length of frames and encryption are the image's.
    pub write: WriteOptions,
    /// Password or key, when the image is encrypted.
    pub secret: Option<bfc::Secret>,
    /// How sources were opened.
    pub sources: super::sources::SourceOptions,
    /// What to change in the image's configuration.
    pub changes: Vec<ConfigChange>,
}

/// Puts the layers of `images` on top of the image at `path`. Until the last write, that of the
/// header, the image is unchanged: unfinished work is cut off again or, if the process is killed,
/// ignored by readers.
///
/// # Errors
/// [`Error`]; the image is unchanged then.
pub fn append(
    path: &Path,
    images: Vec<SourceImage>,
    options: &AppendOptions,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Built> {
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(Io::at("opening the image", path))?;
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => Error::Source {
            name: path.display().to_string(),
            reason: "another process is appending to it".into(),
            hint: Some("try again when it has finished".into()),
        },
        TryLockError::Error(e) => Io::at("locking the image", path)(e).into(),
    })?;
    let base = Base::open(
        path,
        file.try_clone()
            .map_err(Io::at("opening the image", path))?,
    )?;
    let appended = append_to(&base, &file, path, images, options, progress);
    if appended.is_err() {
        base.cut(&file);
    }
    appended
}

fn append_to(
    base: &Base,
    file: &File,
    path: &Path,
    images: Vec<SourceImage>,
    options: &AppendOptions,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Built> {
    let mut tree = base.tree(base.layers.len())?;
    let write = WriteOptions {
        key: base.key(options.secret.as_ref())?,
        ..options.write.clone()
    };
    let file = file
        .try_clone()
        .map_err(Io::at("opening the image", path))?;
    let mut writer = base.resume(file, Keep::All, write)?;
    let mut budget = Budget::new(options.sources.max_size);
    let mut layers: Vec<LayerEntry> = base.layers.clone();
    for source in images.into_iter().flat_map(|image| image.layers) {
        layers.push(added(
            source,
            &mut writer,
            &mut tree,
            &mut budget,
            path,
            progress,
        )?);
    }
    let found = Documents {
        layers,
        config: base.config.clone(),
        manifest: base.manifest.clone(),
    };
    finish(
        writer,
        tree,
        found,
        (&options.sources.platform, &options.changes),
        path,
    )
}
