//! Mends the checksums of an image whose bytes were changed: what a hostile writer would do. For tests and for the fuzz targets.
#![allow(dead_code)]

use bfc::crc::Flavour;
use bfc::format::{FOOTER_LEN, Footer, HEADER_LEN, Header};
use bfc::rootfs::format::{HASH_LEN, LOCATOR_LEN, LOCATOR_MAGIC, Locator, SECTION_HEADER_LEN, SectionHeader, hash};

/// Makes every checksum and digest right again that stands between a reader and what the image says: the chunks of the section and their table, the root
/// digest, the locator, the index, the header, which says where the image ends. What is too broken to have one is left as it is.
pub fn mend(bytes: &mut [u8]) {
    let Some(footer_at) = bytes.len().checked_sub(FOOTER_LEN).filter(|&at| at >= HEADER_LEN) else { return };
    let crc = |b: &[u8]| Flavour::Raw.crc(b).to_le_bytes();
    if let Some(index) = index_range(bytes) {
        mend_section(bytes, index.clone());
        let sum = crc(&bytes[index]);
        bytes[footer_at + 16..footer_at + 20].copy_from_slice(&sum);
    }
    // What does not say where it ends, ends with the file.
    let says = bytes.first_chunk::<HEADER_LEN>().is_some_and(|header| Header::parse(header).committed != 0);
    let len = if says { bytes.len() as u64 } else { 0 };
    commit(bytes, len);
}

/// Has the header say that the image ends at `len`.
pub fn commit(bytes: &mut [u8], len: u64) {
    if let Some(header) = bytes.first_chunk_mut::<HEADER_LEN>() {
        let generation = Header::parse(header).generation;
        Header::commit(header, Flavour::Raw, len, generation);
    }
}

/// Where the index is.
pub fn index_range(bytes: &[u8]) -> Option<std::ops::Range<usize>> {
    let at = bytes.len().checked_sub(FOOTER_LEN)?;
    let footer = Footer::parse(bytes[at..].try_into().ok()?)?;
    let start = usize::try_from(footer.index_offset).ok()?;
    let end = start.checked_add(usize::try_from(footer.index_size).ok()?).filter(|&end| end <= at)?;
    Some(start..end)
}

/// Where the rootfs section is, as the locator has it.
pub fn section_range(bytes: &[u8]) -> Option<std::ops::Range<usize>> {
    let index = index_range(bytes)?;
    let locator = &bytes[index.end.checked_sub(LOCATOR_LEN).filter(|&at| at >= index.start)?..index.end];
    if locator[..8] != LOCATOR_MAGIC {
        return None;
    }
    let field = |at: usize| locator[at..at + 8].try_into().ok().and_then(|b| usize::try_from(u64::from_le_bytes(b)).ok());
    let (start, size) = (field(8)?, field(16)?);
    let end = start.checked_add(size).filter(|&end| end <= index.start && size >= SECTION_HEADER_LEN)?;
    Some(start..end)
}

fn mend_section(bytes: &mut [u8], index: std::ops::Range<usize>) {
    let Some(range) = section_range(bytes) else { return };
    let section = &mut bytes[range.clone()];
    let parsed = section[..SECTION_HEADER_LEN].try_into().ok().and_then(|b| SectionHeader::parse(b).ok());
    if let Some(mut header) = parsed.filter(|header| header.size == section.len() as u64) {
        let (body, table) = section.split_at_mut(usize::try_from(header.chunks.offset).unwrap_or(0));
        for (number, chunk) in body.chunks(1 << header.chunk_log2).enumerate() {
            let skip = if number == 0 { SECTION_HEADER_LEN.min(chunk.len()) } else { 0 };
            table[number * HASH_LEN..(number + 1) * HASH_LEN].copy_from_slice(&hash(&chunk[skip..]));
        }
        header.table_hash = hash(table);
        section[..SECTION_HEADER_LEN].copy_from_slice(&header.encode());
    }
    let locator = Locator {
        offset: range.start as u64,
        size: range.len() as u64,
        root_digest: hash(&bytes[range.start..range.start + SECTION_HEADER_LEN]),
    };
    bytes[index.end - LOCATOR_LEN..index.end].copy_from_slice(&locator.encode(Flavour::Raw));
}
