//! Public keys, and signatures made with them.

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use webpki::{Error as WebpkiError, RawPublicKeyEntity, ring};

/// What cosign and skopeo sign with: ECDSA on P-256 or P-384, Ed25519, and RSA.
const ALGORITHMS: [&dyn SignatureVerificationAlgorithm; 5] = [
    ring::ECDSA_P256_SHA256,
    ring::ECDSA_P384_SHA384,
    ring::ED25519,
    ring::RSA_PKCS1_2048_8192_SHA256,
    ring::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
];

/// A public key.
#[derive(Debug, Clone)]
pub(super) struct PublicKey {
    /// DER.
    info: SubjectPublicKeyInfoDer<'static>,
    /// Where it is from: a path, or `keyData` and a number.
    pub(super) name: String,
}

impl PublicKey {
    /// Reads a key in PEM.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(pem: &[u8], name: String) -> Result<Self, String> {
        let info = SubjectPublicKeyInfoDer::from_pem_slice(pem)
            .map_err(|_| format!("{name} is not a public key in PEM (BEGIN PUBLIC KEY)"))?;
        let key = Self { info, name };
        // A key that could verify nothing is a mistake to be told now.
        match key.verify(b"", b"") {
            Verified::UnknownKey => Err(format!(
                "{} is a key of a kind that lxcri-fs does not know: it knows ECDSA (P-256, \
                 P-384), Ed25519, and RSA with 2048 bits or more",
                key.name
            )),
            _ => Ok(key),
        }
    }

    /// Whether `signature` is one of `message` with this key.
    pub(super) fn is_of(&self, message: &[u8], signature: &[u8]) -> bool {
        self.verify(message, signature) == Verified::Yes
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> Verified {
        let Ok(key) = RawPublicKeyEntity::try_from(&self.info) else {
            return Verified::UnknownKey;
        };
        let mut known = false;
        for algorithm in ALGORITHMS {
            match key.verify_signature(algorithm, message, signature) {
                Ok(()) => return Verified::Yes,
                Err(WebpkiError::InvalidSignatureForPublicKey) => known = true,
                Err(_) => {}
            }
        }
        if known {
            Verified::No
        } else {
            Verified::UnknownKey
        }
    }

    /// What identifies it.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.info
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verified {
    Yes,
    No,
    UnknownKey,
}
