//! containers' policy.json, which podman and skopeo read too, as containers-policy.json(5)
//! describes it.

use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oci_spec::distribution::Reference;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::error::{Error, Result};
use super::identity::SignedIdentity;
use super::key::PublicKey;
use super::signature::Signed;
use crate::sys::files::read;

/// Longest policy and longest key, bytes.
const MAX_FILE: u64 = 1 << 20;
/// The name of the rule for images that no scope matches.
const DEFAULT: &str = "default";

/// The policy for images in registries.
#[derive(Debug)]
pub(super) struct Policy {
    default: Vec<Requirement>,
    scopes: BTreeMap<String, Vec<Requirement>>,
}

/// What a rule requires.
#[derive(Debug, Clone)]
pub(super) enum Requirement {
    /// Nothing.
    InsecureAcceptAnything,
    /// What no image has.
    Reject,
    /// A signature with a key.
    Sigstore(Signed),
    /// Something that lxcri-fs cannot check, in words: no image has it.
    Unknown(String),
}

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    default: Vec<Said>,
    #[serde(default, deserialize_with = "unique")]
    transports: BTreeMap<String, Scopes>,
}

#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct Scopes(#[serde(deserialize_with = "unique")] BTreeMap<String, Vec<Said>>);

/// A requirement as it is written. Of kinds that cannot be checked, all is accepted, and refuses.
#[derive(Debug, Deserialize)]
#[serde(tag = "type")]
enum Said {
    #[serde(rename = "insecureAcceptAnything")]
    InsecureAcceptAnything {},
    #[serde(rename = "reject")]
    Reject {},
    #[serde(rename = "signedBy")]
    SignedBy {},
    #[serde(rename = "signedBaseLayer")]
    SignedBaseLayer {},
    #[serde(rename = "sigstoreSigned")]
    Sigstore(Box<SaidSigstore>),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct SaidSigstore {
    key_path: Option<PathBuf>,
    key_paths: Option<Vec<PathBuf>>,
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    fulcio: Option<serde_json::Value>,
    pki: Option<serde_json::Value>,
    rekor_public_key_path: Option<serde_json::Value>,
    rekor_public_key_paths: Option<serde_json::Value>,
    rekor_public_key_data: Option<serde_json::Value>,
    rekor_public_key_datas: Option<serde_json::Value>,
    signed_identity: SignedIdentity,
}

/// A map in which each key is there once: of two, one would not count.
fn unique<'de, D, T>(from: D) -> std::result::Result<BTreeMap<String, T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Unique<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Unique<T> {
        type Value = BTreeMap<String, T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(
            self,
            mut entries: A,
        ) -> std::result::Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some((key, value)) = entries.next_entry::<String, T>()? {
                if map.insert(key.clone(), value).is_some() {
                    return Err(A::Error::custom(format!("{key:?} is there twice")));
                }
            }
            Ok(map)
        }
    }
    from.deserialize_map(Unique(PhantomData))
}

impl Policy {
    /// Reads the policy; `None` if it does not exist and need not.
    pub(super) fn load(path: &Path, required: bool) -> Result<Option<Self>> {
        match read(path, MAX_FILE) {
            Err(error) if error.kind() == ErrorKind::NotFound && !required => Ok(None),
            bytes => Self::parse(&bytes?, path).map(Some),
        }
    }

    fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let wrong = |reason: String| Error::Policy {
            path: path.to_owned(),
            reason,
        };
        let mut file: File =
            serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        let rule = |said: Vec<Said>| {
            if said.is_empty() {
                return Err(wrong("a rule has no requirement".into()));
            }
            let requirements = said.into_iter().map(Requirement::of);
            requirements.collect::<Result<Vec<_>, _>>().map_err(wrong)
        };
        let scopes = file.transports.remove("docker");
        let scopes = scopes.map_or_else(BTreeMap::new, |Scopes(scopes)| scopes);
        Ok(Self {
            default: rule(file.default)?,
            scopes: scopes
                .into_iter()
                .map(|(scope, said)| Ok((scope, rule(said)?)))
                .collect::<Result<_>>()?,
        })
    }

    /// The rule for an image: its scope, and what it requires.
    pub(super) fn rule(&self, reference: &Reference) -> (String, &[Requirement]) {
        for scope in scopes(reference) {
            if let Some(requirements) = self.scopes.get(&scope) {
                let scope = if scope.is_empty() {
                    "docker".to_owned()
                } else {
                    scope
                };
                return (scope, requirements);
            }
        }
        (DEFAULT.to_owned(), &self.default)
    }
}

/// The scopes that an image is in, the narrowest first: the image itself, its repository, those
/// that contain it, the registry, domains that contain that, and all.
fn scopes(reference: &Reference) -> Vec<String> {
    let mut name = format!("{}/{}", reference.registry(), reference.repository());
    let end = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => format!("@{digest}"),
        (None, tag) => format!(":{}", tag.unwrap_or("latest")),
    };
    let mut scopes = vec![format!("{name}{end}")];
    loop {
        scopes.push(name.clone());
        match name.rfind('/') {
            Some(slash) => name.truncate(slash),
            None => break,
        }
    }
    let mut domain = name.split(':').next().unwrap_or(&name);
    while let Some((_, rest)) = domain.split_once('.') {
        scopes.push(format!("*.{rest}"));
        domain = rest;
    }
    scopes.push(String::new());
    scopes
}

impl Requirement {
    /// What is written, with its keys read.
    fn of(said: Said) -> Result<Self, String> {
        let unknown = |what: &str| Ok(Self::Unknown(what.to_owned()));
        let said = match said {
            Said::InsecureAcceptAnything {} => return Ok(Self::InsecureAcceptAnything),
            Said::Reject {} => return Ok(Self::Reject),
            Said::SignedBy {} => {
                return unknown(
                    "it requires an OpenPGP signature (signedBy), which lxcri-fs does not check",
                );
            }
            Said::SignedBaseLayer {} => {
                return unknown("lxcri-fs does not know requirements of base layers");
            }
            Said::Sigstore(said) => said,
        };
        if said.fulcio.is_some() || said.pki.is_some() {
            return unknown(
                "it requires a certificate (fulcio or pki), and lxcri-fs checks keys only",
            );
        }
        let rekor = [
            &said.rekor_public_key_path,
            &said.rekor_public_key_paths,
            &said.rekor_public_key_data,
            &said.rekor_public_key_datas,
        ];
        if rekor.into_iter().any(Option::is_some) {
            return unknown("it requires an entry in Rekor's log, which lxcri-fs does not check");
        }
        let wrong = || "sigstoreSigned needs one of keyPath, keyPaths, keyData and keyDatas";
        let (paths, datas) = match (said.key_path, said.key_paths, said.key_data, said.key_datas) {
            (Some(path), None, None, None) => (vec![path], Vec::new()),
            (None, Some(paths), None, None) => (paths, Vec::new()),
            (None, None, Some(data), None) => (Vec::new(), vec![data]),
            (None, None, None, Some(datas)) => (Vec::new(), datas),
            _ => return Err(wrong().to_owned()),
        };
        let mut keys = Vec::new();
        for path in paths {
            let name = path.display().to_string();
            let pem = read(&path, MAX_FILE).map_err(|error| crate::error::chain(&error))?;
            keys.push(PublicKey::parse(&pem, name)?);
        }
        for (at, data) in datas.into_iter().enumerate() {
            let pem = STANDARD.decode(data).map_err(|_| "keyData is not base64")?;
            keys.push(PublicKey::parse(&pem, format!("keyData {}", at + 1))?);
        }
        if keys.is_empty() {
            return Err(wrong().to_owned());
        }
        Ok(Self::Sigstore(Signed {
            keys,
            identity: said.signed_identity,
        }))
    }

    /// What distinguishes it from others, its keys included.
    pub(super) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::InsecureAcceptAnything => b"accept".to_vec(),
            Self::Reject => b"reject".to_vec(),
            Self::Unknown(what) => what.clone().into_bytes(),
            Self::Sigstore(signed) => {
                let mut bytes = format!("signed {:?}", signed.identity).into_bytes();
                for key in &signed.keys {
                    bytes.extend_from_slice(&(key.bytes().len() as u64).to_le_bytes());
                    bytes.extend_from_slice(key.bytes());
                }
                bytes
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::reference;

    fn parse(text: &str) -> Result<Policy> {
        Policy::parse(text.as_bytes(), "/p.json".as_ref())
    }

    #[test]
    fn the_narrowest_scope_counts() {
        let accept = r#"[{"type":"insecureAcceptAnything"}]"#;
        let names = [
            "docker.io/library/nginx:1",
            "docker.io/library/nginx",
            "docker.io/library",
            "quay.io:5000",
            "quay.io",
            "*.example.com",
            "",
        ];
        let scopes: Vec<_> = names
            .iter()
            .map(|name| format!("{name:?}:{accept}"))
            .collect();
        let text = format!(
            r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{{}}},"dir":{{}}}}}}"#,
            scopes.join(",")
        );
        let policy = parse(&text).unwrap();
        let digest = format!("nginx@sha256:{}", "0".repeat(64));
        for (image, scope) in [
            ("nginx:1", "docker.io/library/nginx:1"),
            ("nginx:2", "docker.io/library/nginx"),
            (&digest, "docker.io/library/nginx"),
            ("debian", "docker.io/library"),
            ("team/app", "docker"),
            ("quay.io:5000/a/b/c", "quay.io:5000"),
            ("quay.io/a/b/c", "quay.io"),
            ("x.y.example.com:5000/a", "*.example.com"),
            ("example.com/a", "docker"),
        ] {
            let (rule, _) = policy.rule(&reference::parse(image).unwrap());
            assert_eq!(rule, scope, "{image}");
        }
        let policy = parse(r#"{"default":[{"type":"reject"}]}"#).unwrap();
        let (rule, requirements) = policy.rule(&reference::parse("nginx").unwrap());
        assert!(rule == "default" && matches!(requirements, [Requirement::Reject]));
    }

    #[test]
    fn what_is_not_understood_is_an_error_or_refuses() {
        let reject = r#"[{"type":"reject"}]"#;
        for text in [
            "",
            "{}",
            r#"{"default":[]}"#,
            r#"{"default":[{"type":"acceptAnything"}]}"#,
            r#"{"default":[{"type":"reject"}],"more":1}"#,
            &format!(r#"{{"default":{reject},"transports":{{"docker":{{"":[]}}}}}}"#),
            &format!(
                r#"{{"default":{reject},"transports":{{"docker":{{"a":{reject},"a":{reject}}}}}}}"#
            ),
            &format!(r#"{{"default":{reject},"default":{reject}}}"#),
            r#"{"default":[{"type":"sigstoreSigned"}]}"#,
            r#"{"default":[{"type":"sigstoreSigned","keyPath":"/no/key"}]}"#,
            r#"{"default":[{"type":"sigstoreSigned","keyDatas":[]}]}"#,
            r#"{"default":[{"type":"sigstoreSigned","keyData":"eA=="}]}"#,
            r#"{"default":[{"type":"sigstoreSigned","keyData":"eA==","key":1}]}"#,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        for requirement in [
            r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}"#,
            r#"{"type":"signedBaseLayer","baseLayerIdentity":{"type":"matchExact"}}"#,
            r#"{"type":"sigstoreSigned","fulcio":{}}"#,
            r#"{"type":"sigstoreSigned","keyPath":"/k","rekorPublicKeyPath":"/r"}"#,
        ] {
            let policy = parse(&format!(r#"{{"default":[{requirement}]}}"#)).unwrap();
            assert!(
                matches!(policy.default[..], [Requirement::Unknown(_)]),
                "{requirement}"
            );
        }
    }
}
