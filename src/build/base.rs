//! An image to continue, in place or from a copy of its first layers.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bfc::rootfs::{LayerEntry, Section, Tree};
use bfc::writer::{ImageWriter, Keep, WriteOptions};
use bfc::{Container, Secret};

use super::digest::Digest;
use super::error::{Error, Result};
use crate::error::Io;
use crate::fs;
use crate::layer::{merge, replay};

/// An image with layers to continue from.
#[derive(Debug)]
pub struct Base {
    path: PathBuf,
    file: File,
    container: Container,
    section: Section,
    /// Its layers, lowest first.
    pub layers: Vec<LayerEntry>,
    /// OCI image configuration, JSON.
    pub config: Vec<u8>,
    /// OCI manifest, JSON.
    pub manifest: Vec<u8>,
}

impl Base {
    /// Opens an image; `file` is open for writing too when it is to be continued in place.
    ///
    /// # Errors
    /// [`Error::Image`] when it is damaged, [`Error::Source`] when it has no layers to continue
    /// from.
    pub fn open(path: &Path, file: File) -> Result<Self> {
        let failed = |source| {
            Error::Fs(fs::Error::Image {
                image: path.to_owned(),
                source,
            })
        };
        let source = file
            .try_clone()
            .map_err(Io::at("opening the image", path))?;
        let container = Container::open(Arc::new(source)).map_err(failed)?;
        let Some(locator) = container.locator().map_err(failed)? else {
            return Err(Error::Source {
                name: path.display().to_string(),
                reason: "it is a plain v1 image, which has no layers to append to".into(),
                hint: Some(
                    "`lxcri-fs build bfc:IMAGE -o NEW.bfc` turns it into an image with one layer"
                        .into(),
                ),
            });
        };
        let section = Section::open(container.source().clone(), &locator).map_err(failed)?;
        let blob = |region| {
            section
                .blob(region)
                .map(std::borrow::Cow::into_owned)
                .map_err(failed)
        };
        let mut layers = Vec::new();
        for record in section.layers().map_err(failed)? {
            let (skeleton, created_by) = (blob(record.skeleton)?, blob(record.created_by)?);
            layers.push(LayerEntry {
                record,
                skeleton,
                created_by,
            });
        }
        let (config, manifest) = (
            blob(section.header().config)?,
            blob(section.header().manifest)?,
        );
        Ok(Self {
            path: path.to_owned(),
            file,
            container,
            section,
            layers,
            config,
            manifest,
        })
    }

    /// How many of these layers the image begins with.
    pub fn common(&self, diff_ids: &[Option<Digest>]) -> usize {
        let same = |(layer, wanted): (&LayerEntry, &Option<Digest>)| {
            wanted.is_some_and(|d| d.0 == layer.record.diff_id)
        };
        self.layers
            .iter()
            .zip(diff_ids)
            .take_while(|pair| same((pair.0, pair.1)))
            .count()
    }

    /// The key for content that is added: the image's own.
    ///
    /// # Errors
    /// [`Error::Image`] when it cannot be derived.
    pub fn key(&self, secret: Option<&Secret>) -> Result<Option<(bfc::Key, [u8; 32])>> {
        let salt = self.container.header().salt;
        let key = secret.map(|s| s.key(&salt)).transpose();
        Ok(key
            .map_err(|source| Error::Image {
                path: self.path.clone(),
                source,
            })?
            .map(|key| (key, salt)))
    }

    /// The tree of the first `count` layers, replayed from their records.
    ///
    /// # Errors
    /// [`Error::Layer`] and [`Error::Merge`] when a record is damaged.
    pub fn tree(&self, count: usize) -> Result<Tree> {
        let mut tree = Tree::default();
        for (index, layer) in self.layers[..count].iter().enumerate() {
            let name = format!("{} of {}", index + 1, self.path.display());
            let changes = replay::changes(&layer.skeleton, layer.record.skeleton_size);
            let changes = changes.map_err(|source| Error::Layer {
                name: name.clone(),
                source,
            })?;
            merge::apply(&mut tree, changes).map_err(|source| Error::Merge { name, source })?;
        }
        Ok(tree)
    }

    /// Copies the file as far as the first `count` layers go into `to`: shared where the file
    /// system can, else copied.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn copy_layers(&self, count: usize, to: &File) -> Result<()> {
        let failed = || Io::at("copying the layers of", &self.path);
        let end = count
            .checked_sub(1)
            .map_or(0, |last| self.layers[last].record.data_end);
        if rustix::fs::ioctl_ficlone(to, &self.file).is_ok() {
            return Ok(to.set_len(end).map_err(failed())?);
        }
        let (mut from, mut to) = (&self.file, to);
        from.seek(SeekFrom::Start(0))
            .and_then(|_| to.seek(SeekFrom::Start(0)))
            .map_err(failed())?;
        // copy_file_range(2) where there is one.
        let copied = io::copy(&mut from.take(end), &mut to).map_err(failed())?;
        if copied == end {
            Ok(())
        } else {
            Err(failed()(io::ErrorKind::UnexpectedEof.into()).into())
        }
    }

    /// A writer that continues in `file`: the image itself, or a copy.
    ///
    /// # Errors
    /// [`Error::Image`], also when the key is not the image's.
    pub fn resume(&self, file: File, keep: Keep, options: WriteOptions) -> Result<ImageWriter> {
        let writer = ImageWriter::resume(file, &self.container, &self.section, keep, options);
        writer.map_err(|source| {
            Error::Fs(fs::Error::Image {
                image: self.path.clone(),
                source,
            })
        })
    }

    /// Cuts off what follows the image in its file, which is harmless but takes space. Does nothing
    /// if the header now says that it belongs to the image.
    pub fn cut(&self, file: &File) {
        let end = self.container.len();
        let now = file
            .try_clone()
            .ok()
            .and_then(|file| Container::open(Arc::new(file)).ok());
        if now.is_some_and(|now| now.len() == end) {
            let _ = file.set_len(end);
        }
    }
}
