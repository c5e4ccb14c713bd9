//! Reads a rootfs section in place, chunk by chunk; each chunk is checked when it is first used.
//!
//! Chunks are read with pread and kept, not mapped: if a mapped file is truncated under a mount,
//! SIGBUS kills the process, and bytes in a mapping can change after the check. Memory grows with
//! the chunks that are used.

mod contents;
#[cfg(all(test, shuttle))]
mod schedules;

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use super::format::{
    DENTRY_LEN, Dentry, HASH_LEN, INODE_LEN, Inode, Locator, MAX_NANOSECONDS, MAX_XATTR_DENTRIES,
    ROOT, Region, SECTION_HEADER_LEN, SectionHeader, XATTR_DENTRY_LEN, hash,
};
use crate::error::{Error, Result};
use crate::format::{S_IFLNK, S_IFMT, array_at, u16_at, u32_at};
use crate::source::{ReadAt, read_exact_at, read_vec_at};
use crate::sync::OnceLock;

/// Longest extended attribute set, bytes: more than the kernel would list and return for one inode.
const MAX_XATTRS: u32 = 16 << 20;
/// Largest section that is opened, bytes: some hundred million entries.
const MAX_SECTION: u64 = 16 << 30;
/// Largest chunk table that is read, bytes: that of the largest section in chunks of 16 KiB.
const MAX_TABLE: u64 = 32 << 20;
/// Largest blob that is read, bytes: a skeleton.
const MAX_BLOB: u64 = super::skeleton::MAX_COMPRESSED as u64;
/// Longest symlink target, bytes.
const MAX_TARGET: u64 = 4096;

enum Bytes {
    Memory(Vec<u8>),
    File {
        source: Arc<dyn ReadAt>,
        offset: u64,
        table: Vec<u8>,
        chunks: Box<[OnceLock<Box<[u8]>>]>,
    },
}

/// A rootfs section, in a file or in memory.
pub struct Section {
    header: SectionHeader,
    bytes: Bytes,
}

impl std::fmt::Debug for Section {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Section")
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

/// An extended attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xattr {
    /// Full name, namespace included.
    pub name: Vec<u8>,
    /// Value.
    pub value: Vec<u8>,
}

impl Section {
    /// Opens the section that `locator` names: its header and chunk table are read and checked,
    /// nothing else.
    ///
    /// # Errors
    /// [`Error::Section`], [`Error::Unsupported`], [`Error::Read`].
    pub fn open(source: Arc<dyn ReadAt>, locator: &Locator) -> Result<Self> {
        let mut b = [0; SECTION_HEADER_LEN];
        read_exact_at(&*source, &mut b, locator.offset)?;
        if *blake3::hash(&b).as_bytes() != locator.root_digest {
            return Err(Error::Section {
                offset: 0,
                reason: "its header does not have the root digest",
            });
        }
        let header = SectionHeader::parse(&b)?;
        if header.size != locator.size {
            return Err(Error::Section {
                offset: 24,
                reason: "its length is not the locator's",
            });
        }
        if header.size > MAX_SECTION {
            return Err(Error::TooLarge("the rootfs section (the limit is 16 GiB)"));
        }
        if header.chunks.size > MAX_TABLE {
            return Err(Error::TooLarge("the chunk table (the limit is 32 MiB)"));
        }
        let table = read_vec_at(
            &*source,
            locator.offset + header.chunks.offset,
            header.chunks.size,
        )?;
        if *blake3::hash(&table).as_bytes() != header.table_hash {
            return Err(Error::Section {
                offset: header.chunks.offset,
                reason: "its chunk table is damaged",
            });
        }
        let chunks = (0..table.len() / HASH_LEN)
            .map(|_| OnceLock::new())
            .collect();
        Ok(Self {
            header,
            bytes: Bytes::File {
                source,
                offset: locator.offset,
                table,
                chunks,
            },
        })
    }

    /// A section that was built in memory by [`super::build`].
    ///
    /// # Errors
    /// [`Error::Section`] when it is not one.
    pub fn in_memory(bytes: Vec<u8>) -> Result<Self> {
        if bytes.len() < SECTION_HEADER_LEN {
            return Err(Error::Section {
                offset: 0,
                reason: "too short",
            });
        }
        let header = SectionHeader::parse(&array_at(&bytes, 0))?;
        if header.size != bytes.len() as u64 {
            return Err(Error::Section {
                offset: 24,
                reason: "its length is wrong",
            });
        }
        Ok(Self {
            header,
            bytes: Bytes::Memory(bytes),
        })
    }

    /// The header.
    pub fn header(&self) -> &SectionHeader {
        &self.header
    }

    fn chunk(&self, index: usize) -> Result<&[u8]> {
        let Bytes::File { chunks, .. } = &self.bytes else {
            return Ok(&[]);
        };
        let offset = (index as u64) << self.header.chunk_log2;
        let slot = chunks.get(index).ok_or(Error::Section {
            offset,
            reason: "outside the section",
        })?;
        if let Some(chunk) = slot.get() {
            return Ok(chunk);
        }
        let chunk = self.read_chunk(index)?;
        Ok(slot.get_or_init(|| chunk))
    }

    /// Reads and checks an existing chunk.
    fn read_chunk(&self, index: usize) -> Result<Box<[u8]>> {
        let Bytes::File {
            source,
            offset,
            table,
            ..
        } = &self.bytes
        else {
            return Ok(Box::default());
        };
        let start = (index as u64) << self.header.chunk_log2;
        let len = (self.header.chunks.offset - start).min(1 << self.header.chunk_log2);
        #[allow(clippy::cast_possible_truncation)] // at most a chunk
        let mut chunk = vec![0; len as usize].into_boxed_slice();
        read_exact_at(&**source, &mut chunk, offset + start)?;
        // The first chunk holds the header, which hangs from the root digest and holds the table's
        // hash.
        let skip = if index == 0 {
            SECTION_HEADER_LEN.min(chunk.len())
        } else {
            0
        };
        if hash(&chunk[skip..])[..] != table[index * HASH_LEN..(index + 1) * HASH_LEN] {
            return Err(Error::Section {
                offset: start,
                reason: "a chunk does not have its digest",
            });
        }
        Ok(chunk)
    }

    /// The bytes of a range of the section.
    fn bytes(&self, offset: u64, len: u64) -> Result<Cow<'_, [u8]>> {
        let damaged = Error::Section {
            offset,
            reason: "a reference outside the section",
        };
        if offset
            .checked_add(len)
            .is_none_or(|end| end > self.header.chunks.offset)
        {
            return Err(damaged);
        }
        #[allow(clippy::cast_possible_truncation)]
        // inside the section, so inside memory or the chunk's length
        match &self.bytes {
            Bytes::Memory(bytes) => Ok(Cow::Borrowed(
                &bytes[offset as usize..(offset + len) as usize],
            )),
            Bytes::File { .. } => {
                let log2 = self.header.chunk_log2;
                let within = (offset & ((1 << log2) - 1)) as usize;
                let first = self.chunk((offset >> log2) as usize)?;
                if within + len as usize <= first.len() {
                    return Ok(Cow::Borrowed(&first[within..within + len as usize]));
                }
                // The rest as chunks turn out to be there.
                let mut out = Vec::with_capacity((len as usize).min(1 << 20));
                out.extend_from_slice(&first[within..]);
                let mut index = (offset >> log2) as usize + 1;
                while out.len() < len as usize {
                    let chunk = self.chunk(index)?;
                    out.extend_from_slice(&chunk[..chunk.len().min(len as usize - out.len())]);
                    index += 1;
                }
                Ok(Cow::Owned(out))
            }
        }
    }

    /// A range of a region.
    fn range(&self, region: Region, offset: u64, len: u64) -> Result<Cow<'_, [u8]>> {
        if offset.checked_add(len).is_none_or(|end| end > region.size) {
            return Err(Error::Section {
                offset: region.offset,
                reason: "a reference outside its region",
            });
        }
        self.bytes(region.offset + offset, len)
    }

    fn record<const N: usize>(&self, region: Region, index: u64) -> Result<[u8; N]> {
        Ok(array_at(
            &self.range(region, index.saturating_mul(N as u64), N as u64)?,
            0,
        ))
    }

    /// How many inodes there are; their numbers are 1 up to this.
    pub fn inode_count(&self) -> u32 {
        #[allow(clippy::cast_possible_truncation)] // parse checks it
        ((self.header.inodes.size / INODE_LEN as u64) as u32)
    }

    /// The inode with this number, `None` when there is none. A directory's parent has a smaller
    /// number, so following parents ends at the root.
    ///
    /// # Errors
    /// [`Error::Section`], [`Error::Read`], as for all that follow.
    pub fn inode(&self, ino: u32) -> Result<Option<Inode>> {
        if ino == 0 || ino > self.inode_count() {
            return Ok(None);
        }
        let b: [u8; INODE_LEN] = self.record(self.header.inodes, u64::from(ino) - 1)?;
        let inode = Inode {
            ino,
            ..Inode::parse(&b)
        };
        let (is_root, offset) = (
            ino == ROOT,
            self.header.inodes.offset + (u64::from(ino) - 1) * INODE_LEN as u64,
        );
        if is_root && (!inode.is_dir() || inode.parent != ROOT) {
            return Err(Error::Section {
                offset,
                reason: "a root that is not the directory above all",
            });
        }
        if inode.is_dir() && !is_root && !(ROOT..ino).contains(&inode.parent) {
            return Err(Error::Section {
                offset,
                reason: "a directory that does not come behind its parent",
            });
        }
        if inode.mtime_ns > MAX_NANOSECONDS {
            return Err(Error::Section {
                offset,
                reason: "a time with more nanoseconds than a second has",
            });
        }
        Ok(Some(inode))
    }

    /// Number `index` of a directory's dentries, which are sorted by name; `None` behind the last.
    /// It says itself that it is this directory's: so no two directories share one.
    pub fn dentry(&self, dir: &Inode, index: u64) -> Result<Option<Dentry>> {
        if !dir.is_dir() || index >= dir.size {
            return Ok(None);
        }
        let number = dir.data.saturating_add(index);
        let b: [u8; DENTRY_LEN] = self.record(self.header.dentries, number)?;
        #[allow(clippy::cast_possible_truncation)] // there are less than 2^32
        let dentry = Dentry {
            number: number as u32,
            ..Dentry::parse(&b)
        };
        if dentry.dir != dir.ino {
            return Err(self.dentry_error(&dentry, "a dentry of another directory"));
        }
        Ok(Some(dentry))
    }

    /// The inode that a dentry leads to. A directory has this name only, and comes behind the one
    /// that it is in: so a walk along dentries ends, and comes to each of them once.
    pub fn follow(&self, dentry: &Dentry) -> Result<Inode> {
        let Some(inode) = self.inode(dentry.ino)? else {
            return Err(self.dentry_error(dentry, "a dentry of no inode"));
        };
        if (inode.mode & S_IFMT) >> 12 != u32::from(dentry.kind) {
            return Err(self.dentry_error(dentry, "a dentry does not fit its inode"));
        }
        if inode.is_dir()
            && (inode.ino == ROOT || inode.parent != dentry.dir || inode.dentry != dentry.number)
        {
            return Err(self.dentry_error(dentry, "a directory with two names"));
        }
        Ok(inode)
    }

    fn dentry_error(&self, dentry: &Dentry, reason: &'static str) -> Error {
        Error::Section {
            offset: self.header.dentries.offset + u64::from(dentry.number) * DENTRY_LEN as u64,
            reason,
        }
    }

    /// A dentry's name.
    pub fn name(&self, dentry: &Dentry) -> Result<Cow<'_, [u8]>> {
        self.range(
            self.header.names,
            u64::from(dentry.name),
            u64::from(dentry.name_len),
        )
    }

    /// Looks a name up in a directory.
    pub fn lookup(&self, dir: &Inode, name: &[u8]) -> Result<Option<Dentry>> {
        if !dir.is_dir() {
            return Ok(None);
        }
        let (mut low, mut high) = (0, dir.size);
        while low < high {
            let middle = low + (high - low) / 2;
            let Some(dentry) = self.dentry(dir, middle)? else {
                return Ok(None);
            };
            match self.name(&dentry)?.as_ref().cmp(name) {
                Ordering::Equal => return Ok(Some(dentry)),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }

    /// A symlink's target; `None` for anything else.
    pub fn target(&self, inode: &Inode) -> Result<Option<Cow<'_, [u8]>>> {
        if inode.mode & S_IFMT != S_IFLNK {
            return Ok(None);
        }
        if inode.size > MAX_TARGET {
            return Err(Error::Section {
                offset: self.header.names.offset,
                reason: "a symlink target that is too long",
            });
        }
        self.range(self.header.names, inode.data, inode.size)
            .map(Some)
    }

    /// Whether any inode has extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.header.xattrs.size > 8
    }

    /// An inode's extended attributes, sorted by name.
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<Xattr>> {
        if inode.xattr == 0 {
            return Ok(Vec::new());
        }
        let region = self.header.xattrs;
        let at = u64::from(inode.xattr);
        let damaged = || Error::Section {
            offset: region.offset + at,
            reason: "an attribute set that does not parse",
        };
        let total = u32_at(&self.range(region, at, 4)?, 0);
        if total > MAX_XATTRS {
            return Err(damaged());
        }
        let b = self.range(region, at, u64::from(total))?;
        if b.len() < 8 {
            return Err(damaged());
        }
        let mut rest = &b[8..];
        let mut out = Vec::new();
        for _ in 0..u32_at(&b, 4) {
            let (head, tail) = rest.split_at_checked(8).ok_or_else(damaged)?;
            let (name_len, value_len) = (usize::from(u16_at(head, 0)), u32_at(head, 4) as usize);
            let (name, tail) = tail.split_at_checked(name_len).ok_or_else(damaged)?;
            let (value, tail) = tail.split_at_checked(value_len).ok_or_else(damaged)?;
            out.push(Xattr {
                name: name.to_vec(),
                value: value.to_vec(),
            });
            rest = tail;
        }
        Ok(out)
    }

    /// The dentries that lead to inodes with extended attributes, each directory's before those in
    /// it: the directory's inode number, and which of its dentries. `None` when they are not
    /// listed: there are many, or the writer did not know of the list.
    pub fn xattr_dentries(&self) -> Result<Option<Vec<(u32, u32)>>> {
        if !self.has_xattrs() {
            return Ok(Some(Vec::new()));
        }
        let region = self.header.xattrs;
        let head = self.range(region, 0, 8)?;
        let (at, count) = (u32_at(&head, 0), u32_at(&head, 4));
        if at == 0 {
            return Ok(None);
        }
        if count as usize > MAX_XATTR_DENTRIES {
            return Err(Error::Section {
                offset: region.offset,
                reason: "a list of dentries that is too long",
            });
        }
        let list = self.range(
            region,
            at.into(),
            u64::from(count) * XATTR_DENTRY_LEN as u64,
        )?;
        Ok(Some(
            list.chunks_exact(XATTR_DENTRY_LEN)
                .map(|b| (u32_at(b, 0), u32_at(b, 4)))
                .collect(),
        ))
    }

    /// A range of the blobs: a skeleton or a document.
    pub fn blob(&self, region: Region) -> Result<Cow<'_, [u8]>> {
        if region.size > MAX_BLOB {
            return Err(Error::TooLarge(
                "a document or a layer's record (the limit is 512 MiB)",
            ));
        }
        self.range(self.header.blobs, region.offset, region.size)
    }

    /// Checks the whole section: the digest of every chunk, and then that its records agree. Every
    /// inode has as many names as its link count, every directory has one, every dentry belongs to
    /// a directory, names are in order, the list of inodes with attributes is complete if there is
    /// one, and frames are consecutive.
    pub fn verify(&self) -> Result<()> {
        if let Bytes::File { chunks, .. } = &self.bytes {
            // Not kept: the records are most of it, and follow.
            for (index, _) in chunks
                .iter()
                .enumerate()
                .filter(|(_, chunk)| chunk.get().is_none())
            {
                self.read_chunk(index)?;
            }
        }
        super::check::tree(self)?;
        super::check::contents(self)?;
        self.layers().map(drop)
    }
}
