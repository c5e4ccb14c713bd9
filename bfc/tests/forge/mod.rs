//! Images whose section says what no writer says, with every digest and checksum right.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::sync::Arc;

use bfc::Container;
use bfc::rootfs::format::{DENTRY_LEN, Dentry, HASH_LEN, INODE_LEN, Inode, Locator, SECTION_HEADER_LEN, SectionHeader};

/// The image with its section changed.
pub fn forge(image: &[u8], change: impl FnOnce(&mut [u8], &SectionHeader)) -> Vec<u8> {
    let container = Container::open(Arc::new(image.to_vec())).unwrap();
    let (footer, locator) = (container.footer(), container.locator().unwrap().unwrap());
    let mut bytes = image.to_vec();
    let section = &mut bytes[locator.offset as usize..][..locator.size as usize];
    let header = SectionHeader::parse(section[..SECTION_HEADER_LEN].try_into().unwrap()).unwrap();
    change(section, &header);

    let (records, table) = section.split_at_mut(header.chunks.offset as usize);
    for (number, (chunk, digest)) in records.chunks(1 << header.chunk_log2).zip(table.chunks_mut(HASH_LEN)).enumerate() {
        let skip = if number == 0 { SECTION_HEADER_LEN } else { 0 };
        digest.copy_from_slice(blake3::hash(&chunk[skip..]).as_bytes());
    }
    let table_hash = *blake3::hash(table).as_bytes();
    section[256..288].copy_from_slice(&table_hash);
    let root_digest = *blake3::hash(&section[..SECTION_HEADER_LEN]).as_bytes();
    let end = (footer.index_offset + footer.index_size) as usize;
    bytes[end - 64..end].copy_from_slice(&Locator { root_digest, ..locator }.encode(container.flavour()));
    let crc = container.flavour().crc(&bytes[footer.index_offset as usize..end]).to_le_bytes();
    bytes[end + 16..end + 20].copy_from_slice(&crc);
    bytes
}

/// Changes the inode with this number.
pub fn inode(section: &mut [u8], header: &SectionHeader, ino: u32, change: impl FnOnce(&mut Inode)) {
    let at = header.inodes.offset as usize + (ino as usize - 1) * INODE_LEN;
    let mut inode = Inode::parse(section[at..at + INODE_LEN].try_into().unwrap());
    change(&mut inode);
    section[at..at + INODE_LEN].copy_from_slice(&inode.encode());
}

/// Changes the dentry with this number.
pub fn dentry(section: &mut [u8], header: &SectionHeader, number: usize, change: impl FnOnce(&mut Dentry)) {
    let at = header.dentries.offset as usize + number * DENTRY_LEN;
    let mut dentry = Dentry::parse(section[at..at + DENTRY_LEN].try_into().unwrap());
    change(&mut dentry);
    section[at..at + DENTRY_LEN].copy_from_slice(&dentry.encode());
}
