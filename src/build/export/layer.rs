//! Restores a layer's tar from its skeleton.

use std::io::{self, Write};

use bfc::rootfs::Section;
use bfc::rootfs::format::LayerRecord;
use bfc::rootfs::skeleton::{Segment, SkeletonReader};

use crate::fs::{self, Rootfs};
use crate::layer::Error;

/// How much content is decoded at a time, bytes.
const PIECE: u64 = 1 << 20;

/// Writes the tar of a layer, byte for byte the one that the image was built from.
///
/// # Errors
/// [`fs::Error`] for the image, and what `out` fails with.
pub fn write_tar(
    rootfs: &Rootfs,
    layer: &LayerRecord,
    out: &mut dyn Write,
) -> Result<(), WriteError> {
    let section: &Section = rootfs.section();
    let compressed = section.blob(layer.skeleton).map_err(Error::Image)?;
    let mut reader = SkeletonReader::new(&compressed, layer.skeleton_size).map_err(Error::Image)?;
    let mut piece = Vec::new();
    while let Some(segment) = reader.next_segment().map_err(Error::Image)? {
        let (id, mut offset, mut size) = match segment {
            Segment::Raw(bytes) => {
                out.write_all(bytes)?;
                continue;
            }
            Segment::Content { id, offset, size } => (id, offset, size),
        };
        while size > 0 {
            piece.clear();
            #[allow(clippy::cast_possible_truncation)] // at most a piece
            let want = size.min(PIECE) as usize;
            rootfs.read_by_number(id, offset, want, &mut piece)?;
            if piece.len() != want {
                return Err(Error::Skeleton("a reference behind the end of a content").into());
            }
            out.write_all(&piece)?;
            offset += want as u64;
            size -= want as u64;
        }
    }
    Ok(())
}

/// An error of [`write_tar`].
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The image is damaged.
    #[error(transparent)]
    Fs(#[from] fs::Error),
    /// The layer's record is damaged.
    #[error(transparent)]
    Layer(#[from] Error),
    /// The output failed.
    #[error(transparent)]
    Output(#[from] io::Error),
}
