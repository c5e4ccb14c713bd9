//! Pushes images to registries, as OCI images or as image files.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::Result;
use super::events::{Events, Stage};
use crate::build::Digest;
use crate::build::export::{self, BlobFile, Compression, LayerBlob, MANIFEST, OriginalLayer};
use crate::error::{Io, chain};
use crate::fs::{self, Rootfs};
use crate::registry::artifact::Artifact;
use crate::registry::push::{self, Target, Upload, UploadContent};
use crate::registry::{Observer, Reference, Registries, pull};
use crate::store::{Store, StoredImage};
use crate::text::hex;

/// A request to push an image.
pub struct Push<'a> {
    /// The image's name in the registry.
    pub reference: &'a Reference,
    /// Settings of registries.
    pub registries: &'a Registries,
    /// Receives the progress of uploads.
    pub observer: Arc<dyn Observer>,
}

impl std::fmt::Debug for Push<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Push")
            .field("reference", &self.reference)
            .field("registries", &self.registries)
            .finish_non_exhaustive()
    }
}

/// How to send layers.
#[derive(Debug)]
pub struct Layers<'a> {
    /// The repository of the same registry that the image came from, whose layers the registry can
    /// mount.
    pub came_from: Option<String>,
    /// The compression of all layers. `None` reuses layers that the registry has in their original
    /// form, and compresses the others with gzip.
    pub compression: Option<Compression>,
    /// Where to record what layers become when they are compressed, and to find what they became
    /// for earlier pushes: the store of the image, if it is in one.
    pub store: Option<&'a Store>,
    /// Directory for temporary files.
    pub temp_dir: PathBuf,
}

impl Layers<'_> {
    /// The blob of a layer, if it is known and the registry has it.
    fn known(&self, layer: &OriginalLayer, target: &Target) -> Result<Option<LayerBlob>> {
        let original = layer.blob.filter(|_| self.compression.is_none());
        let compression = self.compression.unwrap_or(Compression::Gzip);
        let earlier = || self.store?.compressed(&layer.diff_id, compression);
        for blob in [original, earlier()].into_iter().flatten() {
            if target.has(&blob.digest)? {
                return Ok(Some(blob));
            }
        }
        Ok(None)
    }

    /// Records what layers became.
    fn record(&self, made: &[BlobFile]) {
        for layer in made {
            if let Some(Err(error)) = self
                .store
                .map(|store| store.record_compressed(&layer.diff_id, &layer.blob))
            {
                tracing::info!("the next push compresses again: {}", chain(&error));
            }
        }
    }
}

impl Push<'_> {
    /// Pushes an OCI image with the layers that the image was built from. Layers that the registry
    /// has are neither made nor sent again; it is asked for them, and whether it can be pushed to,
    /// before anything is made. Returns the digest of the manifest.
    ///
    /// # Errors
    /// [`Error`](super::Error).
    pub fn layers(
        &self,
        rootfs: &Rootfs,
        layers: &Layers<'_>,
        events: &dyn Events,
    ) -> Result<Digest> {
        let target = Target::new(self.reference, layers.came_from.clone(), self.registries)?;
        let originals = export::original_layers(rootfs)?;
        let known = originals.iter().map(|layer| layers.known(layer, &target));
        let known = known.collect::<Result<Vec<_>>>()?;
        let mut dir = None;
        if known.is_empty() || known.contains(&None) {
            target.ask()?;
            let made = tempfile::Builder::new()
                .prefix(".lxcri-fs-push.")
                .tempdir_in(&layers.temp_dir)
                .map_err(Io::at("making a directory in", &layers.temp_dir))?;
            dir = Some(made);
        }
        let at = dir.as_ref().map_or(&*layers.temp_dir, |dir| dir.path());
        let compression = layers.compression.unwrap_or(Compression::Gzip);
        let done = |n| events.done(n);
        if dir.is_some() {
            events.begins(Stage::MakeLayers, export::oci_image_size(rootfs, &known));
        }
        let image = export::oci_image(rootfs, at, compression, &known, &done);
        events.ends();
        let image = image?;
        layers.record(&image.layers);
        let layers = image.layers.into_iter().map(|made| Upload {
            digest: made.blob.digest,
            size: made.blob.size,
            content: UploadContent::File(made.path),
        });
        let config = Upload {
            digest: Digest::of(&image.config),
            size: image.config.len() as u64,
            content: UploadContent::Owned(image.config),
        };
        let uploads: Vec<_> = layers.chain([config]).collect();
        self.send(&target, &uploads, image.manifest)
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
        target.ask()?;
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
        self.send(&target, &uploads, artifact.manifest(&title))
    }

    fn send(&self, target: &Target, uploads: &[Upload], manifest: Vec<u8>) -> Result<Digest> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Kind {
            media_type: Option<String>,
        }
        // A manifest that is kept as it was pulled may be in Docker's format.
        let kind = serde_json::from_slice::<Kind>(&manifest).ok();
        let media_type = kind.and_then(|kind| kind.media_type);
        let media_type = media_type.as_deref().unwrap_or(MANIFEST);
        Ok(target.push(uploads, manifest, media_type, &self.observer)?)
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
