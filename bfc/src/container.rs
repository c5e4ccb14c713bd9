//! A BFC file: its header, its footer (the last valid one), and its v1 index.

use std::sync::Arc;

use crate::crc::Flavour;
use crate::error::{Error, Result};
use crate::format::{ENTRY_LEN, Entry, FOOTER_END, FOOTER_LEN, Footer, HEADER_LEN, HEADER_MAGIC, Header, array_at, u32_at};
use crate::rootfs::format::{LOCATOR_LEN, Locator};
use crate::source::{ReadAt, read_exact_at};

/// Largest index that is read, bytes: some ten million entries.
pub const MAX_INDEX: u64 = 1 << 30;
/// How far back a previous footer is looked for, bytes.
const MAX_SCAN: u64 = 64 << 30;
/// How many footers with a wrong index checksum are passed over in that search.
const MAX_CANDIDATES: usize = 16;

/// An open BFC file.
#[derive(Clone)]
pub struct Container {
    source: Arc<dyn ReadAt>,
    len: u64,
    header: Header,
    flavour: Flavour,
    footer: Footer,
    torn: Option<u64>,
}

impl std::fmt::Debug for Container {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Container").field("header", &self.header).field("footer", &self.footer).finish_non_exhaustive()
    }
}

impl Container {
    /// Opens a file: checks its header, and finds its footer. When the file does not end in a footer (an append that was
    /// cut off), the last valid one before it is used, and [`Container::torn`] says so.
    ///
    /// # Errors
    /// [`Error::NotBfc`], [`Error::HeaderCrc`], [`Error::NoFooter`], [`Error::IndexBounds`], [`Error::Read`].
    pub fn open(source: Arc<dyn ReadAt>) -> Result<Self> {
        let len = source.len().map_err(|source| Error::Read { offset: 0, len: 0, source })?;
        if len == 0 {
            return Err(Error::NotBfc("the file is empty"));
        }
        let mut b = [0; HEADER_LEN];
        if len < 8 {
            return Err(Error::NotBfc("the file is shorter than a header"));
        }
        read_exact_at(&*source, &mut b[..8], 0)?;
        if b[..8] != HEADER_MAGIC {
            return Err(Error::NotBfc("it does not begin with BFCFv1"));
        }
        if len < (HEADER_LEN + FOOTER_LEN) as u64 {
            return Err(Error::NotBfc("the file is shorter than header and footer"));
        }
        read_exact_at(&*source, &mut b, 0)?;
        let header = Header::parse(&b);
        let flavour = [Flavour::Raw, Flavour::Standard].into_iter().find(|f| f.crc(&b[12..]) == header.crc).ok_or(Error::HeaderCrc)?;
        let (footer, torn) = match footer_at(&*source, len)? {
            Some(footer) => (footer, None),
            None => {
                let (footer, end) = previous_footer(&*source, len, flavour)?;
                (footer, Some(end))
            }
        };
        Ok(Self { source, len: torn.unwrap_or(len), header, flavour, footer, torn })
    }

    /// The bytes of the file.
    pub fn source(&self) -> &Arc<dyn ReadAt> {
        &self.source
    }

    /// Length of the file up to the end of the footer in use, bytes.
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

    /// The footer in use.
    pub fn footer(&self) -> Footer {
        self.footer
    }

    /// Where the footer in use ends, when something that is not a footer follows it.
    pub fn torn(&self) -> Option<u64> {
        self.torn
    }

    /// Reads the v1 index and checks its checksum.
    ///
    /// # Errors
    /// [`Error::IndexCrc`], [`Error::Index`], [`Error::TooLarge`], [`Error::Read`].
    pub fn index(&self) -> Result<Index> {
        if self.footer.index_size > MAX_INDEX {
            return Err(Error::TooLarge("the index (the limit is 1 GiB)"));
        }
        #[allow(clippy::cast_possible_truncation)] // bounded just above
        let mut blob = vec![0; self.footer.index_size as usize];
        read_exact_at(&*self.source, &mut blob, self.footer.index_offset)?;
        if self.flavour.crc(&blob) != self.footer.index_crc {
            return Err(Error::IndexCrc);
        }
        Index::new(blob)
    }

    /// The locator of the rootfs section, if the image has one.
    ///
    /// # Errors
    /// [`Error::Section`] when it is damaged, [`Error::Read`].
    pub fn locator(&self) -> Result<Option<Locator>> {
        let Some(at) = self.footer.index_size.checked_sub((8 + LOCATOR_LEN) as u64) else { return Ok(None) };
        let mut b = [0; LOCATOR_LEN];
        read_exact_at(&*self.source, &mut b, self.footer.index_offset + 8 + at)?;
        Locator::parse(&b, self.flavour, self.footer.index_offset)
    }
}

/// The footer that ends at `end`, if there is one that fits the file.
fn footer_at(source: &dyn ReadAt, end: u64) -> Result<Option<Footer>> {
    let mut b = [0; FOOTER_LEN];
    let start = end - FOOTER_LEN as u64;
    read_exact_at(source, &mut b, start)?;
    let Some(footer) = Footer::parse(&b) else { return Ok(None) };
    let index_end = footer.index_offset.checked_add(footer.index_size);
    if footer.index_offset < HEADER_LEN as u64 || footer.index_size < 8 || index_end.is_none_or(|e| e > start) {
        return Err(Error::IndexBounds { offset: footer.index_offset, size: footer.index_size, len: end });
    }
    Ok(Some(footer))
}

/// Looks backwards from `len` for a footer right behind an index whose checksum is right.
fn previous_footer(source: &dyn ReadAt, len: u64, flavour: Flavour) -> Result<(Footer, u64)> {
    const BLOCK: u64 = 1 << 20;
    let floor = len.saturating_sub(MAX_SCAN).max(HEADER_LEN as u64);
    let mut buf = Vec::new();
    let mut end = len;
    let mut candidates = 0;
    while end > floor {
        let start = end.saturating_sub(BLOCK).max(floor);
        // Magics that begin in this block may end behind it.
        let stop = (end + 7).min(len);
        #[allow(clippy::cast_possible_truncation)] // at most a block and 7 bytes
        buf.resize((stop - start) as usize, 0);
        read_exact_at(source, &mut buf, start)?;
        for at in (0..buf.len().saturating_sub(7)).rev() {
            if buf[at] != b'B' || buf[at..at + 8] != FOOTER_END {
                continue;
            }
            let footer_end = start + at as u64 + 8;
            if footer_end < (HEADER_LEN + FOOTER_LEN) as u64 {
                continue;
            }
            let Ok(Some(footer)) = footer_at(source, footer_end) else { continue };
            if footer.index_offset + footer.index_size != footer_end - FOOTER_LEN as u64 {
                continue;
            }
            if index_crc(source, footer, flavour)? == footer.index_crc {
                return Ok((footer, footer_end));
            }
            candidates += 1;
            if candidates == MAX_CANDIDATES {
                return Err(Error::NoFooter("too many damaged ones"));
            }
        }
        end = start;
    }
    Err(Error::NoFooter("the file is cut off or was never finished"))
}

fn index_crc(source: &dyn ReadAt, footer: Footer, flavour: Flavour) -> Result<u32> {
    let mut buf = vec![0; 1 << 16];
    let (mut crc, mut at, mut left) = (0, footer.index_offset, footer.index_size);
    while left > 0 {
        #[allow(clippy::cast_possible_truncation)] // at most the buffer
        let n = left.min(buf.len() as u64) as usize;
        read_exact_at(source, &mut buf[..n], at)?;
        crc = flavour.update(crc, &buf[..n]);
        at += n as u64;
        left -= n as u64;
    }
    Ok(crc)
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
    /// Parses the blob. Memory follows the entries that are there, not the count that is claimed.
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
            let len = 4 + path_len + ENTRY_LEN;
            if blob.len() - at < len {
                return Err(damaged(entry, "it ends outside the index"));
            }
            starts.push(at);
            at += len;
        }
        Ok(Self { blob, starts, end: at })
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
    pub fn entries(&self) -> impl ExactSizeIterator<Item = Entry<'_>> {
        self.starts.iter().map(|&at| {
            let path_end = at + 4 + u32_at(&self.blob, at) as usize;
            Entry::parse(&self.blob[at + 4..path_end], &array_at(&self.blob, path_end))
        })
    }

    /// The bytes behind the last entry.
    pub fn trailer(&self) -> &[u8] {
        &self.blob[self.end..]
    }
}
