//! References, the names of images: `nginx:1.27` or `registry.example.org/team/app@sha256:…`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::Error;
use crate::reference;

/// Prefix of Docker Hub's names, which may be left out.
const HUB: &str = "docker.io/";
const LIBRARY: &str = "library/";

/// An OCI reference in its full form: registry, repository, and a tag or digest,
/// `docker.io/library/nginx:latest` for `nginx`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference(String);

impl Reference {
    /// The full form.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The short form, without the parts of Docker Hub's names that may be left out.
    pub fn familiar(&self) -> &str {
        match self.0.strip_prefix(HUB) {
            Some(rest) => rest
                .strip_prefix(LIBRARY)
                .filter(|name| !name.contains('/'))
                .unwrap_or(rest),
            None => &self.0,
        }
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parsed = reference::parse(text).map_err(|reason| Error::Reference {
            text: text.to_owned(),
            reason: reason.to_owned(),
        })?;
        Ok(Self(parsed.whole()))
    }
}

impl TryFrom<String> for Reference {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.0
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.familiar())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn full_and_familiar_forms() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let at = format!("nginx@{digest}");
        let cases = [
            ("nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            (
                "docker://nginx:1.27",
                "docker.io/library/nginx:1.27",
                "nginx:1.27",
            ),
            ("team/app", "docker.io/team/app:latest", "team/app:latest"),
            ("localhost/app:1", "localhost/app:1", "localhost/app:1"),
            (
                "registry:5000/a/b/c:T_1",
                "registry:5000/a/b/c:T_1",
                "registry:5000/a/b/c:T_1",
            ),
            (&at, &format!("docker.io/library/{at}"), &at),
        ];
        for (text, full, familiar) in cases {
            let reference: Reference = text.parse().unwrap();
            assert_eq!((reference.as_str(), reference.familiar()), (full, familiar));
            assert_eq!(familiar.parse::<Reference>().unwrap(), reference);
            assert_eq!(full.parse::<Reference>().unwrap(), reference);
        }
    }

    #[test]
    fn what_is_no_reference() {
        for text in [
            "",
            "../etc",
            "/etc/passwd",
            "Upper",
            "a b",
            "a:",
            "a@sha256:0",
            "docker://",
            "a//b",
            "a:b:c",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
