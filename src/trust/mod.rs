//! Which images may be pulled: containers' policy.json, signatures of sigstore made with keys, and
//! programs that are asked.
//!
//! Everything fails closed: what a policy says and this module does not know refuses the image. A
//! [`Verdict`] says why an image was accepted, and under which rule; a store keeps it, so that a
//! container is not made of it under another rule without asking again.

mod error;
mod identity;
mod key;
mod policy;
mod signature;
mod verifiers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use oci_spec::distribution::Reference;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use error::{Error, Result};
pub use signature::Signature;

use crate::build::Digest;
use policy::{Policy, Requirement};

/// The system's policy.
const POLICY: &str = "/etc/containers/policy.json";
/// A user's policy, in their home; it comes first.
const USERS_POLICY: &str = ".config/containers/policy.json";
/// The directory of verifiers.
pub const VERIFIERS: &str = "/etc/lxcri-fs/verifiers";

/// Where it is said which images may be pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The policy.
    pub policy: PathBuf,
    /// Whether the policy must exist; without one, all images are accepted that no verifier
    /// refuses.
    pub required: bool,
    /// A directory of programs, each of which must accept an image; it need not exist.
    pub verifiers: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            policy: default_policy(),
            required: false,
            verifiers: VERIFIERS.into(),
        }
    }
}

/// Where podman and skopeo look for the policy.
pub fn default_policy() -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let own = home.map(|home| home.join(USERS_POLICY));
    own.filter(|path| path.exists())
        .unwrap_or_else(|| POLICY.into())
}

/// A manifest whose image may be pulled or not.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its length, bytes.
    pub size: u64,
}

/// Why an image was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The image's reference in the registry.
    pub reference: String,
    /// The manifests that were asked about: what the reference led to, and the image's own if that
    /// was an index.
    pub manifests: Vec<Digest>,
    /// The key with which it was signed, if the rule requires a signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The scope in the policy whose rule counted, such as `docker.io/library`; or `default`.
    pub rule: String,
    /// Identifies that rule, its keys and the verifiers.
    pub fingerprint: Digest,
    /// When it was asked.
    pub at: Timestamp,
}

/// The rules, loaded.
#[derive(Debug)]
pub struct Trust {
    settings: Settings,
    policy: Option<Policy>,
    verifiers: BTreeMap<PathBuf, Digest>,
}

/// Finds the signatures of a manifest.
pub type Find<'a> = &'a dyn Fn(&Digest) -> Result<Vec<Signature>>;

impl Trust {
    /// Reads the policy, and which verifiers there are.
    ///
    /// # Errors
    /// [`Error::Policy`], [`Error::Io`], [`Error::TooMany`].
    pub fn load(settings: &Settings) -> Result<Self> {
        Ok(Self {
            policy: Policy::load(&settings.policy, settings.required)?,
            verifiers: verifiers::find(&settings.verifiers)?,
            settings: settings.clone(),
        })
    }

    /// Decides about an image. `manifests` are what the reference leads to and, if that is an
    /// index, the manifest that was chosen of it: a signature of either is one of the image.
    ///
    /// # Errors
    /// [`Error`], whenever it is not accepted.
    pub fn judge(
        &self,
        reference: &Reference,
        manifests: &[Manifest],
        find: Find<'_>,
    ) -> Result<Verdict> {
        self.may_be_accepted(reference)?;
        let (rule, requirements) = self.rule(reference);
        let mut key = None;
        for requirement in requirements {
            let Requirement::Sigstore(signed) = requirement else {
                continue;
            };
            let mut reasons = Vec::new();
            let mut found = None;
            for manifest in manifests {
                match signed.check(reference, &manifest.digest, find)? {
                    Ok(name) => {
                        found = Some(name);
                        break;
                    }
                    Err(reason) => reasons.push(reason),
                }
            }
            if found.is_none() {
                return Err(self.refused(reference, reasons.join("; ")));
            }
            key = key.or(found);
        }
        if let Some(manifest) = manifests.first() {
            for program in self.verifiers.keys() {
                verifiers::ask(program, reference, manifest)?;
            }
        }
        Ok(Verdict {
            reference: reference.whole(),
            manifests: manifests.iter().map(|manifest| manifest.digest).collect(),
            key,
            fingerprint: self.fingerprint(&rule, requirements),
            rule,
            at: Timestamp::now(),
        })
    }

    /// Whether the rule for an image accepts any at all.
    ///
    /// # Errors
    /// [`Error::Refused`] if it does not.
    pub fn may_be_accepted(&self, reference: &Reference) -> Result<()> {
        let (_, requirements) = self.rule(reference);
        for requirement in requirements {
            let reason = match requirement {
                Requirement::Reject => "it rejects the image",
                Requirement::Unknown(what) => what,
                Requirement::InsecureAcceptAnything | Requirement::Sigstore(_) => continue,
            };
            return Err(self.refused(reference, reason.to_owned()));
        }
        Ok(())
    }

    fn refused(&self, reference: &Reference, reason: String) -> Error {
        Error::Refused {
            reference: reference.whole(),
            rule: self.rule(reference).0,
            policy: self.settings.policy.clone(),
            reason,
        }
    }

    /// Whether nothing has changed since a verdict that would count for its image.
    pub fn is_current(&self, verdict: &Verdict, reference: &Reference) -> bool {
        let (rule, requirements) = self.rule(reference);
        self.fingerprint(&rule, requirements) == verdict.fingerprint
    }

    /// The rule for an image: its scope, and what it requires.
    fn rule(&self, reference: &Reference) -> (String, &[Requirement]) {
        match &self.policy {
            Some(policy) => policy.rule(reference),
            None => ("none".to_owned(), &[]),
        }
    }

    /// The digest of everything that a verdict depends on, but for the image.
    fn fingerprint(&self, rule: &str, requirements: &[Requirement]) -> Digest {
        let mut hash = Sha256::new();
        let mut add = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        add(rule.as_bytes());
        for requirement in requirements {
            add(&requirement.bytes());
        }
        for (program, digest) in &self.verifiers {
            add(program.as_os_str().as_encoded_bytes());
            add(&digest.0);
        }
        Digest(hash.finalize().into())
    }
}

/// The digest of a file's contents.
fn digest_of(path: &Path, limit: u64) -> Result<Digest> {
    Ok(Digest::of(&crate::sys::files::read(path, limit)?))
}
