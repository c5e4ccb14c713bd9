//! What a store knows about an image without opening it. Everything except references and times
//! could be read from the image again.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use bfc::format::{Compression, FEATURE_AEAD, FEATURE_ZSTD};
use bfc::rootfs::Section;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::reference::Reference;
use crate::build::Digest;
use crate::error::Io;
use crate::fs;
use crate::text::hex;
use crate::trust::Verdict;

/// For how many names it is kept why an image was accepted: those of the last pulls.
const MAX_VERDICTS: usize = 8;

/// The facts of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Its references; none if another image took its name.
    #[serde(default)]
    pub refs: Vec<Reference>,
    /// Root digest: BLAKE3, 64 hexadecimal digits.
    pub root_digest: String,
    /// The digest that the registry gave for the reference, or else that of the manifest in the
    /// image.
    #[serde(default)]
    pub manifest_digest: Option<Digest>,
    /// When it was put into the store.
    pub created: Timestamp,
    /// diff_ids, lowest first.
    pub layers: Vec<Digest>,
    /// When it lost its last name to another image; none while it has a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unnamed: Option<Timestamp>,
    /// Uppers outside the store that were written over it: directories, or `zfs:` and a dataset.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uppers: Vec<String>,
    /// How new contents are compressed: `zstd` or `none`.
    pub compression: String,
    /// How contents are encrypted: `none`, `password` or `key`.
    pub encryption: String,
    /// Length of the image, bytes.
    pub size: u64,
    /// Root digest of the image that it was cloned from, while that exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The `stamp` of the file when its whole content was last found sound, or was written. While
    /// the file has this stamp, its layers can be reused without another check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checked: Option<String>,
    /// Why it was accepted when it was pulled, for each name that it was pulled under; empty if it
    /// was built here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trust: Vec<Verdict>,
}

/// Identifies the state of a file: its inode number, length and time of change.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn stamp(path: &Path, file: &File) -> Result<String> {
    let metadata = file.metadata().map_err(Io::at("looking at", path))?;
    Ok(format!(
        "{}:{}:{}.{:09}",
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec()
    ))
}

impl Facts {
    /// Reads an image's facts from the image, which does not know its references and its time of
    /// creation.
    ///
    /// # Errors
    /// [`Error::Fs`] if it is damaged, [`Error::Facts`] if it is a plain v1 image.
    pub fn of(path: &Path, file: File) -> Result<Self> {
        let created = file
            .metadata()
            .and_then(|m| m.modified())
            .map_err(Io::at("looking at", path))?;
        let failed = |source| {
            Error::Fs(fs::Error::Image {
                image: path.to_owned(),
                source,
            })
        };
        let container = bfc::Container::open(Arc::new(file)).map_err(failed)?;
        let Some(locator) = container.locator().map_err(failed)? else {
            let reason = "it is a plain v1 image; `lxcri-fs build bfc:IMAGE -t NAME` makes one \
                          with layers of it"
                .into();
            return Err(Error::Facts {
                path: path.to_owned(),
                reason,
            });
        };
        let section = Section::open(container.source().clone(), &locator).map_err(failed)?;
        let layers = section
            .layers()
            .map_err(failed)?
            .iter()
            .map(|layer| Digest(layer.diff_id))
            .collect();
        let manifest = section.blob(section.header().manifest).map_err(failed)?;
        let header = container.header();
        let compression = if header.features & FEATURE_ZSTD == 0 {
            Compression::None
        } else {
            Compression::Zstd
        };
        let encryption = match (header.features & FEATURE_AEAD != 0, header.salt == [0; 32]) {
            (false, _) => "none",
            (true, false) => "password",
            (true, true) => "key",
        };
        Ok(Self {
            refs: Vec::new(),
            root_digest: hex(&locator.root_digest),
            manifest_digest: (!manifest.is_empty()).then(|| Digest::of(&manifest)),
            created: Timestamp::try_from(created).unwrap_or(Timestamp::UNIX_EPOCH),
            layers,
            unnamed: None,
            uppers: Vec::new(),
            compression: if compression == Compression::None {
                "none"
            } else {
                "zstd"
            }
            .to_owned(),
            encryption: encryption.to_owned(),
            size: container.len(),
            parent: None,
            checked: None,
            trust: Vec::new(),
        })
    }

    /// Gives it a reference.
    pub(super) fn name(&mut self, reference: &Reference) {
        if !self.refs.contains(reference) {
            self.refs.push(reference.clone());
        }
        self.unnamed = None;
    }

    /// Takes a reference from it at this time.
    pub(super) fn unname(&mut self, reference: &Reference, at: Timestamp) {
        let had = self.refs.len();
        self.refs.retain(|r| r != reference);
        if self.refs.is_empty() && had > 0 {
            self.unnamed = Some(at);
        }
    }

    /// Since when it may be garbage, if it has no name.
    pub(super) fn unnamed_since(&self) -> Timestamp {
        self.unnamed.unwrap_or(self.created)
    }

    /// Keeps why it was accepted: in place of what was kept for the same name.
    pub(super) fn accept(&mut self, verdict: Verdict) {
        self.trust
            .retain(|kept| kept.reference != verdict.reference);
        self.trust.insert(0, verdict);
        self.trust.truncate(MAX_VERDICTS);
    }

    /// As many digits of the root digest as are needed to distinguish images.
    pub fn short_digest(&self) -> &str {
        self.root_digest.get(..12).unwrap_or(&self.root_digest)
    }
}
