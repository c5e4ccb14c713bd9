//! The locator of a section, and its header.

use super::{
    CONTENT_LEN, DENTRY_LEN, FRAME_LEN, HASH_LEN, INCOMPAT_1_0, INODE_LEN, LAYER_LEN, LOCATOR_LEN,
    LOCATOR_MAGIC, MAX_CHUNK_LOG2, MAX_FRAME_LOG2, MIN_LOG2, REGION_ALIGN, SECTION_ALIGN,
    SECTION_HEADER_LEN, SECTION_MAGIC,
};
use crate::crc::Flavour;
use crate::error::{Error, Result};
use crate::format::{array_at, u32_at, u64_at};

/// Position of the section, and the digest that covers everything in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Locator {
    /// Offset of the section in the file, a multiple of [`SECTION_ALIGN`].
    pub offset: u64,
    /// Length of the section, bytes.
    pub size: u64,
    /// BLAKE3 of the section's header: the image's root digest.
    pub root_digest: [u8; 32],
}

impl Locator {
    /// Parses a locator; `None` if the magic is missing. `limit` is the largest offset at which the
    /// section may end.
    ///
    /// # Errors
    /// [`Error::Section`] if the magic is present but the rest is wrong.
    pub fn parse(b: &[u8; LOCATOR_LEN], flavour: Flavour, limit: u64) -> Result<Option<Self>> {
        if b[..8] != LOCATOR_MAGIC {
            return Ok(None);
        }
        let damaged = |reason| Err(Error::Section { offset: 0, reason });
        if flavour.crc(&b[..56]) != u32_at(b, 56) {
            return damaged("its locator has a wrong checksum");
        }
        let locator = Self {
            offset: u64_at(b, 8),
            size: u64_at(b, 16),
            root_digest: array_at(b, 24),
        };
        if !locator.offset.is_multiple_of(SECTION_ALIGN)
            || locator.size < SECTION_HEADER_LEN as u64
            || locator
                .offset
                .checked_add(locator.size)
                .is_none_or(|end| end > limit)
        {
            return damaged("its locator points outside the file");
        }
        Ok(Some(locator))
    }

    /// The bytes.
    pub fn encode(&self, flavour: Flavour) -> [u8; LOCATOR_LEN] {
        let mut b = [0; LOCATOR_LEN];
        b[..8].copy_from_slice(&LOCATOR_MAGIC);
        b[8..16].copy_from_slice(&self.offset.to_le_bytes());
        b[16..24].copy_from_slice(&self.size.to_le_bytes());
        b[24..56].copy_from_slice(&self.root_digest);
        let crc = flavour.crc(&b[..56]);
        b[56..60].copy_from_slice(&crc.to_le_bytes());
        b
    }
}

/// A range of the section: offset and length, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Region {
    /// Offset in the section.
    pub offset: u64,
    /// Length.
    pub size: u64,
}

/// The section's header.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SectionHeader {
    /// Feature bits that a reader must know.
    pub incompat: u64,
    /// Feature bits that a reader may ignore.
    pub compat: u64,
    /// Length of the section, bytes.
    pub size: u64,
    /// Binary logarithm of the chunk length.
    pub chunk_log2: u8,
    /// Binary logarithm of the frame length.
    pub frame_log2: u8,
    /// Inode records; record 0 is inode 1, the root.
    pub inodes: Region,
    /// Dentry records, each directory's together and sorted by name.
    pub dentries: Region,
    /// Names and symlink targets.
    pub names: Region,
    /// Sets of extended attributes.
    pub xattrs: Region,
    /// Content records.
    pub contents: Region,
    /// Frame records.
    pub frames: Region,
    /// Layer records, lowest first.
    pub layers: Region,
    /// Layer skeletons and documents.
    pub blobs: Region,
    /// BLAKE3 of every chunk, header and this table left out.
    pub chunks: Region,
    /// OCI image configuration, JSON, in `blobs`; empty when there is none.
    pub config: Region,
    /// OCI manifest, JSON, in `blobs`; empty when there is none.
    pub manifest: Region,
    /// How many paths the v1 index does not show.
    pub unsaid: u64,
    /// An encrypted empty message, which detects a wrong key; all zero if nothing is encrypted.
    pub key_check: [u8; 28],
    /// BLAKE3 of the chunk table.
    pub table_hash: [u8; 32],
}

impl SectionHeader {
    /// The regions in the order of the header.
    fn regions(&self) -> [Region; 11] {
        [
            self.inodes,
            self.dentries,
            self.names,
            self.xattrs,
            self.contents,
            self.frames,
            self.layers,
            self.blobs,
            self.chunks,
            self.config,
            self.manifest,
        ]
    }

    /// Parses the header, and checks that every region lies inside the section and holds whole
    /// records.
    ///
    /// # Errors
    /// [`Error::Section`], [`Error::Outdated`] for sections older than version 1.0, and
    /// [`Error::Unsupported`] for an unknown incompatible feature.
    pub fn parse(b: &[u8; SECTION_HEADER_LEN]) -> Result<Self> {
        let damaged = |offset, reason| Err(Error::Section { offset, reason });
        if b[..8] != SECTION_MAGIC {
            return damaged(0, "no magic");
        }
        let region = |i: usize| Region {
            offset: u64_at(b, 40 + i * 16),
            size: u64_at(b, 48 + i * 16),
        };
        let header = Self {
            incompat: u64_at(b, 8),
            compat: u64_at(b, 16),
            size: u64_at(b, 24),
            chunk_log2: b[32],
            frame_log2: b[33],
            inodes: region(0),
            dentries: region(1),
            names: region(2),
            xattrs: region(3),
            contents: region(4),
            frames: region(5),
            layers: region(6),
            blobs: region(7),
            chunks: region(8),
            config: region(9),
            manifest: region(10),
            unsaid: u64_at(b, 216),
            key_check: array_at(b, 224),
            table_hash: array_at(b, 256),
        };
        if header.incompat & INCOMPAT_1_0 != INCOMPAT_1_0 {
            return Err(Error::Outdated);
        }
        let unknown = header.incompat & !INCOMPAT_1_0;
        if unknown != 0 {
            return Err(Error::Unsupported(format!(
                "incompatible features {unknown:#x} of the rootfs section"
            )));
        }
        if !(MIN_LOG2..=MAX_CHUNK_LOG2).contains(&header.chunk_log2)
            || !(MIN_LOG2..=MAX_FRAME_LOG2).contains(&header.frame_log2)
        {
            return damaged(32, "a chunk or frame length out of range");
        }
        for (i, r) in header.regions().into_iter().enumerate() {
            if r.offset
                .checked_add(r.size)
                .is_none_or(|end| end > header.size)
            {
                return damaged(40 + i as u64 * 16, "a region outside the section");
            }
        }
        let records = [
            (header.inodes, INODE_LEN),
            (header.dentries, DENTRY_LEN),
            (header.contents, CONTENT_LEN),
            (header.frames, FRAME_LEN),
            (header.layers, LAYER_LEN),
            (header.chunks, HASH_LEN),
        ];
        for (region, len) in records {
            if region.offset % REGION_ALIGN as u64 != 0 || region.size % len as u64 != 0 {
                return damaged(40, "a region of records that is not aligned");
            }
        }
        if header.inodes.size == 0 || header.inodes.size / INODE_LEN as u64 > u64::from(u32::MAX) {
            return damaged(40, "no inodes, or too many");
        }
        if header.dentries.size / DENTRY_LEN as u64 > u64::from(u32::MAX) {
            return damaged(56, "too many dentries");
        }
        if header.chunks.size / HASH_LEN as u64
            != header.chunks.offset.div_ceil(1 << header.chunk_log2)
            || header.chunks.offset + header.chunks.size != header.size
        {
            return damaged(40, "a chunk table that does not fit the section");
        }
        Ok(header)
    }

    /// The bytes.
    pub fn encode(&self) -> [u8; SECTION_HEADER_LEN] {
        let mut b = [0; SECTION_HEADER_LEN];
        b[..8].copy_from_slice(&SECTION_MAGIC);
        b[8..16].copy_from_slice(&self.incompat.to_le_bytes());
        b[16..24].copy_from_slice(&self.compat.to_le_bytes());
        b[24..32].copy_from_slice(&self.size.to_le_bytes());
        b[32] = self.chunk_log2;
        b[33] = self.frame_log2;
        for (i, r) in self.regions().into_iter().enumerate() {
            b[40 + i * 16..48 + i * 16].copy_from_slice(&r.offset.to_le_bytes());
            b[48 + i * 16..56 + i * 16].copy_from_slice(&r.size.to_le_bytes());
        }
        b[216..224].copy_from_slice(&self.unsaid.to_le_bytes());
        b[224..252].copy_from_slice(&self.key_check);
        b[256..288].copy_from_slice(&self.table_hash);
        b
    }
}
