//! Signatures of sigstore, as cosign and skopeo make them with a key: a small document that names
//! an image and the digest of its manifest ("simple signing"), and a signature of that document.

use oci_spec::distribution::Reference;
use serde::Deserialize;

use super::Find;
use super::error::Result;
use super::identity::SignedIdentity;
use super::key::PublicKey;
use crate::build::Digest;

/// `type` of the document.
const TYPE: &str = "cosign container image signature";

/// A signature of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// What was signed: JSON.
    pub payload: Vec<u8>,
    /// The signature.
    pub signature: Vec<u8>,
}

/// What was signed. `optional` may have anything.
#[derive(Debug, Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    identity: Identity,
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Identity {
    docker_reference: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Image {
    docker_manifest_digest: Digest,
}

/// A rule `sigstoreSigned` with keys.
#[derive(Debug, Clone)]
pub(super) struct Signed {
    /// One of these must have signed.
    pub(super) keys: Vec<PublicKey>,
    pub(super) identity: SignedIdentity,
}

impl Signed {
    /// Whether there is a signature of a manifest that counts: the name of its key, or why none
    /// does.
    ///
    /// # Errors
    /// Those of `find`.
    pub(super) fn check(
        &self,
        image: &Reference,
        digest: &Digest,
        find: Find<'_>,
    ) -> Result<Result<String, String>> {
        let found = find(digest)?;
        if found.is_empty() {
            return Ok(Err(format!(
                "it requires a signature, and {digest} has none"
            )));
        }
        let mut reasons = Vec::new();
        for signature in &found {
            match self.one(image, digest, signature) {
                Ok(key) => return Ok(Ok(key.to_owned())),
                Err(reason) => reasons.push(reason),
            }
        }
        reasons.sort();
        reasons.dedup();
        Ok(Err(reasons.join(", ")))
    }

    fn one(
        &self,
        image: &Reference,
        digest: &Digest,
        signature: &Signature,
    ) -> Result<&str, String> {
        let key = self
            .keys
            .iter()
            .find(|key| key.is_of(&signature.payload, &signature.signature))
            .ok_or("no signature is of a key that it names")?;
        // Only what was signed is parsed.
        let Payload { critical } = serde_json::from_slice(&signature.payload)
            .map_err(|error| format!("what was signed is not understood: {error}"))?;
        if critical.kind != TYPE {
            return Err(format!(
                "what was signed is {:?}, not an image",
                critical.kind
            ));
        }
        let signed = critical.image.docker_manifest_digest;
        if signed != *digest {
            return Err(format!("the signature is of another image, {signed}"));
        }
        let name = critical.identity.docker_reference;
        if !self.identity.accepts(image, &name) {
            return Err(format!("the signature is of the name {name:?}"));
        }
        Ok(&key.name)
    }
}
