//! Mutations of one structure of an image at a time: its fields and records.

use std::ops::Range;

use bfc::format::HEADER_LEN;
use bfc::rootfs::format::{
    CONTENT_LEN, DENTRY_LEN, FRAME_LEN, INODE_LEN, LAYER_LEN, SECTION_HEADER_LEN,
};

use crate::forge::mend;

/// The byte by which an input chooses how it is used: the first of the image's UUID.
pub const HOW: usize = 24;
/// How much of the header has fields, bytes.
const HEADER_FIELDS: usize = 96;
/// Where the section's header has the offset and length of its first region.
const REGIONS: usize = 40;
/// How many regions are mutated: those behind them are the chunk table and parts of the blobs.
const REGION_COUNT: usize = 8;
/// Values that a length, an offset or a count may wrongly have.
const ODD_VALUES: [u64; 11] = [
    0,
    1,
    2,
    255,
    4096,
    65_535,
    1 << 20,
    1 << 32,
    1 << 40,
    1 << 63,
    u64::MAX,
];
/// Lengths of records.
const RECORDS: [usize; 5] = [DENTRY_LEN, FRAME_LEN, INODE_LEN, CONTENT_LEN, LAYER_LEN];

/// Length of a block of EROFS metadata.
const METADATA_BLOCK: usize = 4096;

/// Random numbers, from a seed that the fuzzer keeps: Knuth's linear congruential generator.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit.max(1)
    }

    fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }
}

/// Changes a structure of an image. Returns false, and changes nothing, if there is none.
pub fn mutate(bytes: &mut [u8], seed: u32) -> bool {
    let mut random = Random(seed.into());
    let found = structures(bytes);
    if found.is_empty() {
        return false;
    }
    if bytes.len() > HOW && random.below(4) == 0 {
        bytes[HOW] = random.below(256) as u8;
    }
    let range = found[random.below(found.len())].clone();
    for _ in 0..=random.below(3) {
        change(&mut bytes[range.clone()], &mut random);
    }
    true
}

/// Changes a block of metadata, seldom the first, which has the super block.
pub fn mutate_metadata(bytes: &mut [u8], seed: u32) {
    let mut random = Random(seed.into());
    let blocks = bytes.len() / METADATA_BLOCK;
    if blocks == 0 {
        return;
    }
    let first = usize::from(blocks > 1 && random.below(16) != 0);
    let at = (first + random.below(blocks - first)) * METADATA_BLOCK;
    for _ in 0..=random.below(3) {
        change(&mut bytes[at..at + METADATA_BLOCK], &mut random);
    }
}

fn change(structure: &mut [u8], random: &mut Random) {
    let len = structure.len();
    match random.below(5) {
        0 => structure[random.below(len)] ^= 1 << random.below(8),
        // A field gets an odd value, or the value of another field.
        1 | 2 => {
            let width = random.of(&[2, 4, 8]);
            if len >= width {
                let at = random.below(len / width) * width;
                let value = random.of(&ODD_VALUES).to_le_bytes();
                structure[at..at + width].copy_from_slice(&value[..width]);
            }
        }
        3 => copy_record(structure, random.of(&[2, 4, 8]), random),
        _ => copy_record(structure, random.of(&RECORDS), random),
    }
}

/// Puts a record in the place of another.
fn copy_record(structure: &mut [u8], len: usize, random: &mut Random) {
    let count = structure.len() / len;
    if count > 0 {
        let (from, to) = (random.below(count) * len, random.below(count) * len);
        structure.copy_within(from..from + len, to);
    }
}

/// The structures of an image: header, stored bytes, header and regions of the section, index with
/// locator, footer.
fn structures(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut found = vec![0..HEADER_FIELDS.min(bytes.len())];
    if let Some(index) = mend::index_range(bytes) {
        let section = mend::section_range(bytes);
        let stored = HEADER_LEN
            ..section
                .as_ref()
                .map_or(index.start, |section| section.start);
        found.extend([stored, index.clone(), index.end..bytes.len()]);
        if let Some(section) = section {
            found.push(section.start..section.start + SECTION_HEADER_LEN);
            found.extend((0..REGION_COUNT).filter_map(|number| region(bytes, &section, number)));
        }
    }
    found.retain(|range| !range.is_empty() && range.end <= bytes.len());
    found
}

/// Where a region of the section is.
fn region(bytes: &[u8], section: &Range<usize>, number: usize) -> Option<Range<usize>> {
    let word = |at: usize| {
        bytes[at..at + 8]
            .try_into()
            .ok()
            .and_then(|b| usize::try_from(u64::from_le_bytes(b)).ok())
    };
    let at = section.start + REGIONS + number * 16;
    let (offset, len) = (word(at)?, word(at + 8)?);
    let start = section.start.checked_add(offset)?;
    Some(start..start.checked_add(len).filter(|&end| end <= section.end)?)
}
