//! The JSON documents of OCI and Docker images, parsed in bounded memory, and the choice of an
//! image.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::build::digest::Digest;
use crate::build::error::{Error, Result};
use crate::text::printable;

/// Largest document that is read, bytes; registries have the same limit.
pub const MAX_DOCUMENT: u64 = 4 << 20;

/// How many layers an image may have: each is read on its own, and costs memory for as long as the
/// image is built.
const MAX_LAYERS: usize = 1024;

/// Parses a document.
pub(super) fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::document(name, e))
}

/// A platform, as `os/architecture[/variant]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// Operating system, in Go's words.
    pub os: String,
    /// Architecture, likewise.
    pub architecture: String,
    /// Variant of the architecture, such as `v7`; `None` takes any.
    pub variant: Option<String>,
    /// Whether somebody asked for it. An image for another one is then refused.
    pub is_asked: bool,
}

impl Platform {
    /// The platform that this program runs on.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "loongarch64" => "loong64",
            other => other,
        };
        Self {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: None,
            is_asked: false,
        }
    }

    /// How well an image for `other` runs here: `None` not at all, and a higher number is better.
    pub fn fit(&self, os: &str, architecture: &str, variant: Option<&str>) -> Option<u32> {
        if os != self.os || architecture != self.architecture {
            return None;
        }
        match (self.variant.as_deref(), variant) {
            (wanted, found) if wanted == found => Some(u32::MAX),
            // arm64 is v8 when nothing is said.
            (None, Some("v8")) | (Some("v8"), None) if self.architecture == "arm64" => {
                Some(u32::MAX - 1)
            }
            (Some(_), Some(_)) => None,
            (Some(_), None) => Some(0),
            // Of several variants, the highest.
            (None, Some(found)) => Some(found.trim_start_matches('v').parse().unwrap_or(0)),
            (None, None) => Some(u32::MAX),
        }
    }
}

impl FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<_> = text.split('/').collect();
        match parts[..] {
            [os, architecture] if !os.is_empty() && !architecture.is_empty() => Ok(Self {
                os: os.into(),
                architecture: architecture.into(),
                variant: None,
                is_asked: true,
            }),
            [os, architecture, variant]
                if !os.is_empty() && !architecture.is_empty() && !variant.is_empty() =>
            {
                Ok(Self {
                    os: os.into(),
                    architecture: architecture.into(),
                    variant: Some(variant.into()),
                    is_asked: true,
                })
            }
            _ => Err(
                "a platform is OS/ARCHITECTURE[/VARIANT], such as linux/amd64 or linux/arm/v7"
                    .into(),
            ),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if let Some(variant) = &self.variant {
            write!(f, "/{variant}")?;
        }
        Ok(())
    }
}

/// Whether an image's configuration is for a platform; one that says nothing is for any.
pub fn is_for(config: &[u8], platform: &Platform) -> bool {
    let Ok(Config {
        os: Some(os),
        architecture: Some(architecture),
        variant,
        ..
    }) = serde_json::from_slice(config)
    else {
        return true;
    };
    platform
        .fit(&os, &architecture, variant.as_deref())
        .is_some()
}

/// The fields of an image configuration that building needs; the rest is kept unchanged.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Config {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    rootfs: RootFs,
    history: Option<Vec<Option<History>>>,
}

#[derive(Debug, Default, Deserialize)]
struct RootFs {
    diff_ids: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct History {
    created_by: Option<String>,
    empty_layer: Option<bool>,
}

/// What Go makes of an entry that is null.
const NOTHING: History = History {
    created_by: None,
    empty_layer: None,
};

impl Config {
    /// Warns if the image is for another platform, or refuses it with `refuse`.
    pub(super) fn check_platform(&self, name: &str, wanted: &Platform, refuse: bool) -> Result<()> {
        let (Some(os), Some(architecture)) = (&self.os, &self.architecture) else {
            return Ok(());
        };
        if wanted
            .fit(os, architecture, self.variant.as_deref())
            .is_some()
        {
            return Ok(());
        }
        if refuse {
            let variant = self.variant.iter().map(|variant| format!("/{variant}"));
            let variant: String = variant.collect();
            return Err(Error::NoImage {
                name: name.to_owned(),
                reason: format!("it has no image for {wanted}"),
                hint: Some(format!(
                    "choose one with --platform: {}/{}{}",
                    printable(os.as_bytes()),
                    printable(architecture.as_bytes()),
                    printable(variant.as_bytes())
                )),
            });
        }
        tracing::warn!("{name} is an image for {os}/{architecture}, not for {wanted}");
        Ok(())
    }

    /// The diff_id and the `created_by` of each of `layers` layers.
    pub(super) fn layers(&self, name: &str, layers: usize) -> Result<Vec<(Digest, Vec<u8>)>> {
        if layers > MAX_LAYERS {
            return Err(Error::document(
                name,
                format!("the image has {layers} layers; at most {MAX_LAYERS} are supported"),
            ));
        }
        let ids = self.rootfs.diff_ids.as_deref().unwrap_or_default();
        if ids.len() != layers {
            return Err(Error::document(
                name,
                format!(
                    "the number of its diff_ids ({}) differs from the number of layers ({layers})",
                    ids.len()
                ),
            ));
        }
        let mut created_by = self
            .history
            .iter()
            .flatten()
            .map(|h| h.as_ref().unwrap_or(&NOTHING))
            .filter(|h| h.empty_layer != Some(true))
            .map(|h| h.created_by.clone().unwrap_or_default());
        ids.iter()
            .map(|id| {
                let digest = Digest::parse(id).ok_or_else(|| {
                    Error::document(name, format!("diff_id {id:?} is not a SHA-256 digest"))
                })?;
                Ok((digest, created_by.next().unwrap_or_default().into_bytes()))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn platforms() {
        let arm: Platform = "linux/arm".parse().unwrap();
        assert!(arm.fit("linux", "arm", Some("v7")) > arm.fit("linux", "arm", Some("v6")));
        assert_eq!(arm.fit("linux", "amd64", None), None);
        let v6: Platform = "linux/arm/v6".parse().unwrap();
        assert_eq!(v6.fit("linux", "arm", Some("v7")), None);
        assert!(v6.fit("linux", "arm", Some("v6")) > v6.fit("linux", "arm", None));
        let arm64: Platform = "linux/arm64".parse().unwrap();
        assert!(arm64.fit("linux", "arm64", Some("v8")).is_some());
        for bad in ["", "linux", "linux/", "/amd64", "linux/arm/", "a/b/c/d"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}
