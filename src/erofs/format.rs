//! The structures of EROFS on disk: only bytes and fields.
//!
//! Source: Linux, `fs/erofs/erofs_fs.h`, and Documentation/filesystems/erofs.rst. Where a rule is
//! in the kernel's code only, the function that has it is named. All integers are little-endian.
//! Only what this program writes is here: no compression, 4 KiB blocks, two extra devices.

use bfc::format::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK};

/// Length of a block, bytes (`blkszbits` 12).
pub const BLOCK_LEN: usize = 4096;
/// [`BLOCK_LEN`] for computing with offsets.
pub const BLOCK: u64 = BLOCK_LEN as u64;
/// Binary logarithm of [`BLOCK`].
pub const BLOCK_LOG2: u8 = 12;
/// Where the super block is in the file (`EROFS_SUPER_OFFSET`).
pub const SUPER_OFFSET: usize = 1024;
/// Length of the super block without extension slots.
pub const SUPER_LEN: usize = 128;
/// Magic number of the super block (`EROFS_SUPER_MAGIC_V1`, linux/magic.h).
pub const MAGIC: u32 = 0xe0f5_e1e2;
/// `feature_incompat`: files of chunks.
pub const INCOMPAT_CHUNKED_FILE: u32 = 0x4;
/// `feature_incompat`: there is a table of extra devices.
pub const INCOMPAT_DEVICE_TABLE: u32 = 0x8;

/// How many extra devices there are.
pub const DEVICE_COUNT: u16 = 2;
/// Length of a slot of the device table.
pub const DEVICE_SLOT_LEN: usize = 128;
/// Where the device table is, in slots.
pub const DEVICE_SLOT: u16 = 16;
/// Longest file system, blocks: block addresses have 32 bits, and the last means "none".
pub const MAX_BLOCKS: u64 = u32::MAX as u64;

/// The number of an inode (nid) is its offset from block `meta_blkaddr`, in units of this.
pub const INODE_SLOT_LEN: usize = 32;
/// [`INODE_SLOT_LEN`] for computing with offsets.
pub const INODE_SLOT: u64 = INODE_SLOT_LEN as u64;
/// Length of a short inode (`struct erofs_inode_compact`).
pub const SHORT_INODE_LEN: usize = 32;
/// Length of a long inode (`struct erofs_inode_extended`).
pub const LONG_INODE_LEN: usize = 64;
/// `i_format`: the inode is long.
pub const FORMAT_LONG: u16 = 1;

/// Length of the header of an inode's extended attributes (`struct erofs_xattr_ibody_header`).
pub const XATTR_HEADER_LEN: usize = 12;
/// Length of an attribute's entry, without its name and value.
pub const XATTR_ENTRY_LEN: usize = 4;
/// Entries begin at multiples of this; the number of a shared one is its offset in such units.
pub const XATTR_ALIGN: usize = 4;
/// Most shared attributes of an inode (`h_shared_count`).
pub const MAX_SHARED_XATTRS: usize = 255;
/// Longest value of an attribute, bytes (`e_value_size`).
pub const MAX_XATTR_VALUE: usize = u16::MAX as usize;
/// Longest name of an attribute, with its prefix (`XATTR_NAME_MAX`, linux/limits.h).
pub const MAX_XATTR_NAME: usize = 255;

/// Length of a directory entry, without its name (`struct erofs_dirent`).
pub const DIRENT_LEN: usize = 12;
/// Longest name (`EROFS_NAME_LEN`).
pub const MAX_NAME: usize = 255;
/// Longest target of a symlink, bytes: `page_get_link` of fs/namei.c ends it after a page.
pub const MAX_TARGET: u64 = BLOCK - 1;

/// A chunk that is a hole (`EROFS_NULL_ADDR`).
pub const NULL_BLOCK: u32 = u32::MAX;
/// Length of the address of a chunk (`EROFS_BLOCK_MAP_ENTRY_SIZE`).
pub const CHUNK_ADDRESS_LEN: usize = 4;
/// Largest binary logarithm of the blocks of a chunk (`EROFS_CHUNK_FORMAT_BLKBITS_MASK`).
pub const MAX_CHUNK_BLOCKS_LOG2: u8 = 31;

fn array<const N: usize>(b: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    if let Some(b) = at.checked_add(N).and_then(|end| b.get(at..end)) {
        out.copy_from_slice(b);
    }
    out
}

/// The number at an offset; 0 outside the bytes.
pub(super) fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(b, at))
}

/// As [`u16_at`].
pub(super) fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(b, at))
}

/// As [`u16_at`].
pub(super) fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(b, at))
}

/// The super block (`struct erofs_super_block`). Fields that are not here are fixed: no checksum,
/// `feature_compat` 0, `meta_blkaddr` 0; `epoch` and `fixed_nsec` are 0, so that the time of a
/// short inode, seconds past them, has the range of 1970 to 2106.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuperBlock {
    /// Number of the root's inode.
    pub root_nid: u16,
    /// How many inodes there are.
    pub inodes: u64,
    /// Length of the metadata, blocks.
    pub blocks: u32,
    /// First block of the shared attributes.
    pub xattr_block: u32,
    /// The file system's UUID, by which overlayfs tells lowers apart.
    pub uuid: [u8; 16],
    /// Features that a reader must know.
    pub incompat: u32,
    /// How many extra devices there are.
    pub devices: u16,
}

impl SuperBlock {
    /// The fields of the bytes; those that are fixed are not looked at.
    pub fn parse(b: &[u8; SUPER_LEN]) -> Self {
        Self {
            root_nid: u16_at(b, 14),
            inodes: u64_at(b, 16),
            blocks: u32_at(b, 36),
            xattr_block: u32_at(b, 44),
            uuid: array(b, 48),
            incompat: u32_at(b, 80),
            devices: u16_at(b, 86),
        }
    }

    /// The bytes.
    pub fn encode(&self) -> [u8; SUPER_LEN] {
        let mut b = [0; SUPER_LEN];
        b[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        b[12] = BLOCK_LOG2;
        b[14..16].copy_from_slice(&self.root_nid.to_le_bytes());
        b[16..24].copy_from_slice(&self.inodes.to_le_bytes());
        b[36..40].copy_from_slice(&self.blocks.to_le_bytes());
        b[44..48].copy_from_slice(&self.xattr_block.to_le_bytes());
        b[48..64].copy_from_slice(&self.uuid);
        b[80..84].copy_from_slice(&self.incompat.to_le_bytes());
        b[86..88].copy_from_slice(&self.devices.to_le_bytes());
        b[88..90].copy_from_slice(&DEVICE_SLOT.to_le_bytes());
        b
    }
}

/// A slot of the device table (`struct erofs_deviceslot`). Devices lie in one address space behind
/// the metadata, from `first` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceSlot {
    /// Number of the device, which the tag names: `erofs_init_device` refuses an empty one.
    pub number: u8,
    /// Length of the device, blocks.
    pub blocks: u32,
    /// Its first block in the common address space.
    pub first: u32,
}

impl DeviceSlot {
    /// The bytes.
    pub fn encode(&self) -> [u8; DEVICE_SLOT_LEN] {
        let mut b = [0; DEVICE_SLOT_LEN];
        b[0] = b'd';
        b[1] = b'0'.saturating_add(self.number);
        b[64..68].copy_from_slice(&self.blocks.to_le_bytes());
        b[68..72].copy_from_slice(&self.first.to_le_bytes());
        b
    }
}

/// Where the data of an inode are (`i_format`, bits 1 to 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataLayout {
    /// In consecutive blocks.
    Flat = 0,
    /// In consecutive blocks, and what does not fill the last one behind the inode and its
    /// attributes, in one block with their end.
    Inline = 2,
    /// In chunks, whose addresses are behind the inode and its attributes.
    Chunks = 4,
}

impl DataLayout {
    fn from_raw(raw: u16) -> Option<Self> {
        [Self::Flat, Self::Inline, Self::Chunks]
            .into_iter()
            .find(|layout| *layout as u16 == raw)
    }
}

/// An inode, short or long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// Where its data are.
    pub layout: DataLayout,
    /// Length of its extended attributes, header included, bytes: 0, or 12 and a multiple of 4.
    pub xattrs: usize,
    /// Type and permission bits, as in `st_mode`.
    pub mode: u16,
    /// Link count.
    pub nlink: u32,
    /// Length, bytes.
    pub size: u64,
    /// First block, device number ([`encode_device`]), or binary logarithm of the blocks of a
    /// chunk (`i_u`).
    pub data: u32,
    /// Its number in the image; the kernel does not use it.
    pub number: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970.
    pub mtime_s: i64,
    /// Modification time, nanoseconds past the second.
    pub mtime_ns: u32,
}

impl Inode {
    /// Whether a short inode has fields for all of it. Before Linux 6.15, the time of a short inode
    /// is the super block's.
    pub fn is_short(&self) -> bool {
        self.nlink <= u16::MAX.into()
            && self.uid <= u16::MAX.into()
            && self.gid <= u16::MAX.into()
            && u32::try_from(self.size).is_ok()
            && u32::try_from(self.mtime_s).is_ok()
            && self.mtime_ns == 0
    }

    /// Length of its attributes as the inode says it (`i_xattr_icount`).
    fn xattr_count(&self) -> u16 {
        match self.xattrs.checked_sub(XATTR_HEADER_LEN) {
            #[allow(clippy::cast_possible_truncation)] // at most 255 of 4 bytes
            Some(more) => (more / XATTR_ALIGN + 1) as u16,
            None => 0,
        }
    }

    /// The bytes of a short inode, for what [`Inode::is_short`].
    #[allow(clippy::cast_possible_truncation)] // as is_short says
    pub fn encode_short(&self) -> [u8; SHORT_INODE_LEN] {
        let mut b = [0; SHORT_INODE_LEN];
        b[0..2].copy_from_slice(&((self.layout as u16) << 1).to_le_bytes());
        b[2..4].copy_from_slice(&self.xattr_count().to_le_bytes());
        b[4..6].copy_from_slice(&self.mode.to_le_bytes());
        b[6..8].copy_from_slice(&(self.nlink as u16).to_le_bytes());
        b[8..12].copy_from_slice(&(self.size as u32).to_le_bytes());
        b[12..16].copy_from_slice(&(self.mtime_s as u32).to_le_bytes());
        b[16..20].copy_from_slice(&self.data.to_le_bytes());
        b[20..24].copy_from_slice(&self.number.to_le_bytes());
        b[24..26].copy_from_slice(&(self.uid as u16).to_le_bytes());
        b[26..28].copy_from_slice(&(self.gid as u16).to_le_bytes());
        b
    }

    /// The bytes of a long inode.
    pub fn encode_long(&self) -> [u8; LONG_INODE_LEN] {
        let mut b = [0; LONG_INODE_LEN];
        b[0..2].copy_from_slice(&((self.layout as u16) << 1 | FORMAT_LONG).to_le_bytes());
        b[2..4].copy_from_slice(&self.xattr_count().to_le_bytes());
        b[4..6].copy_from_slice(&self.mode.to_le_bytes());
        b[8..16].copy_from_slice(&self.size.to_le_bytes());
        b[16..20].copy_from_slice(&self.data.to_le_bytes());
        b[20..24].copy_from_slice(&self.number.to_le_bytes());
        b[24..28].copy_from_slice(&self.uid.to_le_bytes());
        b[28..32].copy_from_slice(&self.gid.to_le_bytes());
        b[32..40].copy_from_slice(&self.mtime_s.to_le_bytes());
        b[40..44].copy_from_slice(&self.mtime_ns.to_le_bytes());
        b[44..48].copy_from_slice(&self.nlink.to_le_bytes());
        b
    }

    /// The inode at the beginning of the bytes, and its length; `None` if it ends behind them, has
    /// an unknown format, or bits that are never set.
    pub fn parse(b: &[u8]) -> Option<(Self, usize)> {
        let format = u16_at(b, 0);
        let is_long = format & FORMAT_LONG != 0;
        let len = if is_long {
            LONG_INODE_LEN
        } else {
            SHORT_INODE_LEN
        };
        let b = b.get(..len)?;
        let xattrs = match u16_at(b, 2) {
            0 => 0,
            count => XATTR_HEADER_LEN + (usize::from(count) - 1) * XATTR_ALIGN,
        };
        let inode = Self {
            layout: DataLayout::from_raw(format >> 1)?,
            xattrs,
            mode: u16_at(b, 4),
            nlink: if is_long {
                u32_at(b, 44)
            } else {
                u16_at(b, 6).into()
            },
            size: if is_long {
                u64_at(b, 8)
            } else {
                u32_at(b, 8).into()
            },
            data: u32_at(b, 16),
            number: u32_at(b, 20),
            uid: if is_long {
                u32_at(b, 24)
            } else {
                u16_at(b, 24).into()
            },
            gid: if is_long {
                u32_at(b, 28)
            } else {
                u16_at(b, 26).into()
            },
            mtime_s: if is_long {
                u64_at(b, 32).cast_signed()
            } else {
                u32_at(b, 12).into()
            },
            mtime_ns: if is_long { u32_at(b, 40) } else { 0 },
        };
        let is_exact = if is_long {
            u16_at(b, 6) == 0 && u64_at(b, 48) == 0 && u64_at(b, 56) == 0
        } else {
            u32_at(b, 28) == 0
        };
        is_exact.then_some((inode, len))
    }
}

/// A device number as an inode has it (`new_encode_dev` of linux/kdev_t.h); `None` beyond 12 bits
/// of major number and 20 of minor.
pub fn encode_device(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20)
        .then_some((minor & 0xff) | major << 8 | (minor & !0xff) << 12)
}

/// The type of an inode as a directory entry has it (`FT_REG_FILE` and its like, linux/fs_types.h);
/// `None` for a mode without one.
pub fn file_type(mode: u32) -> Option<u8> {
    Some(match mode & S_IFMT {
        S_IFREG => 1,
        S_IFDIR => 2,
        S_IFCHR => 3,
        S_IFBLK => 4,
        S_IFIFO => 5,
        S_IFSOCK => 6,
        S_IFLNK => 7,
        _ => return None,
    })
}

/// A directory entry (`struct erofs_dirent`). A block of a directory has the entries, sorted by
/// name, and behind them their names; `.` and `..` have their places among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dirent {
    /// Number of the inode.
    pub nid: u64,
    /// Offset of the name in the block.
    pub name: u16,
    /// Its type, see [`file_type`].
    pub kind: u8,
}

impl Dirent {
    /// The entry at the beginning of the bytes, of which there are enough.
    pub fn parse(b: &[u8]) -> Self {
        Self {
            nid: u64_at(b, 0),
            name: u16_at(b, 8),
            kind: array::<1>(b, 10)[0],
        }
    }

    /// The bytes.
    pub fn encode(&self) -> [u8; DIRENT_LEN] {
        let mut b = [0; DIRENT_LEN];
        b[0..8].copy_from_slice(&self.nid.to_le_bytes());
        b[8..10].copy_from_slice(&self.name.to_le_bytes());
        b[10] = self.kind;
        b
    }
}

/// Prefixes of the names of attributes, and the index by which an entry names each
/// (`EROFS_XATTR_INDEX_USER` and its like). The names of access control lists are prefixes, too,
/// with nothing behind them.
pub const XATTR_PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Prefix of the attributes by which overlayfs marks what is in its layers (fs/overlayfs). An image
/// must not have overlayfs take its attributes for marks, so metadata have none of them.
pub const OVERLAY_MARKS: &[u8] = b"trusted.overlay.";

/// The index of an attribute's prefix, and the rest of its name; `None` if no entry can have it.
pub fn split_xattr_name(name: &[u8]) -> Option<(u8, &[u8])> {
    let split = |(prefix, index): (&[u8], u8)| Some((index, name.strip_prefix(prefix)?));
    let (index, rest) = XATTR_PREFIXES.into_iter().find_map(split)?;
    let is_list = matches!(index, 2 | 3);
    (is_list == rest.is_empty() && name.len() <= MAX_XATTR_NAME && !rest.contains(&0))
        .then_some((index, rest))
}

/// An attribute's entry (`struct erofs_xattr_entry`); its name and value follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XattrEntry {
    /// Length of the name behind its prefix, bytes.
    pub name_len: u8,
    /// Index of the prefix, see [`XATTR_PREFIXES`].
    pub index: u8,
    /// Length of the value, bytes.
    pub value_len: u16,
}

impl XattrEntry {
    /// The entry at the beginning of the bytes, of which there are enough.
    pub fn parse(b: &[u8]) -> Self {
        let [name_len, index] = array(b, 0);
        Self {
            name_len,
            index,
            value_len: u16_at(b, 2),
        }
    }

    /// The bytes.
    pub fn encode(&self) -> [u8; XATTR_ENTRY_LEN] {
        let [low, high] = self.value_len.to_le_bytes();
        [self.name_len, self.index, low, high]
    }

    /// Length with name and value, without what fills it up to a multiple of [`XATTR_ALIGN`].
    pub fn len(&self) -> usize {
        XATTR_ENTRY_LEN + usize::from(self.name_len) + usize::from(self.value_len)
    }

    /// Never: the entry itself takes four bytes.
    pub fn is_empty(&self) -> bool {
        false
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn inodes_are_what_was_encoded() {
        let inode = Inode {
            layout: DataLayout::Inline,
            xattrs: 20,
            mode: 0o104_755,
            nlink: 3,
            size: 70_000,
            data: 9,
            number: 5,
            uid: 1000,
            gid: 65_535,
            mtime_s: 4_294_967_295,
            mtime_ns: 0,
        };
        assert!(inode.is_short());
        assert_eq!(Inode::parse(&inode.encode_short()), Some((inode, 32)));
        assert_eq!(Inode::parse(&inode.encode_long()), Some((inode, 64)));
        let old = Inode {
            mtime_s: -1,
            mtime_ns: 999_999_999,
            size: 1 << 40,
            ..inode
        };
        assert!(!old.is_short());
        assert_eq!(Inode::parse(&old.encode_long()), Some((old, 64)));
        assert_eq!(Inode::parse(&old.encode_long()[..63]), None);
        let mut bytes = old.encode_long();
        bytes[63] = 1;
        assert_eq!(Inode::parse(&bytes), None);
    }

    #[test]
    fn devices_are_encoded_as_the_kernel_decodes_them() {
        // new_decode_dev(): major = (dev & 0xfff00) >> 8, minor = (dev & 0xff) | ((dev >> 12) &
        // 0xfff00)
        for (major, minor) in [(8, 1), (259, 3), (0, 0), (4095, 0xf_ffff), (1, 300)] {
            let dev = encode_device(major, minor).unwrap();
            assert_eq!(
                (
                    (dev & 0xf_ff00) >> 8,
                    (dev & 0xff) | ((dev >> 12) & 0xf_ff00)
                ),
                (major, minor)
            );
        }
        assert_eq!(encode_device(4096, 0), None);
        assert_eq!(encode_device(0, 1 << 20), None);
    }

    #[test]
    fn attributes_that_no_entry_can_have_are_told_from_others() {
        assert_eq!(split_xattr_name(b"user.a"), Some((1, &b"a"[..])));
        assert_eq!(
            split_xattr_name(b"system.posix_acl_access"),
            Some((2, &b""[..]))
        );
        for name in [
            &b"system.posix_acl_access2"[..],
            b"system.nfs4_acl",
            b"user.",
            b"os2.a",
            b"user.a\0b",
        ] {
            assert_eq!(split_xattr_name(name), None, "{}", name.escape_ascii());
        }
    }
}
