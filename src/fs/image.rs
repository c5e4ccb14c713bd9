//! One image: its file, its key, and the section with its tree.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use bfc::content::Decoder;
use bfc::format::Encryption;
use bfc::rootfs::format::Content;
use bfc::rootfs::{Extras, Section};
use bfc::source::ReadAt;
use bfc::{Container, Key, Secret};

use super::error::{Error, Result};
use super::v1::tree_of_index;
use crate::text::hex;

/// Frame length of sections that are built in memory, binary logarithm.
pub(super) const FRAME_LOG2: u8 = 17;

/// An image to open.
#[derive(Debug)]
pub struct ImageFile {
    /// Its path, for messages.
    pub path: PathBuf,
    /// The open file.
    pub file: File,
    /// Password or key, when it is encrypted.
    pub secret: Option<Secret>,
}

/// An image that contents come from.
pub(super) struct OpenImage {
    pub(super) path: PathBuf,
    pub(super) container: Container,
    key: Option<Key>,
    has_section: bool,
}

impl OpenImage {
    /// Opens an image and its section, or makes a section from its v1 index.
    ///
    /// # Errors
    /// [`Error::Image`], also for a wrong key.
    pub(super) fn open(source: ImageFile) -> Result<(Self, Section)> {
        Self::open_bytes(source.path, Arc::new(source.file), source.secret)
    }

    /// As [`Image::open`], of bytes that are not in a file.
    pub(super) fn open_bytes(
        path: PathBuf,
        bytes: Arc<dyn ReadAt>,
        secret: Option<Secret>,
    ) -> Result<(Self, Section)> {
        let (image, section) = Self::tree(path, bytes, secret)?;
        image.check_key(&section).map_err(|source| Error::Image {
            image: image.path.clone(),
            source,
        })?;
        Ok((image, section))
    }

    /// Like [`Image::open`], with any key or none: encrypted content may be unreadable.
    pub(super) fn open_tree(source: ImageFile) -> Result<(Self, Section)> {
        Self::tree(source.path, Arc::new(source.file), source.secret)
    }

    fn tree(
        path: PathBuf,
        bytes: Arc<dyn ReadAt>,
        secret: Option<Secret>,
    ) -> Result<(Self, Section)> {
        let failed = |source| Error::Image {
            image: path.clone(),
            source,
        };
        let container = Container::open(bytes).map_err(failed)?;
        if let Some(end) = container.torn() {
            tracing::warn!(
                image = %path.display(),
                "the image ends at offset {end}; what follows in the file is left from an \
                 interrupted write, and is ignored",
            );
        }
        let key = secret
            .map(|s| s.key(&container.header().salt))
            .transpose()
            .map_err(failed)?;
        let locator = container.locator().map_err(failed)?;
        let has_section = locator.is_some();
        let section = match locator {
            Some(locator) => Section::open(container.source().clone(), &locator).map_err(failed)?,
            None => {
                let index = container.index().map_err(failed)?;
                let (tree, paths) = tree_of_index(&container, &index).map_err(failed)?;
                let extras = Extras {
                    frame_log2: FRAME_LOG2,
                    paths,
                    ..Extras::default()
                };
                Section::in_memory(bfc::rootfs::build(&tree, &extras).map_err(failed)?)
                    .map_err(failed)?
            }
        };
        Ok((
            Self {
                path,
                container,
                key,
                has_section,
            },
            section,
        ))
    }

    /// A decoder for its contents.
    pub(super) fn decoder(&self, check_hash: bool) -> Decoder<'_> {
        Decoder {
            source: &**self.container.source(),
            len: self.container.len(),
            flavour: self.container.flavour(),
            key: self.key.as_ref(),
            // v1 itself has no digests.
            check_hash: check_hash && self.has_section,
        }
    }

    /// Refuses a wrong key, or a missing one. A section contains a check for the key; in a plain v1
    /// image, the smallest encrypted content is opened.
    fn check_key(&self, section: &Section) -> bfc::Result<()> {
        let mut sealed = section.header().key_check;
        if sealed != [0; 28] {
            let key = self.key.as_ref().ok_or(bfc::Error::KeyNeeded)?;
            return bfc::aead::open(key, bfc::key::CHECK_AAD, &mut sealed)
                .map(drop)
                .ok_or(bfc::Error::WrongKey);
        }
        if self.has_section {
            return Ok(());
        }
        let mut smallest: Option<Content> = None;
        for number in 0..section.content_count() {
            let content = section.content(number)?;
            if content.enc != Encryption::None && smallest.is_none_or(|s| content.stored < s.stored)
            {
                smallest = Some(content);
            }
        }
        let Some(content) = smallest else {
            return Ok(());
        };
        if self.key.is_none() {
            return Err(bfc::Error::KeyNeeded);
        }
        let decoder = self.decoder(false);
        let path = section.content_path(&content)?;
        match decoder
            .resolve(&content)
            .and_then(|c| decoder.stream(&c, &path, &mut std::io::sink()))
        {
            Err(bfc::Error::Content { .. }) => Err(bfc::Error::WrongKey),
            other => other,
        }
    }
}

/// Refuses images that do not have the root digest (hexadecimal) that is wanted.
///
/// # Errors
/// [`Error::Image`].
pub(super) fn check_digest(images: &[OpenImage], wanted: &str) -> Result<()> {
    let [image] = images else {
        let source = bfc::Error::Unsupported("a root digest for several images together".into());
        return Err(Error::Image {
            image: images.last().map(|i| i.path.clone()).unwrap_or_default(),
            source,
        });
    };
    let failed = |source| Error::Image {
        image: image.path.clone(),
        source,
    };
    let Some(locator) = image.container.locator().map_err(failed)? else {
        return Err(failed(bfc::Error::Unsupported(
            "a root digest, which a plain v1 image does not have".into(),
        )));
    };
    let found = hex(&locator.root_digest);
    let wanted = wanted.trim_start_matches("blake3:").to_ascii_lowercase();
    if found == wanted {
        Ok(())
    } else {
        Err(failed(bfc::Error::Digest { found, wanted }))
    }
}
