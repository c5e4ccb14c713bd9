//! The structures of BFC v1, as FORMAT.md defines them: only bytes and fields. All integers are
//! little-endian, all structures packed.

/// Length of the header, bytes.
pub const HEADER_LEN: usize = 4096;
/// How much of the header one write changes, bytes: a sector, which a disk writes whole or not at
/// all.
pub const SECTOR: usize = 512;
/// Length of an object header without its name, bytes.
pub const OBJECT_LEN: usize = 40;
/// Length of an index entry after its path, bytes.
pub const ENTRY_LEN: usize = 48;
/// Length of the footer, bytes.
pub const FOOTER_LEN: usize = 56;
/// Longest path, bytes: in the index, and that content is sealed with.
pub const MAX_PATH: usize = 65_535;
/// An object's header and name are padded to a multiple of this, and so is a symlink's target.
pub const ALIGN: u64 = 16;

/// First bytes of a file.
pub const HEADER_MAGIC: [u8; 8] = *b"BFCFv1\0\0";
/// First bytes of a footer.
pub const FOOTER_START: [u8; 8] = *b"BFCFIDX\0";
/// Last bytes of a footer, and so of a file.
pub const FOOTER_END: [u8; 8] = *b"BFCFEND\0";

/// `features` bit: some content is compressed with zstd. Not reliable: decide by each entry.
pub const FEATURE_ZSTD: u64 = 1;
/// `features` bit: some content is encrypted. Not reliable: decide by each entry.
pub const FEATURE_AEAD: u64 = 2;

/// File-type bits of `mode`.
pub const S_IFMT: u32 = 0o170_000;
/// Regular file.
pub const S_IFREG: u32 = 0o100_000;
/// Directory.
pub const S_IFDIR: u32 = 0o040_000;
/// Symbolic link.
pub const S_IFLNK: u32 = 0o120_000;
/// Character device.
pub const S_IFCHR: u32 = 0o020_000;
/// Block device.
pub const S_IFBLK: u32 = 0o060_000;
/// Fifo.
pub const S_IFIFO: u32 = 0o010_000;
/// Socket.
pub const S_IFSOCK: u32 = 0o140_000;

/// Compression of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Stored as it is.
    #[default]
    None,
    /// zstd frames, one or several, skippable ones included.
    Zstd,
}

impl Compression {
    /// From the number in the file.
    pub fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            0 => Some(Self::None),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The number in the file.
    pub fn raw(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Zstd => 1,
        }
    }
}

/// Encryption of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encryption {
    /// Not encrypted.
    #[default]
    None,
    /// v1: `nonce(12) || ciphertext || tag(16)` over the whole (compressed) content,
    /// ChaCha20-Poly1305, the path as associated data.
    Whole,
    /// This project's: every frame sealed on its own (FORMAT.md, "Encrypted frames").
    Frames,
}

impl Encryption {
    /// From the number in the file.
    pub fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            0 => Some(Self::None),
            1 => Some(Self::Whole),
            2 => Some(Self::Frames),
            _ => None,
        }
    }

    /// The number in the file.
    pub fn raw(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Whole => 1,
            Self::Frames => 2,
        }
    }
}

pub(crate) fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

pub(crate) fn u32_at(b: &[u8], at: usize) -> u32 {
    let mut a = [0; 4];
    a.copy_from_slice(&b[at..at + 4]);
    u32::from_le_bytes(a)
}

pub(crate) fn u64_at(b: &[u8], at: usize) -> u64 {
    let mut a = [0; 8];
    a.copy_from_slice(&b[at..at + 8]);
    u64::from_le_bytes(a)
}

pub(crate) fn array_at<const N: usize>(b: &[u8], at: usize) -> [u8; N] {
    let mut a = [0; N];
    a.copy_from_slice(&b[at..at + N]);
    a
}

/// `len` rounded up to a multiple of [`ALIGN`].
pub fn align(len: u64) -> u64 {
    len.next_multiple_of(ALIGN)
}

/// The file's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// CRC over the bytes 12..4096, in the file's flavour.
    pub crc: u32,
    /// Block size that the writer was given; readers ignore it.
    pub block_size: u32,
    /// Feature bits; unknown ones are accepted.
    pub features: u64,
    /// The image's UUID.
    pub uuid: [u8; 16],
    /// Salt for the password; Argon2id uses the first 16 bytes.
    pub salt: [u8; 32],
    /// Length of the image, bytes; everything after it is ignored. 0 if the header does not give
    /// it: the image then ends with the file.
    pub committed: u64,
    /// How often the image was written: 1 when it is new, one more with each append. 0 when the
    /// header does not say where the image ends.
    pub generation: u64,
}

impl Header {
    /// The fields of the bytes; the magic and the CRC are the caller's to check.
    pub fn parse(b: &[u8; HEADER_LEN]) -> Self {
        Self {
            crc: u32_at(b, 8),
            block_size: u32_at(b, 12),
            features: u64_at(b, 16),
            uuid: array_at(b, 24),
            salt: array_at(b, 40),
            committed: u64_at(b, 72),
            generation: u64_at(b, 80),
        }
    }

    /// Changes committed length and generation in a header's bytes, which keep all else; only the
    /// first [`SECTOR`] bytes change.
    pub fn commit(
        b: &mut [u8; HEADER_LEN],
        flavour: crate::crc::Flavour,
        committed: u64,
        generation: u64,
    ) {
        b[72..80].copy_from_slice(&committed.to_le_bytes());
        b[80..88].copy_from_slice(&generation.to_le_bytes());
        let crc = flavour.crc(&b[12..]);
        b[8..12].copy_from_slice(&crc.to_le_bytes());
    }

    /// The bytes, with the CRC computed in the raw flavour.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut b = [0; HEADER_LEN];
        b[..8].copy_from_slice(&HEADER_MAGIC);
        b[12..16].copy_from_slice(&self.block_size.to_le_bytes());
        b[16..24].copy_from_slice(&self.features.to_le_bytes());
        b[24..40].copy_from_slice(&self.uuid);
        b[40..72].copy_from_slice(&self.salt);
        b[72..80].copy_from_slice(&self.committed.to_le_bytes());
        b[80..88].copy_from_slice(&self.generation.to_le_bytes());
        let crc = crate::crc::Flavour::Raw.crc(&b[12..]);
        b[8..12].copy_from_slice(&crc.to_le_bytes());
        b
    }
}

/// Type of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectType {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link; its content is the target.
    Symlink,
}

/// The fixed part of an object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObjectHeader {
    /// 1 file, 2 directory, 3 symlink.
    pub kind: u8,
    /// Compression, see [`Compression`].
    pub comp: u8,
    /// Encryption, see [`Encryption`].
    pub enc: u8,
    /// Length of the name that follows, bytes.
    pub name_len: u16,
    /// Type and permission bits.
    pub mode: u32,
    /// Modification time, nanoseconds since 1970.
    pub mtime_ns: u64,
    /// Length of the content, bytes.
    pub orig_size: u64,
    /// Length of the content as stored, bytes.
    pub stored_size: u64,
    /// CRC of the content before compression and encryption.
    pub crc: u32,
}

impl ObjectHeader {
    /// The fields of the bytes.
    pub fn parse(b: &[u8; OBJECT_LEN]) -> Self {
        Self {
            kind: b[0],
            comp: b[1],
            enc: b[2],
            name_len: u16_at(b, 4),
            mode: u32_at(b, 8),
            mtime_ns: u64_at(b, 12),
            orig_size: u64_at(b, 20),
            stored_size: u64_at(b, 28),
            crc: u32_at(b, 36),
        }
    }

    /// The bytes.
    pub fn encode(&self) -> [u8; OBJECT_LEN] {
        let mut b = [0; OBJECT_LEN];
        b[0] = self.kind;
        b[1] = self.comp;
        b[2] = self.enc;
        b[4..6].copy_from_slice(&self.name_len.to_le_bytes());
        b[8..12].copy_from_slice(&self.mode.to_le_bytes());
        b[12..20].copy_from_slice(&self.mtime_ns.to_le_bytes());
        b[20..28].copy_from_slice(&self.orig_size.to_le_bytes());
        b[28..36].copy_from_slice(&self.stored_size.to_le_bytes());
        b[36..40].copy_from_slice(&self.crc.to_le_bytes());
        b
    }

    /// The header of a file's object without a name, mode or time: only the index's say of these
    /// counts.
    pub(crate) fn of_file() -> Self {
        Self {
            kind: 1,
            ..Self::default()
        }
    }

    /// Checks the fields that the index has as well; `obj_size` is the length of the whole object.
    /// How many bytes of it follow the content, or what is wrong.
    pub(crate) fn check(
        &self,
        (orig_size, crc): (u64, u32),
        (comp, enc): (u32, u32),
        obj_size: u64,
    ) -> Result<u64, &'static str> {
        if self.orig_size != orig_size || self.crc != crc {
            return Err("the object's header contradicts the index in size or checksum");
        }
        if u32::from(self.comp) != comp || u32::from(self.enc) != enc {
            return Err("the object's header contradicts the index in compression or encryption");
        }
        let end = self.content_offset().checked_add(self.stored_size);
        end.and_then(|end| obj_size.checked_sub(end))
            .ok_or("the content does not fit its object")
    }

    /// Distance from the start of the object to its content, bytes.
    pub fn content_offset(&self) -> u64 {
        align(OBJECT_LEN as u64 + u64::from(self.name_len))
    }
}

/// An entry of the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry<'a> {
    /// The path, relative to the root, as the file has it.
    pub path: &'a [u8],
    /// Offset of the object in the file.
    pub obj_offset: u64,
    /// Length of the object with header, name and padding, bytes.
    pub obj_size: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Modification time, nanoseconds since 1970.
    pub mtime_ns: u64,
    /// Compression, see [`Compression`].
    pub comp: u32,
    /// Encryption, see [`Encryption`].
    pub enc: u32,
    /// Length of the content, bytes.
    pub orig_size: u64,
    /// CRC of the content before compression and encryption.
    pub crc: u32,
}

impl<'a> IndexEntry<'a> {
    /// The fields of the [`ENTRY_LEN`] bytes after `path`.
    pub fn parse(path: &'a [u8], b: &[u8; ENTRY_LEN]) -> Self {
        Self {
            path,
            obj_offset: u64_at(b, 0),
            obj_size: u64_at(b, 8),
            mode: u32_at(b, 16),
            mtime_ns: u64_at(b, 20),
            comp: u32_at(b, 28),
            enc: u32_at(b, 32),
            orig_size: u64_at(b, 36),
            crc: u32_at(b, 44),
        }
    }

    /// Appends the entry's bytes, path length and path included, to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        #[allow(clippy::cast_possible_truncation)] // a path is at most 65,535 bytes
        out.extend_from_slice(&(self.path.len() as u32).to_le_bytes());
        out.extend_from_slice(self.path);
        out.extend_from_slice(&self.obj_offset.to_le_bytes());
        out.extend_from_slice(&self.obj_size.to_le_bytes());
        out.extend_from_slice(&self.mode.to_le_bytes());
        out.extend_from_slice(&self.mtime_ns.to_le_bytes());
        out.extend_from_slice(&self.comp.to_le_bytes());
        out.extend_from_slice(&self.enc.to_le_bytes());
        out.extend_from_slice(&self.orig_size.to_le_bytes());
        out.extend_from_slice(&self.crc.to_le_bytes());
    }
}

/// The file's last bytes: where the index is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// Length of the index blob, bytes.
    pub index_size: u64,
    /// CRC of the index blob.
    pub index_crc: u32,
    /// Offset of the index blob in the file.
    pub index_offset: u64,
}

impl Footer {
    /// Parses the bytes, if both magics are present.
    pub fn parse(b: &[u8; FOOTER_LEN]) -> Option<Self> {
        (b[..8] == FOOTER_START && b[48..] == FOOTER_END).then(|| Self {
            index_size: u64_at(b, 8),
            index_crc: u32_at(b, 16),
            index_offset: u64_at(b, 20),
        })
    }

    /// The bytes.
    pub fn encode(&self) -> [u8; FOOTER_LEN] {
        let mut b = [0; FOOTER_LEN];
        b[..8].copy_from_slice(&FOOTER_START);
        b[8..16].copy_from_slice(&self.index_size.to_le_bytes());
        b[16..20].copy_from_slice(&self.index_crc.to_le_bytes());
        b[20..28].copy_from_slice(&self.index_offset.to_le_bytes());
        b[48..].copy_from_slice(&FOOTER_END);
        b
    }
}
