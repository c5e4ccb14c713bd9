//! Whose signature counts for an image: that of the same name, or as the policy says.

use oci_spec::distribution::Reference;
use serde::Deserialize;

use crate::reference;

/// `signedIdentity` of a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", deny_unknown_fields, rename_all_fields = "camelCase")]
pub(super) enum SignedIdentity {
    /// The same repository and tag; for an image that is named by digest, the same repository.
    #[default]
    #[serde(rename = "matchRepoDigestOrExact")]
    RepositoryOrExact,
    /// The same repository and tag or digest.
    #[serde(rename = "matchExact")]
    Exact,
    /// The same repository.
    #[serde(rename = "matchRepository")]
    Repository,
    /// This name.
    #[serde(rename = "exactReference")]
    ExactReference {
        /// With its tag or digest.
        docker_reference: String,
    },
    /// This repository.
    #[serde(rename = "exactRepository")]
    ExactRepository {
        /// Without tag and digest.
        docker_repository: String,
    },
    /// As [`Self::RepositoryOrExact`], with another prefix.
    #[serde(rename = "remapIdentity")]
    Remap {
        /// What names of images begin with.
        prefix: String,
        /// What the names that were signed have in its place.
        signed_prefix: String,
    },
}

/// A name, and what comes after it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    /// `HOST/REPOSITORY`.
    name: String,
    /// `:TAG`, `@DIGEST`, both, or nothing.
    end: String,
}

impl Named {
    fn parse(text: &str) -> Option<Self> {
        let parsed = reference::parse(text).ok()?;
        let digest = parsed.digest().map(|digest| format!("@{digest}"));
        let without = text.split('@').next().unwrap_or(text);
        let has_tag = without
            .rsplit('/')
            .next()
            .is_some_and(|last| last.contains(':'));
        // A reference without either gets the tag latest, which was not signed.
        let tag = parsed
            .tag()
            .filter(|_| has_tag)
            .map(|tag| format!(":{tag}"));
        Some(Self {
            name: format!("{}/{}", parsed.registry(), parsed.repository()),
            end: [tag, digest].into_iter().flatten().collect(),
        })
    }

    fn of(reference: &Reference) -> Self {
        let end = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => format!("@{digest}"),
            (None, tag) => format!(":{}", tag.unwrap_or("latest")),
        };
        Self {
            name: format!("{}/{}", reference.registry(), reference.repository()),
            end,
        }
    }
}

impl SignedIdentity {
    /// Whether a signature that names `signed` counts for an image.
    pub(super) fn accepts(&self, image: &Reference, signed: &str) -> bool {
        let (image, Some(signed)) = (Named::of(image), Named::parse(signed)) else {
            return false;
        };
        let same = |image: &Named| {
            if image.end.starts_with('@') {
                image.name == signed.name
            } else {
                *image == signed
            }
        };
        match self {
            Self::RepositoryOrExact => same(&image),
            Self::Exact => image == signed,
            Self::Repository => image.name == signed.name,
            Self::ExactReference { docker_reference } => {
                Named::parse(docker_reference).is_some_and(|n| !n.end.is_empty() && n == signed)
            }
            Self::ExactRepository { docker_repository } => Named::parse(docker_repository)
                .is_some_and(|n| n.end.is_empty() && n.name == signed.name),
            Self::Remap {
                prefix,
                signed_prefix,
            } => {
                let rest = image.name.strip_prefix(prefix.as_str());
                let rest = rest.filter(|rest| rest.is_empty() || rest.starts_with('/'));
                match rest {
                    Some(rest) => same(&Named {
                        name: format!("{signed_prefix}{rest}"),
                        end: image.end.clone(),
                    }),
                    None => same(&image),
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn signatures_count_for_the_names_that_the_rule_allows() {
        let parse = |json: &str| serde_json::from_str::<SignedIdentity>(json).unwrap();
        let digest = format!("sha256:{}", "0".repeat(64));
        let by_digest = format!("quay.io/a/b@{digest}");
        let remap = r#"{"type":"remapIdentity","prefix":"mirror.example/hub",
                        "signedPrefix":"docker.io/library"}"#;
        let exact = r#"{"type":"exactReference","dockerReference":"quay.io/a/c:1"}"#;
        let repository = r#"{"type":"exactRepository","dockerRepository":"quay.io/a/c"}"#;
        for (rule, image, signed, accepted) in [
            (
                r#"{"type":"matchRepoDigestOrExact"}"#,
                "quay.io/a/b:1",
                "quay.io/a/b:1",
                true,
            ),
            (
                r#"{"type":"matchRepoDigestOrExact"}"#,
                "quay.io/a/b:1",
                "quay.io/a/b:2",
                false,
            ),
            (
                r#"{"type":"matchRepoDigestOrExact"}"#,
                "quay.io/a/b:1",
                "quay.io/a/b",
                false,
            ),
            (
                r#"{"type":"matchRepoDigestOrExact"}"#,
                "quay.io/a/b",
                "quay.io/a/b",
                false,
            ),
            (
                r#"{"type":"matchRepoDigestOrExact"}"#,
                &by_digest,
                "quay.io/a/b:7",
                true,
            ),
            (
                r#"{"type":"matchRepoDigestOrExact"}"#,
                &by_digest,
                "quay.io/a/x:7",
                false,
            ),
            (
                r#"{"type":"matchExact"}"#,
                "nginx:1",
                "docker.io/library/nginx:1",
                true,
            ),
            (
                r#"{"type":"matchExact"}"#,
                &by_digest,
                "quay.io/a/b:7",
                false,
            ),
            (
                r#"{"type":"matchRepository"}"#,
                "quay.io/a/b:1",
                "quay.io/a/b",
                true,
            ),
            (
                r#"{"type":"matchRepository"}"#,
                "quay.io:5000/a/b:1",
                "quay.io/a/b",
                false,
            ),
            (exact, "quay.io/a/b:1", "quay.io/a/c:1", true),
            (exact, "quay.io/a/b:1", "quay.io/a/b:1", false),
            (repository, "quay.io/a/b:1", "quay.io/a/c:9", true),
            (
                remap,
                "mirror.example/hub/nginx:1",
                "docker.io/library/nginx:1",
                true,
            ),
            (
                remap,
                "mirror.example/hubx/nginx:1",
                "docker.io/library/nginx:1",
                false,
            ),
            (
                remap,
                "mirror.example/hubx/nginx:1",
                "mirror.example/hubx/nginx:1",
                true,
            ),
            (
                remap,
                "mirror.example/hub/nginx:1",
                "mirror.example/hub/nginx:1",
                false,
            ),
        ] {
            let image = reference::parse(image).unwrap();
            assert_eq!(
                parse(rule).accepts(&image, signed),
                accepted,
                "{rule} {image} {signed}"
            );
        }
        for wrong in [
            r#"{"type":"matchAll"}"#,
            r#"{"type":"exactReference"}"#,
            "{}",
        ] {
            assert!(
                serde_json::from_str::<SignedIdentity>(wrong).is_err(),
                "{wrong}"
            );
        }
    }
}
