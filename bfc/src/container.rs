//! A BFC file: its header, its footer, and its v1 index.

use std::sync::Arc;

use crate::crc::Flavour;
use crate::error::{Error, Result};
use crate::format::{
    ENTRY_LEN, FOOTER_LEN, Footer, HEADER_LEN, HEADER_MAGIC, Header, IndexEntry, MAX_PATH,
    array_at, u32_at,
};
use crate::rootfs::format::{LOCATOR_LEN, Locator};
use crate::source::{ReadAt, read_exact_at, read_vec_at};

/// Largest index that is read, bytes: some ten million entries.
pub const MAX_INDEX: u64 = 1 << 30;
/// Length of the shortest file, bytes: header and footer.
const MIN_LEN: u64 = (HEADER_LEN + FOOTER_LEN) as u64;

/// An open BFC file.
#[derive(Clone)]
pub struct Container {
    source: Arc<dyn ReadAt>,
    len: u64,
    header: Header,
    header_bytes: Box<[u8; HEADER_LEN]>,
    flavour: Flavour,
    footer: Footer,
    torn: bool,
}

impl std::fmt::Debug for Container {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Container")
            .field("header", &self.header)
            .field("footer", &self.footer)
            .finish_non_exhaustive()
    }
}

impl Container {
    /// Opens a file: checks its header and finds its footer, at the length that the header gives,
    /// or at the end of the file if it gives none. Bytes after that are left from an interrupted
    /// write, and are ignored; [`Container::torn`] reports them.
    ///
    /// # Errors
    /// [`Error::NotBfc`], [`Error::HeaderCrc`], [`Error::CutOff`], [`Error::NoFooter`],
    /// [`Error::IndexBounds`], [`Error::Read`].
    pub fn open(source: Arc<dyn ReadAt>) -> Result<Self> {
        let len = || {
            source.len().map_err(|source| Error::Read {
                offset: 0,
                len: 0,
                source,
            })
        };
        let before = len()?;
        if before == 0 {
            return Err(Error::NotBfc("the file is empty"));
        }
        if before < 8 {
            return Err(Error::NotBfc("the file is shorter than a header"));
        }
        let mut magic = [0; 8];
        read_exact_at(&*source, &mut magic, 0)?;
        if magic != HEADER_MAGIC {
            return Err(Error::NotBfc("it does not begin with BFCFv1"));
        }
        if before < MIN_LEN {
            return Err(Error::NotBfc("the file is shorter than header and footer"));
        }
        let (header_bytes, flavour) = read_header(&*source)?;
        let header = Header::parse(&header_bytes);
        // Read again, because the file may have grown before the header was read.
        let found = len()?;
        let end = if header.committed == 0 {
            found
        } else {
            header.committed
        };
        if end > found {
            return Err(Error::CutOff {
                committed: end,
                found,
            });
        }
        if end < MIN_LEN {
            return Err(Error::NoFooter { end });
        }
        let footer = footer_at(&*source, end)?;
        Ok(Self {
            source,
            len: end,
            header,
            header_bytes: Box::new(header_bytes),
            flavour,
            footer,
            torn: found > end,
        })
    }

    /// The bytes of the file.
    pub fn source(&self) -> &Arc<dyn ReadAt> {
        &self.source
    }

    /// Length of the image, bytes: the file may be longer.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: a container has a header at least.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Which CRC the file's writer computed.
    pub fn flavour(&self) -> Flavour {
        self.flavour
    }

    /// The footer.
    pub fn footer(&self) -> Footer {
        self.footer
    }

    /// The header's bytes, including unknown fields.
    pub(crate) fn header_bytes(&self) -> &[u8; HEADER_LEN] {
        &self.header_bytes
    }

    /// Offset at which the image ends, if something follows it: the remains of an interrupted
    /// write, or an append in progress.
    pub fn torn(&self) -> Option<u64> {
        self.torn.then_some(self.len)
    }

    /// Reads the v1 index and checks its checksum.
    ///
    /// # Errors
    /// [`Error::IndexCrc`], [`Error::Index`], [`Error::TooLarge`], [`Error::Read`].
    pub fn index(&self) -> Result<Index> {
        if self.footer.index_size > MAX_INDEX {
            return Err(Error::TooLarge("the index (the limit is 1 GiB)"));
        }
        let blob = read_vec_at(
            &*self.source,
            self.footer.index_offset,
            self.footer.index_size,
        )?;
        if self.flavour.crc(&blob) != self.footer.index_crc {
            return Err(Error::IndexCrc);
        }
        Index::new(blob)
    }

    /// The locator of the rootfs section, if the image has one.
    ///
    /// # Errors
    /// [`Error::Section`] when it is damaged, [`Error::Outdated`] when the header does not say
    /// where the image ends, [`Error::Read`].
    pub fn locator(&self) -> Result<Option<Locator>> {
        let Some(at) = self.footer.index_size.checked_sub((8 + LOCATOR_LEN) as u64) else {
            return Ok(None);
        };
        let mut b = [0; LOCATOR_LEN];
        read_exact_at(&*self.source, &mut b, self.footer.index_offset + 8 + at)?;
        let locator = Locator::parse(&b, self.flavour, self.footer.index_offset)?;
        if locator.is_some() && self.header.committed == 0 {
            return Err(Error::Outdated);
        }
        Ok(locator)
    }
}

/// The header's bytes and their CRC flavour. On a file system without locking, reading the sector
/// may overlap with the write of an append. That writes it only once, so a mixture of both headers
/// is read again.
fn read_header(source: &dyn ReadAt) -> Result<([u8; HEADER_LEN], Flavour)> {
    /// How often the header is read in all, and how long it is waited between.
    const READS: u32 = 10;
    const BETWEEN: std::time::Duration = std::time::Duration::from_millis(1);
    let mut b = [0; HEADER_LEN];
    for read in 0..READS {
        if read > 0 {
            std::thread::sleep(BETWEEN);
        }
        read_exact_at(source, &mut b, 0)?;
        let crc = Header::parse(&b).crc;
        if let Some(flavour) = [Flavour::Raw, Flavour::Standard]
            .into_iter()
            .find(|f| f.crc(&b[12..]) == crc)
        {
            return Ok((b, flavour));
        }
    }
    Err(Error::HeaderCrc)
}

/// The footer that ends at `end`.
fn footer_at(source: &dyn ReadAt, end: u64) -> Result<Footer> {
    let mut b = [0; FOOTER_LEN];
    let start = end - FOOTER_LEN as u64;
    read_exact_at(source, &mut b, start)?;
    let footer = Footer::parse(&b).ok_or(Error::NoFooter { end })?;
    let index_end = footer.index_offset.checked_add(footer.index_size);
    if footer.index_offset < HEADER_LEN as u64
        || footer.index_size < 8
        || index_end.is_none_or(|e| e > start)
    {
        return Err(Error::IndexBounds {
            offset: footer.index_offset,
            size: footer.index_size,
            len: end,
        });
    }
    Ok(footer)
}

/// The v1 index in memory: every entry has been found to lie inside the blob.
#[derive(Debug)]
pub struct Index {
    blob: Vec<u8>,
    /// Where each entry begins.
    starts: Vec<usize>,
    /// Where the last entry ends.
    end: usize,
}

impl Index {
    /// Parses the blob. Memory depends on the actual entries, not on the claimed count.
    ///
    /// # Errors
    /// [`Error::Index`], [`Error::Unsupported`].
    pub fn new(blob: Vec<u8>) -> Result<Self> {
        let damaged = |entry, reason| Error::Index { entry, reason };
        if blob.len() < 8 {
            return Err(damaged(0, "no room for its header"));
        }
        let (version, count) = (u32_at(&blob, 0), u32_at(&blob, 4));
        if version != 1 {
            return Err(Error::Unsupported(format!("index version {version}")));
        }
        let mut starts = Vec::new();
        let mut at = 8;
        for entry in 0..count {
            if blob.len() - at < 4 {
                return Err(damaged(entry, "it ends outside the index"));
            }
            let path_len = u32_at(&blob, at) as usize;
            if path_len == 0 {
                return Err(damaged(entry, "its path is empty"));
            }
            if path_len > MAX_PATH {
                return Err(damaged(entry, "its path is longer than 65,535 bytes"));
            }
            let len = 4 + path_len + ENTRY_LEN;
            if blob.len() - at < len {
                return Err(damaged(entry, "it ends outside the index"));
            }
            starts.push(at);
            at += len;
        }
        Ok(Self {
            blob,
            starts,
            end: at,
        })
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// The entries, in the order of the file.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = IndexEntry<'_>> {
        self.starts.iter().map(|&at| {
            let path_end = at + 4 + u32_at(&self.blob, at) as usize;
            IndexEntry::parse(
                &self.blob[at + 4..path_end],
                &array_at(&self.blob, path_end),
            )
        })
    }

    /// The bytes behind the last entry.
    pub fn trailer(&self) -> &[u8] {
        &self.blob[self.end..]
    }
}
