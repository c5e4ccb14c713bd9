//! Metadata out of a tree and the places of its contents.
//!
//! The first block has the super block and the device table. Behind it, the directories follow in
//! the order in which a walk by levels comes to them, the root first: the inode of each, then those
//! of the files in it that no directory before it has. An inode lies in one block, together with
//! its attributes and what is inline. The shared attributes are at the end.
//!
//! So the numbers of inodes follow from the tree, [`VERSION`], and the choice of [`Inodes`] alone.
//! They do not depend on where contents are, nor on whether a possible hole turns out to be one.

mod directory;
mod holes;
mod space;
mod uuid;
mod xattrs;

use std::collections::VecDeque;

use bfc::format::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use bfc::rootfs::format::Inode as Record;

use self::directory::Entries;
use self::holes::{Chunks, Holes};
use self::space::Space;
use self::xattrs::Xattrs;
use super::error::{Error, Result};
use super::format::{
    BLOCK, BLOCK_LEN, BLOCK_LOG2, DEVICE_COUNT, DEVICE_SLOT, DEVICE_SLOT_LEN, DataLayout,
    DeviceSlot, INCOMPAT_CHUNKED_FILE, INCOMPAT_DEVICE_TABLE, INODE_SLOT, Inode, LONG_INODE_LEN,
    MAX_TARGET, NULL_BLOCK, SHORT_INODE_LEN, SUPER_OFFSET, SuperBlock, encode_device,
};
use super::layout::{DEVICES, Layout, MAX_METADATA};
use crate::fs::{ROOT, Rootfs};

/// Changes whenever the same image would get other metadata. If the numbers of inodes change, an
/// upper that was used over an older version does not fit any more.
pub const VERSION: u32 = 1;
/// Most inodes.
#[allow(clippy::cast_possible_truncation)] // 2^25
const MAX_INODES: u32 = (MAX_METADATA / INODE_SLOT) as u32;
/// How much is reserved at most for metadata before it is written, bytes.
const MAX_RESERVED: usize = 64 << 20;

/// Which form inodes have. The two number inodes differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inodes {
    /// 32 bytes where they suffice, for Linux 6.15 and later. Linux before 6.15 would show the
    /// time of a short inode as 1970.
    Short,
    /// 64 bytes, for all kernels.
    Long,
}

/// First block of each device in the common address space.
pub(super) fn first_blocks(bytes: [u64; DEVICES]) -> [u64; DEVICES] {
    let mut first = MAX_METADATA / BLOCK;
    bytes.map(|bytes| {
        let this = first;
        first = first.saturating_add(bytes / BLOCK);
        this
    })
}

/// The slots of the device table, for devices of this length in bytes, a multiple of 4096; `None`
/// if they do not fit the address space.
pub(super) fn device_slots(bytes: [u64; DEVICES]) -> Option<[DeviceSlot; DEVICES]> {
    let mut slots = [DeviceSlot {
        number: 0,
        blocks: 0,
        first: 0,
    }; DEVICES];
    let numbered = slots
        .iter_mut()
        .zip(0..)
        .zip(bytes)
        .zip(first_blocks(bytes));
    for (((slot, number), bytes), first) in numbered {
        *slot = DeviceSlot {
            number,
            blocks: u32::try_from(bytes / BLOCK).ok()?,
            first: u32::try_from(first).ok()?,
        };
    }
    Some(slots)
}

/// The metadata of a tree whose contents are at these places. `rootfs` must be of the section that
/// `layout` was made of.
///
/// # Errors
/// [`Error::Tree`] and [`Error::Section`] if the image is damaged; for the rest,
/// [`Error::exceeds`].
pub fn write(rootfs: &Rootfs, layout: &Layout, inodes: Inodes) -> Result<Vec<u8>> {
    let mut writer = Writer::new(rootfs, layout, inodes)?;
    writer.tree()?;
    writer.finish()
}

/// The numbers that [`write()`] gives the inodes of an image, by the image's own; 0 for an inode
/// that no name leads to.
///
/// # Errors
/// As [`write()`].
pub fn numbers(rootfs: &Rootfs, layout: &Layout, inodes: Inodes) -> Result<Vec<u32>> {
    let mut writer = Writer::new(rootfs, layout, inodes)?;
    writer.tree()?;
    Ok(writer.nids)
}

struct Writer<'a> {
    rootfs: &'a Rootfs,
    layout: &'a Layout,
    /// First block of each device.
    first: [u64; DEVICES],
    form: Inodes,
    space: Space,
    xattrs: Xattrs<'a>,
    holes: Holes,
    /// The number of each inode of the image; 0 if it has none yet.
    nids: Vec<u32>,
    /// Directories whose names follow.
    waiting: VecDeque<Waiting>,
    /// Entries of directories that have no number yet: their offsets, and the inodes.
    unnumbered: Vec<(usize, u32)>,
    inodes: u64,
}

/// A directory whose names follow.
struct Waiting {
    ino: u32,
    /// Number of its parent; `None` for the root, which is its own.
    parent: Option<u32>,
}

impl<'a> Writer<'a> {
    fn new(rootfs: &'a Rootfs, layout: &'a Layout, form: Inodes) -> Result<Self> {
        let section = rootfs.section();
        let count = section.inode_count();
        if count > MAX_INODES {
            return Err(Error::Metadata);
        }
        let header = section.header();
        let expected = header.inodes.size / 2 + header.dentries.size + header.names.size;
        let expected = usize::try_from(expected).unwrap_or(MAX_RESERVED);
        Ok(Self {
            rootfs,
            layout,
            first: first_blocks([layout.bytes(0), layout.bytes(1)]),
            form,
            space: Space::new(expected.min(MAX_RESERVED)),
            xattrs: Xattrs::new(rootfs),
            holes: Holes::of(rootfs)?,
            nids: Vec::new(),
            waiting: VecDeque::new(),
            unnumbered: Vec::new(),
            inodes: 0,
        })
    }

    fn tree(&mut self) -> Result<()> {
        self.waiting.push_back(Waiting {
            ino: ROOT,
            parent: None,
        });
        let mut entries = Entries::default();
        while let Some(waiting) = self.waiting.pop_front() {
            self.directory(&waiting, &mut entries)?;
        }
        for (at, ino) in std::mem::take(&mut self.unnumbered) {
            let nid = u64::from(self.nid(ino));
            self.space.put(at, &nid.to_le_bytes());
        }
        Ok(())
    }

    /// Writes a directory, and the inodes of its files.
    fn directory(&mut self, waiting: &Waiting, entries: &mut Entries) -> Result<()> {
        let record = self.rootfs.inode(waiting.ino)?;
        entries.read(self.rootfs, waiting.ino)?;
        let head = self.head(&record)?;
        let blocks = entries.blocks();
        let (tail, full) = blocks.split_last().map_or((0, 0), |(last, full)| {
            if head.len + last.len <= BLOCK_LEN && last.len < BLOCK_LEN {
                (last.len, full.len())
            } else {
                (0, blocks.len())
            }
        });
        let last = blocks.last().map_or(0, |block| block.len as u64);
        let size = (blocks.len() as u64).saturating_sub(1) * BLOCK + last;
        let at = self.space.take(head.len + tail)?;
        let mut place = 0;
        if full > 0 {
            place = self.space.take_blocks(full)?;
        }
        let inode = Inode {
            layout: if tail > 0 {
                DataLayout::Inline
            } else {
                DataLayout::Flat
            },
            size,
            data: block_number(place),
            ..head.inode
        };
        self.put_inode(at, &head, &inode);
        self.number(waiting.ino, at);
        let nid = self.nid(waiting.ino);
        for child in entries.children() {
            if child.is_dir() {
                let parent = Some(nid);
                let ino = child.ino;
                self.waiting.push_back(Waiting { ino, parent });
            } else if self.nid(child.ino) == 0 {
                self.file(child.ino)?;
            }
        }
        let parent = waiting.parent.unwrap_or(nid);
        for (number, block) in blocks.iter().enumerate() {
            let start = if number < full {
                place + number * BLOCK_LEN
            } else {
                at + head.len
            };
            let nids = &self.nids;
            let unnumbered = &mut self.unnumbered;
            let out = self.space.at(start, block.len);
            entries.write(block, out, |entry, at| {
                if entry.is_self() {
                    return nid;
                }
                if entry.is_parent() {
                    return parent;
                }
                let known = nids.get(entry.ino as usize).copied().unwrap_or(0);
                if known == 0 {
                    unnumbered.push((start + at, entry.ino));
                }
                known
            });
        }
        Ok(())
    }

    /// Writes the inode of anything but a directory.
    fn file(&mut self, ino: u32) -> Result<()> {
        let record = self.rootfs.inode(ino)?;
        let inexpressible = |reason| Error::Inexpressible { ino, reason };
        let head = self.head(&record)?;
        let mut inode = head.inode;
        let at = match record.mode & S_IFMT {
            S_IFREG if record.size == 0 => self.space.take(head.len)?,
            S_IFREG => {
                let (first, number) = self.content(&record)?;
                inode.size = record.size;
                if let Some(chunks) = self.holes.of_content(number) {
                    inode.layout = DataLayout::Chunks;
                    inode.data = chunks.format();
                    let at = self.space.take_long(head.len, chunks.bytes())?;
                    put_chunks(self.space.at(at + head.len, chunks.bytes()), chunks, first);
                    at
                } else {
                    inode.data = first;
                    self.space.take(head.len)?
                }
            }
            S_IFLNK => {
                let target = self.rootfs.readlink(ino)?;
                if target.is_empty() || target.len() as u64 > MAX_TARGET || target.contains(&0) {
                    return Err(inexpressible(
                        "a target that is empty, has a NUL byte, or more than 4,095 bytes",
                    ));
                }
                inode.size = target.len() as u64;
                if head.len + target.len() <= BLOCK_LEN {
                    inode.layout = DataLayout::Inline;
                    let at = self.space.take(head.len + target.len())?;
                    self.space.put(at + head.len, &target);
                    at
                } else {
                    let at = self.space.take(head.len)?;
                    let place = self.space.take_blocks(1)?;
                    self.space.put(place, &target);
                    inode.data = block_number(place);
                    at
                }
            }
            S_IFCHR | S_IFBLK => {
                let (major, minor) = record.rdev();
                inode.data = encode_device(major, minor).ok_or_else(|| {
                    inexpressible("a device number has more than 12 bits of major or 20 of minor")
                })?;
                self.space.take(head.len)?
            }
            _ => self.space.take(head.len)?,
        };
        self.put_inode(at, &head, &inode);
        self.number(ino, at);
        Ok(())
    }

    /// The first block of a regular file's content, and the content's number.
    fn content(&self, record: &Record) -> Result<(u32, u32)> {
        let found = u32::try_from(record.data).ok().and_then(|number| {
            let place = self.layout.place(number)?;
            let first = self.first.get(usize::from(place.device))?;
            let fits = self.layout.size(number) == Some(record.size);
            let block = u32::try_from(first + (place.offset >> BLOCK_LOG2)).ok()?;
            fits.then_some((block, number))
        });
        found.ok_or_else(|| {
            damaged(
                record.data,
                "the length of an inode differs from its content's",
            )
        })
    }

    /// What an inode has before its data.
    fn head(&mut self, record: &Record) -> Result<Head> {
        let ino = record.ino;
        if super::format::file_type(record.mode).is_none() {
            return Err(damaged(ino.into(), "an inode without a type"));
        }
        let mut xattrs = Vec::new();
        self.xattrs.append(record, &mut xattrs)?;
        #[allow(clippy::cast_possible_truncation)] // the bits of a mode
        let inode = Inode {
            layout: DataLayout::Flat,
            xattrs: xattrs.len(),
            mode: record.mode as u16,
            // 0 would mean that the inode was deleted.
            nlink: record.nlink.max(1),
            size: 0,
            data: 0,
            number: ino,
            uid: record.uid,
            gid: record.gid,
            mtime_s: record.mtime_s,
            mtime_ns: record.mtime_ns,
        };
        // A directory's size is not known yet, but is below 4 GiB.
        let size = match record.mode & S_IFMT {
            S_IFREG => record.size,
            _ => 0,
        };
        let is_short = self.form == Inodes::Short && Inode { size, ..inode }.is_short();
        let len = xattrs.len()
            + if is_short {
                SHORT_INODE_LEN
            } else {
                LONG_INODE_LEN
            };
        Ok(Head {
            inode,
            is_short,
            xattrs,
            len,
        })
    }

    fn put_inode(&mut self, at: usize, head: &Head, inode: &Inode) {
        if head.is_short {
            self.space.put(at, &inode.encode_short());
        } else {
            self.space.put(at, &inode.encode_long());
        }
        self.space
            .put(at + head.len - head.xattrs.len(), &head.xattrs);
        self.inodes += 1;
    }

    /// Notes where the inode is.
    fn number(&mut self, ino: u32, at: usize) {
        let index = ino as usize;
        // As long as inodes turn out to be there.
        if self.nids.len() <= index {
            self.nids.resize(index + 1, 0);
        }
        #[allow(clippy::cast_possible_truncation)] // below MAX_INODES
        {
            self.nids[index] = (at as u64 / INODE_SLOT) as u32;
        }
    }

    fn nid(&self, ino: u32) -> u32 {
        self.nids.get(ino as usize).copied().unwrap_or(0)
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        let shared = self.xattrs.finish();
        let xattr_place = self.space.take_blocks(shared.len().div_ceil(BLOCK_LEN))?;
        self.space.put(xattr_place, &shared);
        let mut incompat = INCOMPAT_DEVICE_TABLE;
        if self.holes.any() {
            incompat |= INCOMPAT_CHUNKED_FILE;
        }
        let root_nid = u16::try_from(self.nid(ROOT))
            .map_err(|_| damaged(0, "the root does not come first"))?;
        let uuid = uuid::of(self.rootfs, self.form)?;
        let slots =
            device_slots([self.layout.bytes(0), self.layout.bytes(1)]).ok_or(Error::Contents)?;
        let mut out = self.space.finish();
        let super_block = SuperBlock {
            root_nid,
            inodes: self.inodes,
            blocks: block_number(out.len()),
            xattr_block: block_number(xattr_place),
            uuid,
            incompat,
            devices: DEVICE_COUNT,
        };
        let table = usize::from(DEVICE_SLOT) * DEVICE_SLOT_LEN;
        put(&mut out, SUPER_OFFSET, &super_block.encode());
        for (at, slot) in (table..).step_by(DEVICE_SLOT_LEN).zip(slots) {
            put(&mut out, at, &slot.encode());
        }
        Ok(out)
    }
}

/// What an inode has before its data.
struct Head {
    /// Without size and data.
    inode: Inode,
    is_short: bool,
    /// The body of its attributes.
    xattrs: Vec<u8>,
    /// Length of all, bytes.
    len: usize,
}

/// The number of the block at an offset below [`MAX_METADATA`].
fn block_number(at: usize) -> u32 {
    #[allow(clippy::cast_possible_truncation)] // 2^18 at most
    {
        (at as u64 / BLOCK) as u32
    }
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(out) = out.get_mut(at..at + bytes.len()) {
        out.copy_from_slice(bytes);
    }
}

/// Writes the addresses of chunks of a content that begins at a block.
fn put_chunks(out: &mut [u8], chunks: &Chunks, first: u32) {
    for ((number, is_hole), out) in (0_u32..).zip(chunks.holes()).zip(out.chunks_exact_mut(4)) {
        let block = if is_hole {
            NULL_BLOCK
        } else {
            first.saturating_add(number << chunks.blocks_log2())
        };
        out.copy_from_slice(&block.to_le_bytes());
    }
}

/// The image is damaged, at an offset or record of its section.
fn damaged(offset: u64, reason: &'static str) -> Error {
    Error::Section(bfc::Error::Section { offset, reason })
}

/// The type of a directory, in bits 12..16 of a mode.
#[allow(clippy::cast_possible_truncation)] // four bits
const DIRECTORY: u8 = (S_IFDIR >> 12) as u8;
