//! The signatures of an image that are beside it in its repository, as cosign puts them there: in
//! the manifest with the tag `sha256-DIGEST.sig`, or in manifests that refer to the image's.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use reqwest::StatusCode;

use super::error::{Error, Result};
use super::session::Session;
use crate::build::Digest;
use crate::trust::{self, Signature};

/// Media type of what was signed.
const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Annotation with the signature, in base64.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// Type of a manifest with signatures that refers to an image.
const ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
/// How many signatures of an image are looked at.
const MAX_SIGNATURES: usize = 64;
/// How many manifests that refer to an image are read.
const MAX_REFERRERS: usize = 64;
/// Longest document that was signed, bytes.
const MAX_PAYLOAD: u64 = 1 << 20;

impl Session {
    /// The signatures of a manifest; what they say is not checked.
    ///
    /// # Errors
    /// [`trust::Error::Fetch`] if they cannot be fetched.
    pub(super) fn signatures(&self, digest: &Digest) -> trust::Result<Vec<Signature>> {
        let fetched = self.by_tag(digest).and_then(|mut found| {
            match self.by_reference(digest, &mut found) {
                // Some registries refuse requests that they do not know. What was found may do.
                Err(error) if !found.is_empty() => {
                    tracing::info!("referrers of {digest}: {}", crate::error::chain(&error));
                }
                other => other?,
            }
            Ok(found)
        });
        fetched.map_err(|error| trust::Error::Fetch {
            digest: digest.to_string(),
            source: Box::new(error),
        })
    }

    fn by_tag(&self, digest: &Digest) -> Result<Vec<Signature>> {
        let mut found = Vec::new();
        let tag = format!("sha256-{}.sig", digest.hex());
        if let Some(manifest) = present(self.manifest(&tag))? {
            self.in_manifest(&manifest.bytes, None, &mut found)?;
        }
        Ok(found)
    }

    fn by_reference(&self, digest: &Digest, found: &mut Vec<Signature>) -> Result<()> {
        let bytes = match present(self.referrers(digest))? {
            Some(bytes) => bytes,
            // Registries that do not know them have the list under a tag.
            None => match present(self.manifest(&format!("sha256-{}", digest.hex())))? {
                Some(manifest) => manifest.bytes,
                None => return Ok(()),
            },
        };
        // Something else may have that tag.
        let Ok(index) = serde_json::from_slice::<ImageIndex>(&bytes) else {
            return Ok(());
        };
        let is_signature = |descriptor: &&Descriptor| {
            let kind = descriptor.artifact_type().as_ref();
            kind.is_some_and(|kind| kind.to_string() == ARTIFACT)
        };
        let referrers = index.manifests().iter().filter(is_signature);
        for descriptor in referrers.take(MAX_REFERRERS) {
            let manifest = self.manifest(descriptor.digest().as_ref())?;
            self.in_manifest(&manifest.bytes, Some(digest), found)?;
        }
        Ok(())
    }

    /// Adds the signatures that a manifest has. With `subject`, it must refer to that.
    fn in_manifest(
        &self,
        bytes: &[u8],
        subject: Option<&Digest>,
        found: &mut Vec<Signature>,
    ) -> Result<()> {
        let Ok(manifest) = serde_json::from_slice::<ImageManifest>(bytes) else {
            return Ok(());
        };
        let refers_to = |digest: &Digest| {
            let subject = manifest.subject().as_ref();
            subject.is_some_and(|s| s.digest().as_ref() == digest.to_string())
        };
        if subject.is_some_and(|digest| !refers_to(digest)) {
            return Ok(());
        }
        for layer in manifest.layers() {
            let annotations = layer.annotations().as_ref();
            let text = annotations.and_then(|annotations| annotations.get(SIGNATURE));
            let signature = text.and_then(|text| STANDARD.decode(text).ok());
            let digest = Digest::parse(layer.digest().as_ref());
            let is_payload = layer.media_type().to_string() == PAYLOAD;
            let (Some(signature), Some(digest), true) = (signature, digest, is_payload) else {
                continue;
            };
            if found.len() == MAX_SIGNATURES || layer.size() > MAX_PAYLOAD {
                continue;
            }
            found.push(Signature {
                payload: self.document(&digest)?,
                signature,
            });
        }
        Ok(())
    }
}

/// What there is, if it exists.
fn present<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Error::Status {
            status: StatusCode::NOT_FOUND,
            ..
        }) => Ok(None),
        Err(error) => Err(error),
    }
}
