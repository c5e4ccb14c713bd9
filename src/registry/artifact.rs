//! Image files as OCI artifacts in a registry: a pull returns exactly the bytes that were pushed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::build::{Digest, export};

/// `artifactType` of the manifest.
pub const ARTIFACT: &str = "application/vnd.lxcri-fs.image.v1";
/// Media type of the only layer, which is the file.
pub const FILE: &str = "application/vnd.lxcri-fs.bfc.v1";
/// Media type of the configuration, which says nothing.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// The configuration.
pub const EMPTY_CONFIG: &[u8] = b"{}";
/// Annotation with the root digest, `blake3:` and 64 hexadecimal digits.
const ROOT_DIGEST: &str = "org.lxcri-fs.root-digest";
/// Annotation with a name for the file.
const TITLE: &str = "org.opencontainers.image.title";

/// The file that a manifest describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// SHA-256 of the file.
    pub digest: Digest,
    /// Length of the file, bytes.
    pub size: u64,
    /// The image's root digest, `blake3:` and 64 hexadecimal digits, if the manifest has it.
    pub root_digest: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Blob,
    layers: Vec<Blob>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Blob {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

impl Artifact {
    /// The artifact that a manifest describes; `None` if it describes something else.
    pub fn of(manifest: &[u8]) -> Option<Self> {
        let manifest: Manifest = serde_json::from_slice(manifest).ok()?;
        let [file] = &manifest.layers[..] else {
            return None;
        };
        if file.media_type != FILE {
            return None;
        }
        let root_digest = manifest.annotations.get(ROOT_DIGEST).cloned();
        Some(Self {
            digest: Digest::parse(&file.digest)?,
            size: file.size,
            root_digest,
        })
    }

    /// Its manifest; `title` is a name for the file.
    pub fn manifest(&self, title: &str) -> Vec<u8> {
        let config = Blob {
            media_type: EMPTY.into(),
            digest: Digest::of(EMPTY_CONFIG).to_string(),
            size: EMPTY_CONFIG.len() as u64,
            annotations: BTreeMap::new(),
        };
        let annotations = BTreeMap::from([(TITLE.to_owned(), title.to_owned())]);
        let file = Blob {
            media_type: FILE.into(),
            digest: self.digest.to_string(),
            size: self.size,
            annotations,
        };
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(export::MANIFEST.into()),
            artifact_type: Some(ARTIFACT.into()),
            config,
            layers: vec![file],
            annotations: self
                .root_digest
                .iter()
                .map(|digest| (ROOT_DIGEST.to_owned(), digest.clone()))
                .collect(),
        };
        // Strings and numbers only.
        serde_json::to_vec(&manifest).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_says_what_it_was_made_of() {
        let artifact = Artifact {
            digest: Digest([7; 32]),
            size: 1 << 40,
            root_digest: Some("blake3:00".into()),
        };
        assert_eq!(Artifact::of(&artifact.manifest("x.bfc")), Some(artifact));
        for other in ["", "{}", r#"{"schemaVersion":2,"config":{},"layers":[]}"#] {
            assert_eq!(Artifact::of(other.as_bytes()), None);
        }
    }
}
