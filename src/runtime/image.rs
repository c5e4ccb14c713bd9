//! An image's OCI configuration and manifest, checked as far as a container needs it.

use bfc::format::{S_IFMT, S_IFREG};
use oci_spec::image::{ImageConfiguration, ImageManifest};
use serde_json::{Map, Value, json};

use super::error::{Error, Result};
use super::rootpath;
use super::user::{self, User};
use crate::build::{Digest, Platform};
use crate::fs::Rootfs;
use crate::text::hex;

/// Longest passwd or group that is read, bytes.
const MAX_ACCOUNTS: u64 = 4 << 20;
/// Longest environment, arguments and labels of a configuration, bytes: the limit of execve(2).
const MAX_WORDS: usize = 2 << 20;

/// An image as its container sees it.
#[derive(Debug)]
pub struct ContainerImage<'a> {
    rootfs: &'a Rootfs,
    /// The configuration; an empty one for an image that has none.
    pub config: ImageConfiguration,
    /// `blake3:` and the root digest; `None` for a plain v1 image.
    pub root_digest: Option<String>,
}

/// A document as Go's programs read it: null is as if it were not there, and in a list or in a map
/// it is the type's empty value.
fn without_nulls(document: Value) -> Value {
    match document {
        Value::Array(list) => list
            .into_iter()
            .map(|value| match value {
                Value::Null => json!(""),
                value => without_nulls(value),
            })
            .collect(),
        Value::Object(map) => map
            .into_iter()
            .filter_map(|(key, value)| match (key.as_str(), value) {
                (_, Value::Null) => None,
                ("history", Value::Array(list)) => {
                    let given = list.into_iter().filter(|entry| !entry.is_null());
                    Some((key, given.map(without_nulls).collect()))
                }
                ("Labels", Value::Object(labels)) => Some((key, filled(labels, &json!("")))),
                ("Volumes" | "ExposedPorts", Value::Object(set)) => {
                    Some((key, filled(set, &json!({}))))
                }
                (_, value) => Some((key, without_nulls(value))),
            })
            .collect(),
        other => other,
    }
}

fn filled(map: Map<String, Value>, empty: &Value) -> Value {
    map.into_iter()
        .map(|(key, value)| match value {
            Value::Null => (key, empty.clone()),
            value => (key, value),
        })
        .collect()
}

impl<'a> ContainerImage<'a> {
    /// Reads and checks configuration, manifest, platform and layer chain.
    ///
    /// # Errors
    /// [`Error::Document`] when a document cannot be read, [`Error::Unfit`] when the documents
    /// contradict the image or it is made for another platform, [`Error::Fs`] when the image is
    /// damaged.
    pub fn open(rootfs: &'a Rootfs) -> Result<Self> {
        let section = rootfs.section();
        let header = section.header();
        let path = rootfs
            .paths()
            .next()
            .map(std::path::Path::to_owned)
            .unwrap_or_default();
        let failed = |source| crate::fs::Error::Image {
            image: path.clone(),
            source,
        };
        let blob = section.blob(header.config).map_err(failed)?;
        let config: ImageConfiguration = if blob.is_empty() {
            ImageConfiguration::default()
        } else {
            serde_json::from_slice(&blob)
                .map(without_nulls)
                .and_then(serde_json::from_value)
                .map_err(Error::document("the image's OCI configuration"))?
        };
        let manifest = section.blob(header.manifest).map_err(failed)?;
        if !manifest.is_empty() {
            let manifest: ImageManifest = serde_json::from_slice(&manifest)
                .map_err(Error::document("the image's OCI manifest"))?;
            let (said, found) = (
                manifest.config().digest().to_string(),
                Digest::of(&blob).to_string(),
            );
            if said != found {
                return Err(Error::unfit(format!(
                    "the image's manifest names the configuration {said}, but the image has {found}"
                )));
            }
            let (said, found) = (
                manifest.layers().len(),
                section.layers().map_err(failed)?.len(),
            );
            if said != found {
                return Err(Error::unfit(format!(
                    "the image's manifest names {said} layers, but the image has {found}"
                )));
            }
        }
        let mut root_digest = None;
        for container in rootfs.containers() {
            let locator = container.locator().map_err(failed)?;
            root_digest = locator.map(|l| format!("blake3:{}", hex(&l.root_digest)));
        }
        let image = Self {
            rootfs,
            config,
            root_digest,
        };
        image.check_platform()?;
        image.check_layers()?;
        image.check_words()?;
        Ok(image)
    }

    fn check_platform(&self) -> Result<()> {
        let (os, architecture) = (
            self.config.os().to_string(),
            self.config.architecture().to_string(),
        );
        let host = Platform::host();
        // An image without a configuration has nothing to check.
        if self.has_no_config()
            || host
                .fit(&os, &architecture, self.config.variant().as_deref())
                .is_some()
        {
            return Ok(());
        }
        Err(Error::Unfit {
            what: format!("the image is for {os}/{architecture}, but this host is {host}"),
            hint: Some(
                "`pull` and `build` choose an image for another platform with --platform".into(),
            ),
        })
    }

    fn has_no_config(&self) -> bool {
        self.config.rootfs().diff_ids().is_empty() && self.config.config().is_none()
    }

    /// Checks that the configuration's diff_ids are those of the layers, in order.
    fn check_layers(&self) -> Result<()> {
        if self.has_no_config() {
            return Ok(());
        }
        let path = self
            .rootfs
            .paths()
            .next()
            .map(std::path::Path::to_owned)
            .unwrap_or_default();
        let layers = self
            .rootfs
            .section()
            .layers()
            .map_err(|source| crate::fs::Error::Image {
                image: path,
                source,
            })?;
        let found = layers.iter().map(|l| format!("sha256:{}", hex(&l.diff_id)));
        let said = self.config.rootfs().diff_ids();
        if found.eq(said.iter().cloned()) {
            return Ok(());
        }
        Err(Error::unfit(
            "the image's configuration names other layers than the image has",
        ))
    }

    fn check_words(&self) -> Result<()> {
        let Some(config) = self.config.config() else {
            return Ok(());
        };
        let lists = [
            config.env(),
            config.entrypoint(),
            config.cmd(),
            config.volumes(),
            config.exposed_ports(),
        ];
        let words = lists.into_iter().flatten().flatten();
        let labels = config.labels().iter().flatten().flat_map(|(k, v)| [k, v]);
        let total: usize = words.chain(labels).map(String::len).sum();
        if total > MAX_WORDS {
            Err(Error::unfit(
                "the image's configuration is longer than any process could receive",
            ))
        } else {
            Ok(())
        }
    }

    /// Resolves a user in the image's own passwd and group.
    ///
    /// # Errors
    /// As [`user::resolve`], and [`Error::Fs`] when the files cannot be read.
    pub fn user(&self, text: &str) -> Result<User> {
        let read = |path: &[u8]| {
            rootpath::read(self.rootfs, path, MAX_ACCOUNTS).map(Option::unwrap_or_default)
        };
        user::resolve(text, &read(b"/etc/passwd")?, &read(b"/etc/group")?)
    }

    /// Resolves a path as a process in the image would: without symlinks and `..`, as far as the
    /// image has it.
    ///
    /// # Errors
    /// [`Error::Fs`], and [`Error::Unfit`] when it is not UTF-8.
    pub fn place(&self, path: &str) -> Result<String> {
        let found = rootpath::place(self.rootfs, path.as_bytes())?;
        String::from_utf8(found).map_err(|_| {
            Error::unfit(format!(
                "the image's path {path:?} leads to a path that is not UTF-8"
            ))
        })
    }

    /// Whether there is an executable file at a path, symlinks followed.
    ///
    /// # Errors
    /// [`Error::Fs`].
    pub fn has_program(&self, path: &str) -> Result<bool> {
        let found = rootpath::resolve(self.rootfs, path.as_bytes())?;
        Ok(found
            .is_some_and(|(_, inode)| inode.mode & S_IFMT == S_IFREG && inode.mode & 0o111 != 0))
    }
}
