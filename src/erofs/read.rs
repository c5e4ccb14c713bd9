//! Reads metadata as [`super::write`] makes them, structure by structure. Nothing is believed:
//! every offset and length is checked where it is used, and what is read is borrowed from the
//! bytes, so that no length in them leads to an allocation.

use super::format::{
    BLOCK, BLOCK_LEN, BLOCK_LOG2, CHUNK_ADDRESS_LEN, DEVICE_SLOT, DEVICE_SLOT_LEN, DIRENT_LEN,
    DataLayout, Dirent, INCOMPAT_CHUNKED_FILE, INCOMPAT_DEVICE_TABLE, INODE_SLOT, Inode,
    MAX_CHUNK_BLOCKS_LOG2, MAX_NAME, MAX_TARGET, NULL_BLOCK, OVERLAY_MARKS, SUPER_LEN,
    SUPER_OFFSET, SuperBlock, XATTR_ALIGN, XATTR_ENTRY_LEN, XATTR_HEADER_LEN, XATTR_PREFIXES,
    XattrEntry, file_type, split_xattr_name, u16_at, u32_at,
};
use super::layout::DEVICES;
use super::layout::MAX_METADATA;
use super::metadata::{device_slots, first_blocks};
use bfc::format::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use bfc::rootfs::format::MAX_NANOSECONDS;

/// Metadata are not as this program writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("EROFS metadata at offset {offset}: {reason}")]
pub struct Damage {
    /// Where, bytes.
    pub offset: u64,
    /// What is wrong.
    pub reason: &'static str,
}

fn damage(offset: usize, reason: &'static str) -> Damage {
    Damage {
        offset: offset as u64,
        reason,
    }
}

type Result<T> = std::result::Result<T, Damage>;

/// Metadata in memory.
#[derive(Clone, Copy)]
pub struct Metadata<'a> {
    bytes: &'a [u8],
    super_block: SuperBlock,
    /// First block and length in blocks of each device, in the common address space.
    devices: [(u64, u64); DEVICES],
}

impl std::fmt::Debug for Metadata<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metadata")
            .field("super_block", &self.super_block)
            .field("devices", &self.devices)
            .finish_non_exhaustive()
    }
}

/// An inode and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub nid: u64,
    /// Its fields.
    pub inode: Inode,
    /// Offset of what is behind the inode, its attributes, bytes.
    xattrs: usize,
}

/// An entry of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// Number of its inode.
    pub nid: u64,
    /// Its type, see [`file_type`].
    pub kind: u8,
}

/// A block of a directory, or of a target: the bytes of it that are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block<'a> {
    bytes: &'a [u8],
    /// Where they are in the metadata.
    at: usize,
}

/// Where a range of a file's bytes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// On a device, from an offset in bytes on.
    Device {
        /// The device: 0 or 1.
        device: u8,
        /// Offset on the device, bytes.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// So many zeros, a hole.
    Hole(u64),
}

impl Node {
    fn at(&self) -> usize {
        // It was inside the bytes.
        usize::try_from(self.nid * INODE_SLOT).unwrap_or(usize::MAX)
    }

    /// Length of inode and attributes, bytes.
    pub(super) fn head_len(&self) -> usize {
        self.xattrs - self.at() + self.inode.xattrs
    }

    /// Type and permission bits.
    pub fn mode(&self) -> u32 {
        self.inode.mode.into()
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.mode() & S_IFMT == S_IFDIR
    }

    fn behind_head(&self) -> usize {
        self.xattrs + self.inode.xattrs
    }
}

impl<'a> Metadata<'a> {
    /// Opens metadata for devices of this length, bytes. The first block is exactly as it would be
    /// written.
    ///
    /// # Errors
    /// [`Damage`], as for all that follow.
    pub fn open(bytes: &'a [u8], devices: [u64; DEVICES]) -> Result<Self> {
        let len = bytes.len();
        if !len.is_multiple_of(BLOCK_LEN) || len as u64 > MAX_METADATA {
            return Err(damage(
                len,
                "a length that is too long, or no multiple of 4096",
            ));
        }
        let first = bytes.first_chunk::<BLOCK_LEN>();
        let first = first.ok_or(damage(0, "no super block"))?;
        let mut fields = [0; SUPER_LEN];
        fields.copy_from_slice(&first[SUPER_OFFSET..SUPER_OFFSET + SUPER_LEN]);
        let super_block = SuperBlock::parse(&fields);
        let slots = device_slots(devices).filter(|_| devices.iter().all(|d| d % BLOCK == 0));
        let slots = slots.ok_or(damage(0, "devices that do not fit the address space"))?;

        let mut expected = [0; BLOCK_LEN];
        expected[SUPER_OFFSET..SUPER_OFFSET + SUPER_LEN].copy_from_slice(&super_block.encode());
        let table = usize::from(DEVICE_SLOT) * DEVICE_SLOT_LEN;
        for (place, slot) in expected[table..]
            .chunks_exact_mut(DEVICE_SLOT_LEN)
            .zip(slots)
        {
            place.copy_from_slice(&slot.encode());
        }
        let wrong = first.iter().zip(&expected).position(|(a, b)| a != b);
        if let Some(at) = wrong {
            return Err(damage(at, "a super block or device that is not ours"));
        }
        let features = super_block.incompat & !INCOMPAT_CHUNKED_FILE;
        if features != INCOMPAT_DEVICE_TABLE
            || usize::from(super_block.devices) != DEVICES
            || u64::from(super_block.blocks) * BLOCK != len as u64
            || super_block.xattr_block > super_block.blocks
        {
            return Err(damage(SUPER_OFFSET, "a super block with wrong fields"));
        }
        let mut ranges = [(0, 0); DEVICES];
        let all = ranges.iter_mut().zip(first_blocks(devices)).zip(devices);
        for ((range, first), bytes) in all {
            *range = (first, bytes / BLOCK);
        }
        Ok(Self {
            bytes,
            super_block,
            devices: ranges,
        })
    }

    /// The super block.
    pub fn super_block(&self) -> &SuperBlock {
        &self.super_block
    }

    fn range(&self, at: usize, len: usize, reason: &'static str) -> Result<&'a [u8]> {
        let range = at.checked_add(len).and_then(|end| self.bytes.get(at..end));
        range.ok_or(damage(at, reason))
    }

    /// The root.
    pub fn root(&self) -> Result<Node> {
        self.node(self.super_block.root_nid.into())
    }

    /// The inode with this number.
    pub fn node(&self, nid: u64) -> Result<Node> {
        let at = nid
            .checked_mul(INODE_SLOT)
            .and_then(|at| usize::try_from(at).ok());
        let at = at.unwrap_or(usize::MAX);
        let rest = self.bytes.get(at..).unwrap_or_default();
        if at < BLOCK_LEN || rest.is_empty() {
            return Err(damage(at, "an inode outside the metadata"));
        }
        let parsed = Inode::parse(rest);
        let (inode, len) = parsed.ok_or(damage(at, "an inode that is not as we write one"))?;
        let node = Node {
            nid,
            inode,
            xattrs: at.saturating_add(len),
        };
        let tail = match inode.layout {
            DataLayout::Inline => self.tail(&node),
            _ => 0,
        };
        if at % BLOCK_LEN + node.head_len() + tail > BLOCK_LEN {
            return Err(damage(at, "an inode that crosses a block"));
        }
        self.check_fields(&node)?;
        Ok(node)
    }

    /// What can be said of an inode's fields without the rest.
    fn check_fields(&self, node: &Node) -> Result<()> {
        let Inode {
            layout, size, data, ..
        } = node.inode;
        let wrong = |reason| Err(damage(node.at(), reason));
        if node.inode.nlink == 0 || node.inode.mtime_ns > MAX_NANOSECONDS {
            return wrong("an inode without links, or with a wrong time");
        }
        let fits = match node.mode() & S_IFMT {
            S_IFREG => match layout {
                DataLayout::Flat => size > 0 || data == 0,
                DataLayout::Inline => false,
                DataLayout::Chunks => {
                    size > 0
                        && i64::try_from(size).is_ok()
                        && data <= MAX_CHUNK_BLOCKS_LOG2.into()
                        && self.super_block.incompat & INCOMPAT_CHUNKED_FILE != 0
                }
            },
            S_IFDIR => layout != DataLayout::Chunks && size > 0,
            S_IFLNK => layout != DataLayout::Chunks && (1..=MAX_TARGET).contains(&size),
            S_IFCHR | S_IFBLK => layout == DataLayout::Flat && size == 0,
            mode => {
                file_type(mode).is_some() && layout == DataLayout::Flat && size == 0 && data == 0
            }
        };
        if layout == DataLayout::Inline && self.tail(node) == 0 {
            return wrong("inline data that are empty");
        }
        if fits {
            Ok(())
        } else {
            wrong("an inode whose fields do not fit each other")
        }
    }

    /// How many bytes of an inode's data are inline, if any are.
    fn tail(&self, node: &Node) -> usize {
        #[allow(clippy::cast_possible_truncation)] // below a block
        {
            (node.inode.size % BLOCK) as usize
        }
    }

    /// The blocks of a directory or of a symlink's target.
    pub fn blocks(&self, node: &Node) -> Result<impl Iterator<Item = Block<'a>> + use<'a>> {
        let outside = "data outside the metadata";
        let size = usize::try_from(node.inode.size)
            .map_err(|_| damage(node.at(), "data longer than the metadata"))?;
        let (full_len, tail) = match node.inode.layout {
            DataLayout::Inline => (size - self.tail(node), self.tail(node)),
            _ => (size, 0),
        };
        let first = usize::try_from(u64::from(node.inode.data) * BLOCK).unwrap_or(usize::MAX);
        let full = match full_len {
            0 if node.inode.data != 0 => return Err(damage(node.at(), "an address without data")),
            0 => &[],
            _ if first < BLOCK_LEN => return Err(damage(node.at(), outside)),
            len => self.range(first, len, outside)?,
        };
        let tail_at = node.behind_head();
        let tail = self.range(tail_at, tail, outside)?;
        let full = full
            .chunks(BLOCK_LEN)
            .zip((first..).step_by(BLOCK_LEN))
            .map(|(bytes, at)| Block { bytes, at });
        let tail = (!tail.is_empty()).then_some(Block {
            bytes: tail,
            at: tail_at,
        });
        Ok(full.chain(tail))
    }

    /// A symlink's target.
    pub fn target(&self, node: &Node) -> Result<&'a [u8]> {
        if node.mode() & S_IFMT != S_IFLNK {
            return Err(damage(node.at(), "not a symlink"));
        }
        let target = self.blocks(node)?.next().map_or(&[][..], |b| b.bytes);
        if target.is_empty() || target.contains(&0) {
            return Err(damage(node.at(), "an invalid target"));
        }
        Ok(target)
    }

    /// The offsets in the metadata of an inode's attributes. They are not checked.
    pub(super) fn xattr_offsets(&self, node: &Node) -> Result<impl Iterator<Item = u64> + use<'a>> {
        let wrong = "the attributes of an inode are not as we write them";
        let body = self.range(node.xattrs, node.inode.xattrs, wrong)?;
        let ids = if body.is_empty() {
            body
        } else {
            let split = body.split_at_checked(XATTR_HEADER_LEN);
            let (head, ids) = split.ok_or(damage(node.xattrs, wrong))?;
            let count = ids.len() / XATTR_ALIGN;
            let is_ours = head.iter().enumerate().all(|(at, &b)| {
                if at == 4 {
                    usize::from(b) == count
                } else {
                    b == 0
                }
            });
            if !is_ours || count == 0 {
                return Err(damage(node.xattrs, wrong));
            }
            ids
        };
        let start = u64::from(self.super_block.xattr_block) * BLOCK;
        let ids = ids.chunks_exact(XATTR_ALIGN);
        Ok(ids.map(move |id| start + u64::from(u32_at(id, 0)) * XATTR_ALIGN as u64))
    }

    /// The prefix, the rest of the name, and the value of the attribute at an offset.
    pub(super) fn xattr_at(&self, offset: u64) -> Result<Xattr<'a>> {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let wrong = "an attribute outside the metadata";
        let head = XattrEntry::parse(self.range(at, XATTR_ENTRY_LEN, wrong)?);
        let bytes = self.range(at, head.len(), wrong)?;
        let prefix = XATTR_PREFIXES.into_iter().find(|p| p.1 == head.index);
        let (prefix, _) = prefix.ok_or(damage(at, "an attribute of an unknown name space"))?;
        let (name, value) = bytes
            .get(XATTR_ENTRY_LEN..)
            .and_then(|b| b.split_at_checked(head.name_len.into()))
            .ok_or(damage(at, wrong))?;
        let is_list = !prefix.ends_with(b".");
        if is_list != name.is_empty()
            || prefix.len() + name.len() > super::format::MAX_XATTR_NAME
            || name.contains(&0)
        {
            return Err(damage(at, "an attribute with an invalid name"));
        }
        let rest = OVERLAY_MARKS.strip_prefix(prefix);
        if rest.is_some_and(|rest| name.starts_with(rest)) {
            return Err(damage(
                at,
                "an attribute that overlayfs would take for its own",
            ));
        }
        Ok(Xattr {
            prefix,
            name,
            value,
        })
    }

    /// The names and values of an inode's attributes.
    pub fn xattrs(&self, node: &Node) -> Result<Vec<(Vec<u8>, &'a [u8])>> {
        self.xattr_offsets(node)?
            .map(|offset| {
                let xattr = self.xattr_at(offset)?;
                let name = xattr.full_name();
                debug_assert!(split_xattr_name(&name).is_some());
                Ok((name, xattr.value))
            })
            .collect()
    }

    /// How many bytes the addresses of an inode's chunks take: 0 without chunks.
    pub(super) fn chunk_bytes(&self, node: &Node) -> Result<usize> {
        if node.inode.layout != DataLayout::Chunks {
            return Ok(0);
        }
        let chunk = 1_u64 << (node.inode.data + u32::from(BLOCK_LOG2));
        let count = usize::try_from(node.inode.size.div_ceil(chunk)).unwrap_or(usize::MAX);
        let len = count.saturating_mul(CHUNK_ADDRESS_LEN);
        self.range(node.behind_head(), len, "chunks outside the metadata")?;
        Ok(len)
    }

    /// Where the bytes of a regular file are, in order.
    pub fn data(&self, node: &Node) -> Result<impl Iterator<Item = Result<Data>> + use<'a>> {
        if node.mode() & S_IFMT != S_IFREG {
            return Err(damage(node.at(), "not a regular file"));
        }
        let (image, node) = (*self, *node);
        let addresses = image.chunk_bytes(&node)?;
        let chunks = image.range(node.behind_head(), addresses, "")?;
        let (chunk, count) = match node.inode.layout {
            DataLayout::Chunks => (
                1_u64 << (node.inode.data + u32::from(BLOCK_LOG2)),
                addresses / CHUNK_ADDRESS_LEN,
            ),
            _ => (node.inode.size, usize::from(node.inode.size > 0)),
        };
        Ok((0..count).map(move |number| {
            let start = chunk * number as u64;
            let len = chunk.min(node.inode.size - start);
            let block = match node.inode.layout {
                DataLayout::Chunks => match u32_at(chunks, number * CHUNK_ADDRESS_LEN) {
                    NULL_BLOCK => return Ok(Data::Hole(len)),
                    block => block,
                },
                _ => node.inode.data,
            };
            image.on_device(&node, block, len)
        }))
    }

    /// Which device has a range of blocks, all of it.
    fn on_device(&self, node: &Node, block: u32, len: u64) -> Result<Data> {
        let block = u64::from(block);
        let blocks = len.div_ceil(BLOCK);
        for (device, (first, count)) in (0..).zip(self.devices) {
            let inside = block.checked_sub(first);
            if let Some(inside) = inside.filter(|at| at.saturating_add(blocks) <= count) {
                return Ok(Data::Device {
                    device,
                    offset: inside * BLOCK,
                    len,
                });
            }
        }
        Err(damage(node.at(), "data outside the devices"))
    }
}

/// An attribute.
pub(super) struct Xattr<'a> {
    prefix: &'a [u8],
    name: &'a [u8],
    value: &'a [u8],
}

impl Xattr<'_> {
    /// How many bytes it takes.
    pub(super) fn len(&self) -> usize {
        XATTR_ENTRY_LEN + self.name.len() + self.value.len()
    }

    /// Its name, with the prefix.
    pub(super) fn full_name(&self) -> Vec<u8> {
        [self.prefix, self.name].concat()
    }
}

impl<'a> Block<'a> {
    /// How many bytes of it are used.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The entries of a block of a directory. Their names are valid; whether they are in order, and
    /// where they lead, is not checked.
    pub fn entries(self) -> Result<impl Iterator<Item = Result<Entry<'a>>> + use<'a>> {
        let Self { bytes, at } = self;
        let names = usize::from(u16_at(bytes, 8));
        if names < DIRENT_LEN || names % DIRENT_LEN != 0 || names >= bytes.len() {
            return Err(damage(at, "a block of a directory without entries"));
        }
        let count = names / DIRENT_LEN;
        Ok((0..count).map(move |number| {
            let wrong = |reason| damage(at + number * DIRENT_LEN, reason);
            let head = bytes.get(number * DIRENT_LEN..).unwrap_or_default();
            let dirent = Dirent::parse(head);
            let start = usize::from(dirent.name);
            let last = number + 1 == count;
            let end = if last {
                bytes.len()
            } else {
                usize::from(u16_at(head, DIRENT_LEN + 8))
            };
            let name = bytes.get(start..end).filter(|_| start >= names);
            let mut name = name.ok_or(wrong("names that do not follow each other"))?;
            if last && let Some(end) = name.iter().position(|&b| b == 0) {
                name = &name[..end];
            }
            if name.is_empty() || name.len() > MAX_NAME || name.contains(&0) || name.contains(&b'/')
            {
                return Err(wrong("an invalid name"));
            }
            if head.get(11) != Some(&0) {
                return Err(wrong("an entry with unknown fields"));
            }
            Ok(Entry {
                name,
                nid: dirent.nid,
                kind: dirent.kind,
            })
        }))
    }
}
