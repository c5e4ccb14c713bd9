//! Mends the checksums of an image whose bytes were changed: what a hostile writer would do. For
//! tests and for the fuzz target `image`.
#![allow(dead_code)]

use std::ops::Range;

use bfc::crc::Flavour;
use bfc::format::{FOOTER_LEN, Footer, HEADER_LEN, Header};
use bfc::rootfs::format::{
    CONTENT_LEN, Content, FRAME_LEN, Frame, HASH_LEN, LOCATOR_LEN, LOCATOR_MAGIC, Locator, Region,
    SECTION_HEADER_LEN, SectionHeader, hash,
};

/// How much is hashed at most for the digests of stored bytes: records may name the same bytes over
/// and over.
const MAX_HASHED: usize = 1 << 20;

/// Mends every checksum and digest between a reader and what the image says: those of stored
/// bytes, the section's chunks, their table, the locator, the index and the header, which says
/// where the image ends. A structure too damaged to have a checksum is left unchanged.
pub fn mend(bytes: &mut [u8]) {
    if bytes.len() < HEADER_LEN + FOOTER_LEN {
        return;
    }
    mend_section(bytes);
    mend_index(bytes);
    // Without a committed length, an image ends with its file.
    let committed = bytes
        .first_chunk()
        .is_some_and(|header| Header::parse(header).committed != 0);
    let len = if committed { bytes.len() as u64 } else { 0 };
    commit(bytes, len);
}

/// Has the header say that the image ends at `len`.
pub fn commit(bytes: &mut [u8], len: u64) {
    if let Some(header) = bytes.first_chunk_mut::<HEADER_LEN>() {
        let generation = Header::parse(header).generation;
        Header::commit(header, Flavour::Raw, len, generation);
    }
}

/// Where the index is, with the locator at its end.
pub fn index_range(bytes: &[u8]) -> Option<Range<usize>> {
    let at = bytes.len().checked_sub(FOOTER_LEN)?;
    let footer = Footer::parse(bytes[at..].try_into().ok()?)?;
    let start = usize::try_from(footer.index_offset).ok()?;
    let end = start
        .checked_add(usize::try_from(footer.index_size).ok()?)
        .filter(|&end| end <= at)?;
    Some(start..end)
}

/// Where the rootfs section is, according to the locator.
pub fn section_range(bytes: &[u8]) -> Option<Range<usize>> {
    let index = index_range(bytes)?;
    let locator = &bytes[index
        .end
        .checked_sub(LOCATOR_LEN)
        .filter(|&at| at >= index.start)?..index.end];
    if locator[..8] != LOCATOR_MAGIC {
        return None;
    }
    let field = |at: usize| {
        locator[at..at + 8]
            .try_into()
            .ok()
            .and_then(|b| usize::try_from(u64::from_le_bytes(b)).ok())
    };
    let (start, size) = (field(8)?, field(16)?);
    let end = start
        .checked_add(size)
        .filter(|&end| end <= index.start && size >= SECTION_HEADER_LEN)?;
    Some(start..end)
}

/// Has locator and footer name places `by` bytes behind those where section and index are. Returns
/// where what they name begins: behind it, all bytes are to be moved as far.
pub fn move_back(bytes: &mut [u8], by: u64) -> Option<usize> {
    let index = index_range(bytes)?;
    let section = section_range(bytes);
    let moved = |at: usize| (at as u64).wrapping_add(by).to_le_bytes();
    if let Some(section) = &section {
        let locator = index.end - LOCATOR_LEN;
        bytes[locator + 8..locator + 16].copy_from_slice(&moved(section.start));
        let sum = Flavour::Raw
            .crc(&bytes[locator..locator + 56])
            .to_le_bytes();
        bytes[locator + 56..locator + 60].copy_from_slice(&sum);
        mend_index(bytes);
    }
    let footer = bytes.len() - FOOTER_LEN;
    bytes[footer + 20..footer + 28].copy_from_slice(&moved(index.start));
    let start = section.map_or(index.start, |section| section.start);
    Some(start).filter(|&start| start >= HEADER_LEN)
}

fn mend_index(bytes: &mut [u8]) {
    if let Some(index) = index_range(bytes) {
        let sum = Flavour::Raw.crc(&bytes[index]).to_le_bytes();
        let footer = bytes.len() - FOOTER_LEN;
        bytes[footer + 16..footer + 20].copy_from_slice(&sum);
    }
}

fn mend_section(bytes: &mut [u8]) {
    let (Some(index), Some(range)) = (index_range(bytes), section_range(bytes)) else {
        return;
    };
    let header_range = range.start..range.start + SECTION_HEADER_LEN;
    let parsed = bytes[header_range.clone()]
        .try_into()
        .ok()
        .and_then(|b| SectionHeader::parse(b).ok());
    if let Some(mut header) = parsed.filter(|header| header.size == range.len() as u64) {
        mend_stored(bytes, range.start, &header);
        let section = &mut bytes[range.clone()];
        let (body, table) =
            section.split_at_mut(usize::try_from(header.chunks.offset).unwrap_or(0));
        for (number, chunk) in body.chunks(1 << header.chunk_log2).enumerate() {
            let skip = if number == 0 {
                SECTION_HEADER_LEN.min(chunk.len())
            } else {
                0
            };
            table[number * HASH_LEN..(number + 1) * HASH_LEN]
                .copy_from_slice(&hash(&chunk[skip..]));
        }
        header.table_hash = hash(table);
        section[..SECTION_HEADER_LEN].copy_from_slice(&header.encode());
    }
    let root_digest = hash(&bytes[header_range]);
    let locator = Locator {
        offset: range.start as u64,
        size: range.len() as u64,
        root_digest,
    };
    bytes[index.end - LOCATOR_LEN..index.end].copy_from_slice(&locator.encode(Flavour::Raw));
}

/// Mends the digests of stored bytes in the records of contents and frames.
fn mend_stored(bytes: &mut [u8], section: usize, header: &SectionHeader) {
    let mut left = MAX_HASHED;
    let mut stored_hash = |bytes: &[u8], offset: Option<u64>, len: u64| {
        let (start, len) = (usize::try_from(offset?).ok()?, usize::try_from(len).ok()?);
        left = left.checked_sub(len)?;
        bytes.get(start..start.checked_add(len)?).map(hash)
    };
    let record = |region: Region, number: u64, len: usize| {
        let number = usize::try_from(number).ok()?;
        let end = (number + 1)
            .checked_mul(len)
            .filter(|&end| end as u64 <= region.size)?;
        let start = section + usize::try_from(region.offset).ok()?;
        Some(start + end - len..start + end)
    };
    let contents = (0..).map_while(|number| record(header.contents, number, CONTENT_LEN));
    for content_range in contents {
        let content = bytes[content_range.clone()]
            .try_into()
            .ok()
            .and_then(|b| Content::parse(b).ok());
        let Some(content) = content else { continue };
        if content.frames == 0
            && let Some(hash) = stored_hash(bytes, Some(content.offset), content.stored)
        {
            bytes[content_range.end - HASH_LEN..content_range.end].copy_from_slice(&hash);
        }
        let numbers = (0..u64::from(content.frames)).map(|n| u64::from(content.first_frame) + n);
        for range in numbers.map_while(|number| record(header.frames, number, FRAME_LEN)) {
            let Ok(frame) = bytes[range.clone()].try_into().map(Frame::parse) else {
                continue;
            };
            let offset = content.offset.checked_add(frame.offset);
            if let Some(hash) = stored_hash(bytes, offset, frame.stored.into()) {
                bytes[range.end - HASH_LEN..range.end].copy_from_slice(&hash);
            }
        }
    }
}
