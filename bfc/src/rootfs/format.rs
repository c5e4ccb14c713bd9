//! The structures of the rootfs section, as FORMAT.md defines them: only bytes and fields.

mod header;

use crate::error::{Error, Result};
use crate::format::{Compression, Encryption, S_IFDIR, S_IFMT, array_at, u16_at, u32_at, u64_at};

pub use header::{Locator, Region, SectionHeader};

/// Length of the locator, the last bytes of the index blob.
pub const LOCATOR_LEN: usize = 64;
/// First bytes of the locator.
pub const LOCATOR_MAGIC: [u8; 8] = *b"BFCROOTL";
/// First bytes of the section.
pub const SECTION_MAGIC: [u8; 8] = *b"BFCROOTF";
/// Length of the section's header.
pub const SECTION_HEADER_LEN: usize = 512;
/// The section begins at a multiple of this in the file.
pub const SECTION_ALIGN: u64 = 4096;
/// Length of an inode record.
pub const INODE_LEN: usize = 64;
/// Length of a dentry record.
pub const DENTRY_LEN: usize = 16;
/// Length of a content record.
pub const CONTENT_LEN: usize = 80;
/// Length of a frame record.
pub const FRAME_LEN: usize = 48;
/// Length of a layer record.
pub const LAYER_LEN: usize = 128;
/// Length of an entry of the list of dentries that lead to extended attributes.
pub const XATTR_DENTRY_LEN: usize = 8;
/// Longest such list, entries. It is for images where few inodes have attributes.
pub const MAX_XATTR_DENTRIES: usize = 1024;
/// Length of a BLAKE3, of chunks and frames.
pub const HASH_LEN: usize = 32;
/// Most layers.
pub const MAX_LAYERS: usize = 4096;
/// Longest frame, binary logarithm.
pub const MAX_FRAME_LOG2: u8 = 24;
/// Longest chunk, binary logarithm.
pub const MAX_CHUNK_LOG2: u8 = 24;
/// Shortest frame and chunk, binary logarithm.
pub const MIN_LOG2: u8 = 12;
/// Every region begins at a multiple of this in the section.
pub const REGION_ALIGN: usize = 128;

/// `incompat` bit: digests are whole, and the records that hold them as long as here.
pub const INCOMPAT_DIGEST_32: u64 = 1;
/// `incompat` bit: a dentry says which directory it is of, and a directory which dentry is its
/// name.
pub const INCOMPAT_ONE_NAME: u64 = 1 << 1;
/// `incompat` bit: the file's header has the committed length.
pub const INCOMPAT_COMMITTED: u64 = 1 << 2;
/// Incompatible feature bits of version 1.0: an image without one of them is older, an image with
/// another one is newer.
pub const INCOMPAT_1_0: u64 = INCOMPAT_DIGEST_32 | INCOMPAT_ONE_NAME | INCOMPAT_COMMITTED;
/// `compat` bit: every zstd frame ends in its content checksum.
pub const COMPAT_ZSTD_CHECKSUM: u64 = 1;

/// Most nanoseconds past a second.
pub const MAX_NANOSECONDS: u32 = 999_999_999;
/// Inode number of the root.
pub const ROOT: u32 = 1;

/// A BLAKE3.
pub type Hash = [u8; HASH_LEN];

/// The BLAKE3 of `bytes`.
pub fn hash(bytes: &[u8]) -> Hash {
    *blake3::hash(bytes).as_bytes()
}

/// The most that a piece of `len` original bytes takes when it is stored: compressed by zstd, which
/// may make it longer, and sealed. A frame's length at most [`MAX_FRAME_LOG2`] bounds it.
pub fn max_stored(len: u64) -> u64 {
    len.saturating_add(len / 128).saturating_add(256)
}

/// Whether a file system can show this name.
pub fn valid_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name != b"."
        && name != b".."
        && !name.contains(&b'/')
        && !name.contains(&0)
}

/// An inode record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Inode {
    /// Its number: its place among the records, plus one. Not in the record: the reader sets it.
    pub ino: u32,
    /// Type and permission bits, as in `st_mode`.
    pub mode: u32,
    /// Link count, as in `st_nlink`.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970.
    pub mtime_s: i64,
    /// Modification time, nanoseconds past the second, at most [`MAX_NANOSECONDS`].
    pub mtime_ns: u32,
    /// Offset of the attribute set in `xattrs`; 0 for none.
    pub xattr: u32,
    /// File: length in bytes. Symlink: length of the target. Directory: number of dentries.
    pub size: u64,
    /// File: number of the content. Symlink: offset of the target in `names`. Directory: number of
    /// its first dentry. Device: major number shifted left by 32, or minor number.
    pub data: u64,
    /// Directory: inode number of the parent (the root's is the root).
    pub parent: u32,
    /// Directory: number of the dentry that is its one name (the root's is 0).
    pub dentry: u32,
}

impl Inode {
    /// The fields of the bytes.
    pub fn parse(b: &[u8; INODE_LEN]) -> Self {
        Self {
            ino: 0,
            mode: u32_at(b, 0),
            nlink: u32_at(b, 4),
            uid: u32_at(b, 8),
            gid: u32_at(b, 12),
            mtime_s: u64_at(b, 16).cast_signed(),
            mtime_ns: u32_at(b, 24),
            xattr: u32_at(b, 28),
            size: u64_at(b, 32),
            data: u64_at(b, 40),
            parent: u32_at(b, 48),
            dentry: u32_at(b, 52),
        }
    }

    /// The bytes.
    pub fn encode(&self) -> [u8; INODE_LEN] {
        let mut b = [0; INODE_LEN];
        b[0..4].copy_from_slice(&self.mode.to_le_bytes());
        b[4..8].copy_from_slice(&self.nlink.to_le_bytes());
        b[8..12].copy_from_slice(&self.uid.to_le_bytes());
        b[12..16].copy_from_slice(&self.gid.to_le_bytes());
        b[16..24].copy_from_slice(&self.mtime_s.to_le_bytes());
        b[24..28].copy_from_slice(&self.mtime_ns.to_le_bytes());
        b[28..32].copy_from_slice(&self.xattr.to_le_bytes());
        b[32..40].copy_from_slice(&self.size.to_le_bytes());
        b[40..48].copy_from_slice(&self.data.to_le_bytes());
        b[48..52].copy_from_slice(&self.parent.to_le_bytes());
        b[52..56].copy_from_slice(&self.dentry.to_le_bytes());
        b
    }

    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        self.mode & S_IFMT == S_IFDIR
    }

    /// Device numbers (major, minor).
    pub fn rdev(&self) -> (u32, u32) {
        #[allow(clippy::cast_possible_truncation)] // the two halves
        ((self.data >> 32) as u32, self.data as u32)
    }
}

/// A dentry record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dentry {
    /// Its number: its place among the records, from 0. Not in the record: the reader sets it.
    pub number: u32,
    /// Inode number.
    pub ino: u32,
    /// Offset of the name in `names`.
    pub name: u32,
    /// Length of the name, bytes.
    pub name_len: u16,
    /// File type: bits 12..16 of the mode.
    pub kind: u8,
    /// Inode number of the directory that it is an entry of.
    pub dir: u32,
}

impl Dentry {
    /// The fields of the bytes.
    pub fn parse(b: &[u8; DENTRY_LEN]) -> Self {
        Self {
            number: 0,
            ino: u32_at(b, 0),
            name: u32_at(b, 4),
            name_len: u16_at(b, 8),
            kind: b[10],
            dir: u32_at(b, 12),
        }
    }

    /// The bytes.
    pub fn encode(&self) -> [u8; DENTRY_LEN] {
        let mut b = [0; DENTRY_LEN];
        b[0..4].copy_from_slice(&self.ino.to_le_bytes());
        b[4..8].copy_from_slice(&self.name.to_le_bytes());
        b[8..10].copy_from_slice(&self.name_len.to_le_bytes());
        b[10] = self.kind;
        b[12..16].copy_from_slice(&self.dir.to_le_bytes());
        b
    }
}

/// What the offset of a content points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// The stored bytes.
    #[default]
    Direct,
    /// A v1 object header, which has yet to be read. Only in sections that are built in memory.
    Object,
}

/// A content record: the bytes of a file, wherever it is linked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Content {
    /// Offset in the file, see [`Layout`].
    pub offset: u64,
    /// Length of the stored bytes.
    pub stored: u64,
    /// Length of the original bytes.
    pub size: u64,
    /// CRC of the original bytes, in the file's flavour.
    pub crc: u32,
    /// Compression.
    pub comp: Compression,
    /// Encryption.
    pub enc: Encryption,
    /// What `offset` points to.
    pub layout: Layout,
    /// Which of several images has the bytes. 0 on disk.
    pub source: u8,
    /// Number of the first frame record.
    pub first_frame: u32,
    /// How many frame records there are; 0 when the content is one piece.
    pub frames: u32,
    /// Offset of the path in `names`, for encrypted content: its associated data.
    pub path: u32,
    /// Length of that path.
    pub path_len: u32,
    /// BLAKE3 of the stored bytes, when the content is one piece.
    pub hash: Hash,
}

impl Content {
    /// The fields of the bytes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an unknown compression, encryption or layout.
    pub fn parse(b: &[u8; CONTENT_LEN]) -> Result<Self> {
        let unsupported =
            |what| Error::Unsupported(format!("a content record with unknown {what}"));
        Ok(Self {
            offset: u64_at(b, 0),
            stored: u64_at(b, 8),
            size: u64_at(b, 16),
            crc: u32_at(b, 24),
            comp: Compression::from_raw(u32::from(b[28]))
                .ok_or_else(|| unsupported("compression"))?,
            enc: Encryption::from_raw(u32::from(b[29])).ok_or_else(|| unsupported("encryption"))?,
            layout: match b[30] {
                0 => Layout::Direct,
                1 => Layout::Object,
                _ => return Err(unsupported("layout")),
            },
            source: b[31],
            first_frame: u32_at(b, 32),
            frames: u32_at(b, 36),
            path: u32_at(b, 40),
            path_len: u32_at(b, 44),
            hash: array_at(b, 48),
        })
    }

    /// The bytes.
    pub fn encode(&self) -> [u8; CONTENT_LEN] {
        let mut b = [0; CONTENT_LEN];
        b[0..8].copy_from_slice(&self.offset.to_le_bytes());
        b[8..16].copy_from_slice(&self.stored.to_le_bytes());
        b[16..24].copy_from_slice(&self.size.to_le_bytes());
        b[24..28].copy_from_slice(&self.crc.to_le_bytes());
        b[28] = self.comp.raw();
        b[29] = self.enc.raw();
        b[30] = self.layout as u8;
        b[31] = self.source;
        b[32..36].copy_from_slice(&self.first_frame.to_le_bytes());
        b[36..40].copy_from_slice(&self.frames.to_le_bytes());
        b[40..44].copy_from_slice(&self.path.to_le_bytes());
        b[44..48].copy_from_slice(&self.path_len.to_le_bytes());
        b[48..80].copy_from_slice(&self.hash);
        b
    }
}

/// A frame record: a piece of a content that is decoded on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Offset from the content's stored bytes.
    pub offset: u64,
    /// Length of the stored bytes.
    pub stored: u32,
    /// CRC of the original bytes, in the file's flavour.
    pub crc: u32,
    /// BLAKE3 of the stored bytes.
    pub hash: Hash,
}

impl Frame {
    /// The fields of the bytes.
    pub fn parse(b: &[u8; FRAME_LEN]) -> Self {
        Self {
            offset: u64_at(b, 0),
            stored: u32_at(b, 8),
            crc: u32_at(b, 12),
            hash: array_at(b, 16),
        }
    }

    /// The bytes.
    pub fn encode(&self) -> [u8; FRAME_LEN] {
        let mut b = [0; FRAME_LEN];
        b[0..8].copy_from_slice(&self.offset.to_le_bytes());
        b[8..12].copy_from_slice(&self.stored.to_le_bytes());
        b[12..16].copy_from_slice(&self.crc.to_le_bytes());
        b[16..48].copy_from_slice(&self.hash);
        b
    }
}

/// A layer record.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LayerRecord {
    /// SHA-256 of the uncompressed layer tar.
    pub diff_id: [u8; 32],
    /// The compressed skeleton, in `blobs`.
    pub skeleton: Region,
    /// Length of the skeleton when decompressed, bytes.
    pub skeleton_size: u64,
    /// Length of the layer tar, bytes.
    pub tar_size: u64,
    /// Number of content records of this layer and those below.
    pub contents_end: u32,
    /// Number of frame records of this layer and those below.
    pub frames_end: u32,
    /// Offset in the file behind the last object of this layer and those below.
    pub data_end: u64,
    /// `created_by` of the layer's history entry, in `blobs`.
    pub created_by: Region,
    /// How many entries the layer tar has.
    pub entries: u64,
}

impl LayerRecord {
    /// The fields of the bytes.
    pub fn parse(b: &[u8; LAYER_LEN]) -> Self {
        Self {
            diff_id: array_at(b, 0),
            skeleton: Region {
                offset: u64_at(b, 32),
                size: u64_at(b, 40),
            },
            skeleton_size: u64_at(b, 48),
            tar_size: u64_at(b, 56),
            contents_end: u32_at(b, 64),
            frames_end: u32_at(b, 68),
            data_end: u64_at(b, 72),
            created_by: Region {
                offset: u64_at(b, 80),
                size: u64_at(b, 88),
            },
            entries: u64_at(b, 96),
        }
    }

    /// The bytes.
    pub fn encode(&self) -> [u8; LAYER_LEN] {
        let mut b = [0; LAYER_LEN];
        b[0..32].copy_from_slice(&self.diff_id);
        b[32..40].copy_from_slice(&self.skeleton.offset.to_le_bytes());
        b[40..48].copy_from_slice(&self.skeleton.size.to_le_bytes());
        b[48..56].copy_from_slice(&self.skeleton_size.to_le_bytes());
        b[56..64].copy_from_slice(&self.tar_size.to_le_bytes());
        b[64..68].copy_from_slice(&self.contents_end.to_le_bytes());
        b[68..72].copy_from_slice(&self.frames_end.to_le_bytes());
        b[72..80].copy_from_slice(&self.data_end.to_le_bytes());
        b[80..88].copy_from_slice(&self.created_by.offset.to_le_bytes());
        b[88..96].copy_from_slice(&self.created_by.size.to_le_bytes());
        b[96..104].copy_from_slice(&self.entries.to_le_bytes());
        b
    }
}
