//! The store that a command works on, and how its arguments name images there.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;

use super::error::Error;
use super::tls::TlsArgs;
use crate::image::{self, is_file, is_remote, open_file};
use crate::registry::Registries;
use crate::runtime::record::images;
use crate::store::{self, Config, Location, Store, StoredImage};

/// The prefix of sources that are images of ours.
const BFC: &str = "bfc:";

/// An image without the prefix that sources may have.
fn bare(image: &Path) -> &Path {
    let bytes = image.as_os_str().as_bytes();
    match bytes.strip_prefix(BFC.as_bytes()) {
        Some(rest) if !image.exists() => Path::new(OsStr::from_bytes(rest)),
        _ => image,
    }
}

/// The store.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct StoreArgs {
    /// The store: dir:PATH or zfs:POOL[/PARENT] (default: LXCRI_FS_STORE, or else the store of the
    /// configuration)
    #[arg(long, value_name = "STORE", global = true)]
    pub store: Option<Location>,
}

impl StoreArgs {
    /// Refuses to replace the file of an image that a container or another upper was written over;
    /// see [`image::refuse_to_replace`].
    pub(super) fn refuse_to_replace(&self, file: &Path) -> Result<(), Error> {
        if !file.exists() {
            return Ok(());
        }
        let containers = images(&self.open()?);
        Ok(image::refuse_to_replace(file, &containers)?)
    }

    /// Reads the configuration.
    pub(super) fn config(&self) -> Result<Config, Error> {
        Ok(Config::load(self.store.as_ref())?)
    }

    /// The settings of registries: of the configuration, of registries.conf, and of `tls`.
    pub(super) fn registries(&self, tls: TlsArgs) -> Result<Registries, Error> {
        let config = self.config()?;
        let trust = config.trust();
        let registries = config.registries.value.with_registries_conf()?;
        Ok(tls.apply(registries).with_trust(trust))
    }

    /// As [`StoreArgs::registries`], if any of these sources is in a registry; reads the
    /// configuration only then.
    pub(super) fn registries_for<'a>(
        &self,
        sources: impl IntoIterator<Item = &'a OsString>,
        tls: TlsArgs,
    ) -> Result<Registries, Error> {
        let is_remote = sources.into_iter().any(|source| is_remote(source));
        if is_remote {
            self.registries(tls)
        } else {
            Ok(Registries::default())
        }
    }

    /// The store.
    pub(super) fn open(&self) -> Result<Store, Error> {
        Ok(Store::open(&self.config()?)?)
    }

    /// Opens an image that is named by its path or by its name in the store, and returns its path.
    /// A file that exists comes first; an argument that begins with `/` or `.` can only be a file.
    pub(super) fn open_image(&self, image: &Path) -> Result<(PathBuf, File), Error> {
        match self.in_store(image)? {
            Some((store, image)) => {
                let file = store.open_image(&image)?;
                Ok((image.path, file))
            }
            None => {
                let image = bare(image);
                Ok((image.to_owned(), open_file(image)?))
            }
        }
    }

    /// As [`StoreArgs::open_image`], for several: their paths, and the open files, which keep them
    /// from being removed.
    pub(super) fn open_images(
        &self,
        images: &[PathBuf],
    ) -> Result<(Vec<PathBuf>, Vec<File>), Error> {
        let opened = images.iter().map(|image| self.open_image(image));
        Ok(opened.collect::<Result<Vec<_>, _>>()?.into_iter().unzip())
    }

    /// Sources of images, of which those that are names in the store, with or without `bfc:`,
    /// become the files there; and these, opened, which keeps them from being removed.
    pub(super) fn sources(&self, texts: &[OsString]) -> Result<(Vec<OsString>, Vec<File>), Error> {
        let (mut sources, mut held) = (Vec::new(), Vec::new());
        for text in texts {
            let Some(name) = self.source_name(text)? else {
                sources.push(text.clone());
                continue;
            };
            let (path, file) = self.open_image(&name)?;
            let mut source = OsString::from(BFC);
            source.push(path);
            sources.push(source);
            held.push(file);
        }
        Ok((sources, held))
    }

    /// The name, if a source is an image in the store.
    fn source_name(&self, text: &OsStr) -> Result<Option<PathBuf>, Error> {
        if let Some(name) = text.as_bytes().strip_prefix(BFC.as_bytes()) {
            let name = PathBuf::from(OsStr::from_bytes(name));
            return Ok(self.in_store(&name)?.map(|_| name));
        }
        if is_file(text) {
            return Ok(None);
        }
        match self.in_store(text.as_ref()) {
            Ok(found) => Ok(found.map(|_| text.into())),
            // That it is no file either is said when it is opened.
            Err(Error::Store(store::Error::NotFound { .. } | store::Error::Reference { .. })) => {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// The image in the store that an argument names; `None` if it names a file.
    pub(super) fn in_store(&self, image: &Path) -> Result<Option<(Store, StoredImage)>, Error> {
        let image = bare(image);
        let text = image.to_str().filter(|text| !text.starts_with(['/', '.']));
        let Some(text) = text.filter(|_| image.is_dir() || !image.exists()) else {
            return Ok(None);
        };
        let store = self.open()?;
        let image = self.named(&store, text)?;
        Ok(Some((store, image)))
    }

    /// The image of this name in the store. A short name that the store does not have is what
    /// registries.conf has as its alias, under which `pull` puts it into the store.
    pub(super) fn named(&self, store: &Store, text: &str) -> Result<StoredImage, Error> {
        match store.image(text) {
            Err(missing @ store::Error::NotFound { .. }) => {
                let alias = self.registries(TlsArgs::default())?.alias(text);
                let aliased = alias.map(|name| store.image(&name));
                Ok(aliased.unwrap_or(Err(missing))?)
            }
            found => Ok(found?),
        }
    }
}
