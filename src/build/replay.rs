//! Replaying a layer from its skeleton: the changes it makes, and its tar.

use std::io::{self, Write};

use bfc::rootfs::Section;
use bfc::rootfs::format::Layer;
use bfc::rootfs::skeleton::{Segment, SkeletonReader};

use super::change::change;
use super::layer::{Budget, Error};
use super::tar::{BLOCK, Block, Entry, EntryKind, Parser, Step, padding};
use crate::fs::merge::Change;
use crate::fs::{self, Rootfs};

/// How much content is decoded at a time, bytes.
const PIECE: u64 = 1 << 20;

/// Writes the tar of a layer, byte for byte as it was when the image was built.
///
/// # Errors
/// [`fs::Error`] for the image, and what `out` fails with.
pub fn write_tar(rootfs: &Rootfs, layer: &Layer, out: &mut dyn Write) -> Result<(), WriteError> {
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

/// The changes that a stored layer makes, from its skeleton.
///
/// # Errors
/// [`Error`] when the skeleton is damaged.
pub fn changes(compressed: &[u8], size: u64) -> Result<Vec<Change>, Error> {
    let mut reader = SkeletonReader::new(compressed, size)?;
    let mut replay = Replay::default();
    while let Some(segment) = reader.next_segment()? {
        match segment {
            Segment::Raw(bytes) => replay.raw(bytes)?,
            Segment::Content { id, size, .. } => replay.content(id, size)?,
        }
    }
    replay.finish()
}

/// An entry whose contents are awaited.
struct Open {
    entry: Box<Entry>,
    content: Option<u32>,
    /// How many bytes of it were referred to.
    stored: u64,
}

struct Replay {
    parser: Parser,
    budget: Budget,
    changes: Vec<Change>,
    open: Option<Open>,
    /// Padding that is still to come.
    pad: usize,
    block: Block,
    filled: usize,
    ended: bool,
}

impl Default for Replay {
    fn default() -> Self {
        Self {
            parser: Parser::default(),
            budget: Budget::new(u64::MAX),
            changes: Vec::new(),
            open: None,
            pad: 0,
            block: [0; BLOCK],
            filled: 0,
            ended: false,
        }
    }
}

impl Replay {
    fn content(&mut self, id: u32, size: u64) -> Result<(), Error> {
        match &mut self.open {
            Some(open) if open.content.is_none_or(|known| known == id) => {
                open.content = Some(id);
                open.stored = open.stored.saturating_add(size);
                Ok(())
            }
            _ => Err(Error::Skeleton("a content where none belongs")),
        }
    }

    fn raw(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        self.close()?;
        while !bytes.is_empty() && !self.ended {
            let skip = self.pad.min(bytes.len());
            self.pad -= skip;
            bytes = &bytes[skip..];
            let n = bytes.len().min(BLOCK - self.filled);
            self.block[self.filled..self.filled + n].copy_from_slice(&bytes[..n]);
            self.filled += n;
            bytes = &bytes[n..];
            if self.filled < BLOCK {
                continue;
            }
            self.filled = 0;
            match self.parser.block(&self.block)? {
                Step::More => {}
                Step::End => self.ended = true,
                Step::Entry(entry) => {
                    self.pad = padding(entry.stored);
                    self.open = Some(Open { entry, content: None, stored: 0 });
                    // More of these bytes can only belong to it when it has no content.
                    if !bytes.is_empty() {
                        self.close()?;
                    }
                }
            }
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), Error> {
        let Some(Open { entry, content, stored }) = self.open.take() else { return Ok(()) };
        let size = if let EntryKind::File { size, .. } = entry.kind { size } else { 0 };
        if stored != entry.stored || content.is_some() != (size > 0) {
            return Err(Error::Skeleton("a file and its content differ in length"));
        }
        if let Some(change) = change(*entry, content)? {
            self.budget.take_metadata(&change)?;
            self.changes.push(change);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Change>, Error> {
        self.close()?;
        if !self.ended {
            self.parser.end_of_input()?;
        }
        Ok(self.changes)
    }
}
