//! The entries of a directory, and how they are divided into blocks.

use std::ops::Range;

use super::super::error::{Error, Result};
use super::super::format::{BLOCK_LEN, DIRENT_LEN, Dirent, file_type};
use super::{DIRECTORY, MAX_METADATA, damaged};
use crate::fs::Rootfs;

/// An entry of a directory.
pub(super) struct Entry {
    /// Inode number in the image; 0 for `.` and `..`.
    pub(super) ino: u32,
    /// Where its name is.
    name: u32,
    name_len: u8,
    /// Bits 12..16 of the mode.
    kind: u8,
}

impl Entry {
    pub(super) fn is_dir(&self) -> bool {
        self.kind == DIRECTORY
    }

    pub(super) fn is_self(&self) -> bool {
        self.ino == 0 && self.name_len == 1
    }

    pub(super) fn is_parent(&self) -> bool {
        self.ino == 0 && self.name_len == 2
    }
}

/// A block of a directory.
pub(super) struct Block {
    entries: Range<usize>,
    /// How many bytes of it are used.
    pub(super) len: usize,
}

/// The entries of a directory, `.` and `..` among them, sorted by name.
#[derive(Default)]
pub(super) struct Entries {
    entries: Vec<Entry>,
    names: Vec<u8>,
}

impl Entries {
    /// Reads the entries of a directory.
    pub(super) fn read(&mut self, rootfs: &Rootfs, dir: u32) -> Result<()> {
        self.entries.clear();
        self.names.clear();
        let mut dots = [&b"."[..], b".."].into_iter().peekable();
        let mut failed = None;
        rootfs.readdir_plus(dir, 0, &mut |_, ino, inode, name| {
            while let Some(dot) = dots.next_if(|dot| **dot < *name) {
                self.push(0, DIRECTORY, dot);
            }
            if self.last().is_some_and(|last| last >= name) {
                let reason = "a directory whose names are not in order";
                failed = Some(damaged(ino.into(), reason));
            } else if self.names.len() as u64 >= MAX_METADATA {
                failed = Some(Error::Metadata);
            }
            #[allow(clippy::cast_possible_truncation)] // four bits
            self.push(ino, ((inode.mode >> 12) & 0xf) as u8, name);
            failed.is_none()
        })?;
        for dot in dots {
            self.push(0, DIRECTORY, dot);
        }
        failed.map_or(Ok(()), Err)
    }

    fn push(&mut self, ino: u32, kind: u8, name: &[u8]) {
        #[allow(clippy::cast_possible_truncation)] // below MAX_METADATA; a name of 255 bytes
        self.entries.push(Entry {
            ino,
            name: self.names.len() as u32,
            name_len: name.len() as u8,
            kind,
        });
        self.names.extend_from_slice(name);
    }

    fn last(&self) -> Option<&[u8]> {
        self.entries.last().map(|entry| self.name(entry))
    }

    fn name(&self, entry: &Entry) -> &[u8] {
        let at = entry.name as usize;
        self.names
            .get(at..at + usize::from(entry.name_len))
            .unwrap_or_default()
    }

    /// The entries without `.` and `..`.
    pub(super) fn children(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.ino != 0)
    }

    /// Divides them into blocks.
    pub(super) fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        let (mut first, mut len) = (0, 0);
        for (number, entry) in self.entries.iter().enumerate() {
            let more = DIRENT_LEN + usize::from(entry.name_len);
            if len + more > BLOCK_LEN {
                let entries = first..number;
                blocks.push(Block { entries, len });
                (first, len) = (number, 0);
            }
            len += more;
        }
        let entries = first..self.entries.len();
        blocks.push(Block { entries, len });
        blocks
    }

    /// Writes a block. `number` gives the number of the inode of an entry, which is at an offset
    /// of the block.
    pub(super) fn write(
        &self,
        block: &Block,
        out: &mut [u8],
        mut number: impl FnMut(&Entry, usize) -> u32,
    ) {
        let entries = self.entries.get(block.entries.clone()).unwrap_or_default();
        let names_at = entries.len() * DIRENT_LEN;
        let (heads, mut names) = out.split_at_mut(names_at.min(out.len()));
        let mut name_at = names_at;
        for ((entry, head), at) in entries
            .iter()
            .zip(heads.chunks_exact_mut(DIRENT_LEN))
            .zip((0..).step_by(DIRENT_LEN))
        {
            let name = self.name(entry);
            #[allow(clippy::cast_possible_truncation)] // within a block
            let dirent = Dirent {
                nid: number(entry, at).into(),
                name: name_at as u16,
                kind: file_type(u32::from(entry.kind) << 12).unwrap_or(0),
            };
            head.copy_from_slice(&dirent.encode());
            name_at += name.len();
            let (here, behind) = names.split_at_mut(name.len().min(names.len()));
            here.copy_from_slice(name);
            names = behind;
        }
    }
}
