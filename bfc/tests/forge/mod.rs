//! Images whose section says what no writer says, with every digest and checksum right.
#![allow(
    dead_code,
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_possible_truncation
)]

pub mod huge;
pub mod mend;

use bfc::rootfs::format::{
    DENTRY_LEN, Dentry, INODE_LEN, Inode, SECTION_HEADER_LEN, SectionHeader,
};

/// The image with its section changed.
pub fn forge(image: &[u8], change: impl FnOnce(&mut [u8], &SectionHeader)) -> Vec<u8> {
    let mut bytes = image.to_vec();
    let section = &mut bytes[mend::section_range(image).unwrap()];
    let header = SectionHeader::parse(section[..SECTION_HEADER_LEN].try_into().unwrap()).unwrap();
    change(section, &header);
    mend::mend(&mut bytes);
    bytes
}

/// Changes the inode with this number.
pub fn inode(
    section: &mut [u8],
    header: &SectionHeader,
    ino: u32,
    change: impl FnOnce(&mut Inode),
) {
    let at = header.inodes.offset as usize + (ino as usize - 1) * INODE_LEN;
    let mut inode = Inode::parse(section[at..at + INODE_LEN].try_into().unwrap());
    change(&mut inode);
    section[at..at + INODE_LEN].copy_from_slice(&inode.encode());
}

/// Changes the dentry with this number.
pub fn dentry(
    section: &mut [u8],
    header: &SectionHeader,
    number: usize,
    change: impl FnOnce(&mut Dentry),
) {
    let at = header.dentries.offset as usize + number * DENTRY_LEN;
    let mut dentry = Dentry::parse(section[at..at + DENTRY_LEN].try_into().unwrap());
    change(&mut dentry);
    section[at..at + DENTRY_LEN].copy_from_slice(&dentry.encode());
}
