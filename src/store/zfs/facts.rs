//! Facts of an image as user properties of its dataset.

use crate::store::Reference;
use crate::store::facts::Facts;
use crate::zfs::{Properties, PropertySource};

/// Longest list of layers that is kept as a property; a longer one is read from the image.
const MAX_VALUE: usize = 8000;

pub(super) const REFERENCES: &str = "org.lxcri-fs:ref";
pub(super) const ROOT_DIGEST: &str = "org.lxcri-fs:root-digest";
pub(super) const MANIFEST_DIGEST: &str = "org.lxcri-fs:manifest-digest";
pub(super) const CREATED: &str = "org.lxcri-fs:created";
pub(super) const UNNAMED: &str = "org.lxcri-fs:unnamed";
pub(super) const UPPERS: &str = "org.lxcri-fs:uppers";
pub(super) const LAYERS: &str = "org.lxcri-fs:layers";
pub(super) const COMPRESSION: &str = "org.lxcri-fs:compression";
pub(super) const ENCRYPTION: &str = "org.lxcri-fs:encryption";
pub(super) const SIZE: &str = "org.lxcri-fs:size";
pub(super) const CHECKED: &str = "org.lxcri-fs:checked";
pub(super) const TRUST: &str = "org.lxcri-fs:trust";
/// The properties that are read from an image's dataset.
pub(super) const ASKED: [&str; 16] = [
    REFERENCES,
    ROOT_DIGEST,
    MANIFEST_DIGEST,
    CREATED,
    UNNAMED,
    UPPERS,
    LAYERS,
    COMPRESSION,
    ENCRYPTION,
    SIZE,
    CHECKED,
    TRUST,
    "origin",
    "mountpoint",
    "mounted",
    "canmount",
];
/// Stands for no value: some versions do not allow empty properties.
pub(super) const NONE: &str = "-";

/// A property that is set on the dataset itself, not inherited.
pub(super) fn own<'a>(properties: &'a Properties, name: &str) -> Option<&'a str> {
    let property = properties.property(name)?;
    matches!(
        property.source,
        PropertySource::Local | PropertySource::Received
    )
    .then_some(property.value.as_str())
}

pub(super) fn references(value: &str) -> Vec<Reference> {
    value
        .split(' ')
        .filter_map(|text| text.parse().ok())
        .collect()
}

/// Why an image was accepted: as many of the last pulls as fit.
fn trust(facts: &Facts) -> String {
    let kept = (0..=facts.trust.len()).rev();
    let mut texts = kept.map(|n| serde_json::json!(facts.trust[..n]).to_string());
    texts
        .find(|text| text.len() <= MAX_VALUE)
        .unwrap_or_default()
}

pub(super) fn properties_of(facts: &Facts) -> Vec<(&'static str, String)> {
    let join = |texts: Vec<String>, by: &str| {
        if texts.is_empty() {
            NONE.to_owned()
        } else {
            texts.join(by)
        }
    };
    let layers = join(facts.layers.iter().map(|d| d.hex()).collect(), ",");
    vec![
        (
            REFERENCES,
            join(
                facts.refs.iter().map(|r| r.as_str().to_owned()).collect(),
                " ",
            ),
        ),
        (ROOT_DIGEST, facts.root_digest.clone()),
        (
            MANIFEST_DIGEST,
            facts
                .manifest_digest
                .map_or_else(|| NONE.to_owned(), |d| d.to_string()),
        ),
        (CREATED, facts.created.to_string()),
        (
            UNNAMED,
            facts
                .unnamed
                .map_or_else(|| NONE.to_owned(), |at| at.to_string()),
        ),
        // Paths may have blanks and commas.
        (UPPERS, serde_json::json!(facts.uppers).to_string()),
        (
            LAYERS,
            if layers.len() > MAX_VALUE {
                NONE.to_owned()
            } else {
                layers
            },
        ),
        (COMPRESSION, facts.compression.clone()),
        (ENCRYPTION, facts.encryption.clone()),
        (SIZE, facts.size.to_string()),
        (
            CHECKED,
            facts.checked.clone().unwrap_or_else(|| NONE.to_owned()),
        ),
        (TRUST, trust(facts)),
    ]
}

/// Parses the facts from properties; `None` if one is missing or wrong.
pub(super) fn parse(properties: &Properties) -> Option<Facts> {
    let manifest = own(properties, MANIFEST_DIGEST)?;
    let layers = own(properties, LAYERS)?;
    Some(Facts {
        refs: references(own(properties, REFERENCES)?),
        root_digest: own(properties, ROOT_DIGEST)
            .filter(|d| d.len() == 64 && d.bytes().all(|b| b.is_ascii_hexdigit()))?
            .to_owned(),
        manifest_digest: if manifest == NONE {
            None
        } else {
            Some(crate::build::Digest::parse(manifest)?)
        },
        created: own(properties, CREATED)?.parse().ok()?,
        // Earlier versions did not record it.
        unnamed: own(properties, UNNAMED).and_then(|at| at.parse().ok()),
        uppers: own(properties, UPPERS)
            .and_then(|list| serde_json::from_str(list).ok())
            .unwrap_or_default(),
        layers: layers
            .split(',')
            .map(crate::build::Digest::parse_hex)
            .collect::<Option<_>>()?,
        compression: own(properties, COMPRESSION)?.to_owned(),
        encryption: own(properties, ENCRYPTION)?.to_owned(),
        size: own(properties, SIZE)?.parse().ok()?,
        parent: None,
        checked: own(properties, CHECKED)
            .filter(|stamp| *stamp != NONE)
            .map(str::to_owned),
        trust: own(properties, TRUST)
            .and_then(|list| serde_json::from_str(list).ok())
            .unwrap_or_default(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::build::Digest;
    use crate::trust::Verdict;

    #[test]
    fn properties_say_the_same_and_keep_the_latest_verdicts_that_fit() {
        let verdict = |number: usize, length: usize| Verdict {
            reference: format!("registry.example.org/{}:{number}", "a".repeat(length)),
            manifests: vec![Digest([7; 32]), Digest([8; 32])],
            key: number
                .is_multiple_of(2)
                .then(|| "/etc/keys/\"own\".pub".to_owned()),
            rule: "registry.example.org".to_owned(),
            fingerprint: Digest([9; 32]),
            at: Timestamp::UNIX_EPOCH,
        };
        let facts = |trust: Vec<Verdict>| Facts {
            refs: vec!["app:1".parse().unwrap()],
            root_digest: "0".repeat(64),
            manifest_digest: Some(Digest([1; 32])),
            created: Timestamp::UNIX_EPOCH,
            layers: vec![Digest([2; 32])],
            unnamed: None,
            uppers: Vec::new(),
            compression: "zstd".to_owned(),
            encryption: "none".to_owned(),
            size: 1,
            parent: None,
            checked: None,
            trust,
        };
        for (count, length, kept) in [(0, 10, 0), (1, 10, 1), (8, 10, 8), (8, 2000, 3)] {
            let all: Vec<_> = (0..count).map(|number| verdict(number, length)).collect();
            let properties = properties_of(&facts(all.clone()));
            assert!(properties.iter().all(|(_, value)| value.len() <= MAX_VALUE));
            let read = parse(&properties.into_iter().collect()).unwrap();
            assert_eq!(read, facts(all[..kept].to_vec()), "{count} {length}");
        }
    }
}
