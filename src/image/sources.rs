//! Sources of images: files ([`sources::open`]), registries ([`pull::source`]), and the storage of
//! other engines ([`skopeo`]).

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use super::error::{Error, Result};
use super::skopeo;
use crate::build::{self, Built, SourceImage, Spec, sources};
use crate::reference;
use crate::registry::{self, Blobs, Registries, pull};
use crate::upper::UpperRecord;

/// Opened images, and the downloads for them.
#[derive(Debug, Default)]
pub struct Sources {
    /// The images, lowest first.
    pub images: Vec<SourceImage>,
    blobs: Vec<Arc<Blobs>>,
}

impl From<Vec<SourceImage>> for Sources {
    /// Images that need no downloads.
    fn from(images: Vec<SourceImage>) -> Self {
        Self {
            images,
            blobs: Vec::new(),
        }
    }
}

impl Sources {
    /// Opens sources, the lowest first.
    ///
    /// # Errors
    /// [`Error`](super::Error).
    pub fn open(
        texts: &[OsString],
        options: &sources::SourceOptions,
        registries: &Registries,
    ) -> Result<Self> {
        let mut opened = Self::default();
        let mut input = false;
        for text in texts {
            match remote(text) {
                Some(reference) => {
                    let options = pull::PullOptions {
                        platform: options.platform.clone(),
                        registries: registries.clone(),
                        temp_dir: options.temp_dir.clone(),
                        observer: Arc::new(()),
                    };
                    let source = pull::source(&pull::parse(reference)?, &options)?;
                    opened.images.push(source.image);
                    opened.blobs.push(source.blobs);
                }
                None => match skopeo::reference(text) {
                    Some(reference) => opened.images.push(skopeo::read(reference, options)?),
                    None => {
                        let spec = Spec::parse(text)?;
                        refuse_upper(&spec)?;
                        if spec.is_stdin() && std::mem::replace(&mut input, true) {
                            return Err(Error::StdinTwice);
                        }
                        opened.images.push(sources::open(&spec, options)?);
                    }
                },
            }
        }
        Ok(opened)
    }

    /// Passes the images to `build`, then removes what was fetched, unless it is worth keeping.
    ///
    /// # Errors
    /// Those of `build`.
    pub fn build(
        self,
        build: impl FnOnce(Vec<SourceImage>) -> build::Result<Built>,
    ) -> Result<Built> {
        let mut result = build(self.images).map_err(registry::Error::from);
        for blobs in self.blobs {
            result = blobs.finish(result);
        }
        Ok(result?)
    }
}

/// Refuses the directory of an upper, whose layer is in one of its directories. As a layer, it
/// would become `/upper` and `/work`.
fn refuse_upper(spec: &Spec) -> Result<()> {
    match &spec.path {
        path if path.is_dir() && matches!(UpperRecord::read(path), Ok(Some(_))) => {
            Err(Error::IsUpper(path.clone()))
        }
        _ => Ok(()),
    }
}

/// Total length of the unpacked layers of images, bytes.
pub fn total(images: &[SourceImage]) -> u64 {
    images
        .iter()
        .flat_map(|image| &image.layers)
        .map(|layer| layer.size)
        .fold(0, u64::saturating_add)
}

/// Whether a source is fetched from a registry.
pub fn is_remote(text: &OsStr) -> bool {
    remote(text).is_some()
}

/// Whether a source is something else than the name of an image in a store: it has a prefix, or
/// there is such a file or directory.
pub fn is_file(text: &OsStr) -> bool {
    is_remote(text) || skopeo::reference(text).is_some() || Spec::names_file(text)
}

fn remote(text: &OsStr) -> Option<&str> {
    text.to_str()
        .filter(|text| text.starts_with(reference::PREFIX))
}
