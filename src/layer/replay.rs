//! Replays a layer from its skeleton, to get its changes.

use bfc::rootfs::skeleton::{Segment, SkeletonReader};

use super::change::change;
use super::merge::Change;
use super::read::{Budget, Error};
use super::tar::{BLOCK, Block, EntryKind, Parser, Step, TarEntry, padding};

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
    entry: Box<TarEntry>,
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
            _ => Err(Error::Skeleton("there is content where none is expected")),
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
                    self.open = Some(Open {
                        entry,
                        content: None,
                        stored: 0,
                    });
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
        let Some(Open {
            entry,
            content,
            stored,
        }) = self.open.take()
        else {
            return Ok(());
        };
        let size = if let EntryKind::File { size, .. } = entry.kind {
            size
        } else {
            0
        };
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
