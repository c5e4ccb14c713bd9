//! What layers become when they are compressed: a push records it, and the next one needs to
//! compress a layer only if the registry does not have that blob.
//!
//! A record is a small file in a hidden directory beside the images, named by the layer's diff_id
//! and the kind of compression: the blob's digest and its length. A record is no promise: the
//! registry is asked whether it has the blob.

use std::path::PathBuf;

use super::Store;
use super::error::Result;
use crate::build::Digest;
use crate::build::export::{Compression, LayerBlob};
use crate::error::Io;
use crate::sys::directory::replace;
use crate::sys::files::read_regular;

/// The directory, below the one for temporary files.
const DIRECTORY: &str = ".lxcri-fs-compressed";
/// Longest record, bytes.
const MAX_RECORD: u64 = 1 << 10;

fn kind(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "none",
        Compression::Gzip => "gzip",
        Compression::Zstd => "zstd",
    }
}

fn file_name(diff_id: &Digest, compression: Compression) -> String {
    format!("{}.{}", diff_id.hex(), kind(compression))
}

impl Store {
    /// The blob that a layer became when it was last compressed in this way, as far as is known.
    pub fn compressed(&self, diff_id: &Digest, compression: Compression) -> Option<LayerBlob> {
        let path = self.records().ok()?.join(file_name(diff_id, compression));
        let text = String::from_utf8(read_regular(&path, MAX_RECORD).ok()??).ok()?;
        let (digest, size) = text.trim_end().split_once(' ')?;
        Some(LayerBlob {
            digest: Digest::parse(digest)?,
            size: size.parse().ok()?,
            compression,
        })
    }

    /// Records the blob that a layer became.
    ///
    /// # Errors
    /// [`Error::Io`](super::Error::Io).
    pub fn record_compressed(&self, diff_id: &Digest, blob: &LayerBlob) -> Result<()> {
        let directory = self.records()?;
        std::fs::create_dir_all(&directory).map_err(Io::at("making the directory", &directory))?;
        let path = directory.join(file_name(diff_id, blob.compression));
        replace(&path, format!("{} {}\n", blob.digest, blob.size).as_bytes())?;
        Ok(())
    }

    /// Removes the records of layers that no image has any more.
    ///
    /// # Errors
    /// [`Error`](super::Error).
    pub fn sweep_compressed(&self) -> Result<()> {
        let Ok(entries) = self.records().map(std::fs::read_dir) else {
            return Ok(());
        };
        let images = self.images()?;
        let layers = images.iter().flat_map(|image| &image.facts.layers);
        let layers: std::collections::HashSet<_> = layers.map(|layer| layer.hex()).collect();
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name();
            let layer = name.to_str().and_then(|name| name.split('.').next());
            if !layer.is_some_and(|layer| layers.contains(layer)) {
                let path = entry.path();
                std::fs::remove_file(&path).map_err(Io::at("removing", &path))?;
            }
        }
        Ok(())
    }

    fn records(&self) -> Result<PathBuf> {
        Ok(self.backend.temp_dir()?.join(DIRECTORY))
    }
}
