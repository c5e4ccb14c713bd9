//! Pushes images to registries, as OCI images or as image files.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::Result;
use super::events::{Events, Stage};
use crate::build::Digest;
use crate::build::export::Compression;
use crate::build::export::{self, MANIFEST, OciImage};
use crate::error::Io;
use crate::fs::{self, Rootfs};
use crate::registry::artifact::Artifact;
use crate::registry::push::{self, Target, Upload, UploadContent};
use crate::registry::{Reference, Registries, pull};
use crate::store::StoredImage;
use crate::text::hex;

/// A request to push an image.
#[derive(Debug)]
pub struct Push<'a> {
    /// The image's name in the registry.
    pub reference: &'a Reference,
    /// Settings of registries.
    pub registries: &'a Registries,
}

/// How to send layers.
#[derive(Debug)]
pub struct Layers {
    /// The repository of the same registry that the image came from, whose layers the registry can
    /// mount.
    pub came_from: Option<String>,
    /// The compression of all layers. `None` reuses layers that the registry has in their original
    /// form, and compresses the others with gzip.
    pub compression: Option<Compression>,
    /// Directory for temporary files.
    pub temp_dir: PathBuf,
}

impl Push<'_> {
    /// Pushes an OCI image with the layers that the image was built from. Layers that the registry
    /// has are neither made nor sent again. Returns the digest of the manifest.
    ///
    /// # Errors
    /// [`Error`](super::Error).
    pub fn layers(&self, rootfs: &Rootfs, layers: Layers, events: &dyn Events) -> Result<Digest> {
        let Layers {
            came_from,
            compression,
            temp_dir,
        } = layers;
        let target = Target::new(self.reference, came_from, self.registries)?;
        let dir = tempfile::Builder::new()
            .prefix(".lxcri-fs-push.")
            .tempdir_in(&temp_dir)
            .map_err(Io::at("making a directory in", &temp_dir))?;
        let image = make(rootfs, &target, compression, dir.path(), events)?;
        let layers = image.layers.into_iter().map(|blob| Upload {
            digest: blob.digest,
            size: blob.size,
            content: UploadContent::File(blob.path),
        });
        let config = Upload {
            digest: Digest::of(&image.config),
            size: image.config.len() as u64,
            content: UploadContent::Owned(image.config),
        };
        let uploads: Vec<_> = layers.chain([config]).collect();
        send(&target, &uploads, image.manifest, events)
    }

    /// Pushes the file itself, as an artifact. Returns the digest of the manifest.
    ///
    /// # Errors
    /// [`Error`](super::Error).
    pub fn file(&self, path: &Path, file: File, events: &dyn Events) -> Result<Digest> {
        let failed = |source| fs::Error::Image {
            image: path.to_owned(),
            source,
        };
        let container = bfc::Container::open(Arc::new(file)).map_err(failed)?;
        let locator = container.locator().map_err(failed)?;
        let target = Target::new(self.reference, None, self.registries)?;
        // Bytes after the end of the image are remains of an interrupted write, and are not pushed.
        events.begins(Stage::Digest, container.len());
        let upload = push::file(path, container.len(), &|n| events.done(n));
        events.ends();
        let upload = upload?;
        let artifact = Artifact {
            digest: upload.digest,
            size: upload.size,
            root_digest: locator.map(|l| format!("blake3:{}", hex(&l.root_digest))),
        };
        let title = path.file_name().unwrap_or_default().to_string_lossy();
        let uploads = [upload, push::empty_config()];
        send(&target, &uploads, artifact.manifest(&title), events)
    }

    /// Another repository of the same registry from which an image in the store was pulled, if any.
    pub fn came_from(&self, image: &StoredImage) -> Option<String> {
        let names = image.facts.refs.iter();
        names
            .filter_map(|name| pull::parse(name.as_str()).ok())
            .filter(|name| name.registry() == self.reference.registry())
            .map(|name| name.repository().to_owned())
            .find(|other| other != self.reference.repository())
    }
}

/// Makes the layers that the registry does not have.
fn make(
    rootfs: &Rootfs,
    target: &Target,
    compression: Option<Compression>,
    dir: &Path,
    events: &dyn Events,
) -> Result<OciImage> {
    let mut failed = None;
    let mut reuse = |digest: &Digest| {
        if compression.is_some() || failed.is_some() {
            return false;
        }
        target.has(digest).unwrap_or_else(|error| {
            failed = Some(error);
            false
        })
    };
    events.begins(Stage::MakeLayers, export::oci_layout_size(rootfs));
    let compression = compression.unwrap_or(Compression::Gzip);
    let done = |n| events.done(n);
    let image = export::oci_image(rootfs, dir, compression, &mut reuse, &done);
    events.ends();
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(image?),
    }
}

fn send(
    target: &Target,
    uploads: &[Upload],
    manifest: Vec<u8>,
    events: &dyn Events,
) -> Result<Digest> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Kind {
        media_type: Option<String>,
    }
    // A manifest that is kept as it was pulled may be in Docker's format.
    let kind = serde_json::from_slice::<Kind>(&manifest).ok();
    let media_type = kind.and_then(|kind| kind.media_type);
    let media_type = media_type.as_deref().unwrap_or(MANIFEST);
    events.begins(Stage::Send, uploads.iter().map(|upload| upload.size).sum());
    let digest = target.push(uploads, manifest, media_type, &|n| events.done(n));
    events.ends();
    Ok(digest?)
}
