//! Images of registries, as sources to build from.

use std::path::PathBuf;
use std::sync::Arc;

use oci_spec::image::{Descriptor, ImageIndex, ImageIndexBuilder, MediaType};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::download::{Blobs, Observer, RemoteLayer, Wanted};
use super::error::{Error, Result};
use super::session::{Manifest, Session};
use super::{Reference, Registries};
use crate::build::sources::{self, Documents, Image, Layer};
use crate::build::{self, Digest, Platform};

/// What a reference to an image in a registry begins with, in front of others.
pub const PREFIX: &str = "docker://";

/// How to pull.
#[derive(Clone)]
pub struct Options {
    /// Which of an index's images.
    pub platform: Platform,
    /// What the configuration says.
    pub registries: Registries,
    /// Below which directory blobs are kept while they are fetched.
    pub temp_dir: PathBuf,
    /// Who wants to know how fetching goes on.
    pub observer: Arc<dyn Observer>,
}

/// An image in a registry.
pub struct Source {
    /// Its layers, to be built: they are fetched when the first of them is read that is not there already.
    pub image: Image,
    /// What the reference leads to: the digest of a manifest, or of an index.
    pub digest: Digest,
    /// What is fetched.
    pub blobs: Arc<Blobs>,
}

/// Understands `[docker://]NAME[:TAG][@DIGEST]`; `nginx` is `docker.io/library/nginx:latest`.
///
/// # Errors
/// [`Error::Reference`].
pub fn parse(text: &str) -> Result<Reference> {
    let bare = text.strip_prefix(PREFIX).unwrap_or(text);
    Reference::try_from(bare).map_err(|e| Error::Reference { text: text.to_owned(), reason: e.to_string() })
}

/// The digest of what a reference leads to now; one request, if the registry lets everybody read.
///
/// # Errors
/// [`Error`].
pub fn digest(reference: &Reference, registries: &Registries) -> Result<Digest> {
    Session::new(reference, registries)?.digest(tag(reference))
}

/// Finds an image: reads its manifest and its configuration, no layer.
///
/// # Errors
/// [`Error`].
pub fn source(reference: &Reference, options: &Options) -> Result<Source> {
    let session = Session::new(reference, &options.registries)?;
    let top = session.manifest(tag(reference))?;
    let remote = Remote { session: &session, name: reference.whole(), top: &top };
    let found = sources::choose(&remote, &remote.index()?, None, &options.platform)?;

    let wanted: Vec<_> = found.layers.iter().map(|l| Wanted { digest: l.digest, size: l.size }).collect();
    let blobs = Blobs::new(session, wanted, &options.temp_dir, options.observer.clone())?;
    let layer = |(blob, layer): (usize, sources::FoundLayer)| Layer {
        name: layer.digest.to_string(),
        created_by: layer.created_by,
        diff_id: Some(layer.diff_id),
        size: layer.size,
        compressed: layer.compressed,
        tar: Box::new(RemoteLayer { blobs: blobs.clone(), blob, name: layer.digest.to_string() }),
    };
    let layers = found.layers.into_iter().enumerate().map(layer).collect();
    Ok(Source { image: Image { layers, config: found.config, manifest: found.manifest }, digest: top.digest, blobs })
}

/// What the manifest is asked for by: a digest, if there is one.
fn tag(reference: &Reference) -> &str {
    reference.digest().or(reference.tag()).unwrap_or("latest")
}

/// The documents of an image in a registry.
struct Remote<'a> {
    session: &'a Session,
    name: String,
    /// What the reference leads to.
    top: &'a Manifest,
}

/// What tells a manifest from an index.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
}

impl Remote<'_> {
    /// An index with nothing in it but what the reference leads to.
    fn index(&self) -> build::Result<ImageIndex> {
        let failed = |e: &dyn ToString| build::Error::document(&self.name, e.to_string());
        let Kind { media_type, manifests, layers } = serde_json::from_slice(&self.top.bytes).map_err(|e| failed(&e))?;
        // What is both means one thing to one reader and another to the next, with one digest.
        if manifests.is_some() && layers.is_some() {
            return Err(failed(&"it is an index and a manifest at once"));
        }
        if media_type.is_some_and(|said| said != self.top.media_type && is_manifest(&MediaType::from(&*self.top.media_type))) {
            return Err(failed(&format!("the registry says that it is {}, and it does not", self.top.media_type)));
        }
        let media_type = if manifests.is_some() { MediaType::ImageIndex } else { MediaType::ImageManifest };
        let digest = oci_spec::image::Digest::try_from(self.top.digest.to_string()).map_err(|e| failed(&e))?;
        let descriptor = Descriptor::new(media_type, self.top.bytes.len() as u64, digest);
        let index = ImageIndexBuilder::default().schema_version(oci_spec::image::SCHEMA_VERSION).manifests(vec![descriptor]);
        index.build().map_err(|e| failed(&e))
    }
}

/// Registries keep manifests and blobs apart.
fn is_manifest(media_type: &MediaType) -> bool {
    match media_type {
        MediaType::ImageManifest | MediaType::ImageIndex => true,
        MediaType::Other(other) => other.starts_with("application/vnd.docker.distribution.manifest."),
        _ => false,
    }
}

impl Documents for Remote<'_> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn document(&self, descriptor: &Descriptor) -> build::Result<Vec<u8>> {
        let digest = sources::digest_of(self, descriptor)?;
        let text = digest.to_string();
        if digest == self.top.digest {
            return Ok(self.top.bytes.clone());
        }
        let fetched = if is_manifest(descriptor.media_type()) {
            self.session.manifest(&text).map(|m| m.bytes)
        } else {
            self.session.document(&digest)
        };
        let bytes = fetched.map_err(|error| match error {
            Error::Build(error) => error,
            error => build::Error::Remote { name: text.clone(), source: Box::new(error) },
        })?;
        if bytes.len() as u64 != descriptor.size() {
            let reason = build::Mismatch::Size { found: bytes.len() as u64, wanted: descriptor.size() };
            return Err(build::Error::Mismatch { name: format!("blob {digest}"), reason });
        }
        Ok(bytes)
    }
}
