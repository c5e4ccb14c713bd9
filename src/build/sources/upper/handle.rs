//! Overlayfs's names for files of the image: the file handles in its index (struct `ovl_fb`,
//! fs/overlayfs/overlayfs.h).

use super::Numbers;

const VERSION: u8 = 0;
const MAGIC: u8 = 0xfb;
const BIG_ENDIAN: u8 = 1;
/// Length of what precedes the file system's own part: version, magic number, length, flags, type,
/// UUID.
const HEADER_LEN: usize = 5 + 16;
/// FILEID_INO64_GEN: the handle of FUSE (fs/fuse/inode.c), and of EROFS since Linux 6.16
/// (fs/erofs/super.c): the inode number in two halves, the higher first, and a generation.
const LONG: u8 = 0x81;
/// FILEID_INO32_GEN: the handle of EROFS before that: the inode number, and a generation.
const SHORT: u8 = 1;

/// The inode number in the name of an index entry; `None` if it is not a file of an image whose
/// inodes have these numbers.
pub(super) fn inode_of_index(name: &[u8], numbers: Numbers) -> Option<u32> {
    let digit = |b: u8| {
        char::from(b)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let bytes: Option<Vec<u8>> = name
        .chunks(2)
        .map(|c| {
            if let [a, b] = c {
                Some(digit(*a)? << 4 | digit(*b)?)
            } else {
                None
            }
        })
        .collect();
    let bytes = bytes?;
    let [VERSION, MAGIC, len, flags, kind, ..] = bytes[..] else {
        return None;
    };
    if usize::from(len) != bytes.len() || (flags & BIG_ENDIAN != 0) != cfg!(target_endian = "big") {
        return None;
    }
    let word = |at: usize| {
        bytes
            .get(HEADER_LEN + 4 * at..HEADER_LEN + 4 * at + 4)?
            .try_into()
            .ok()
            .map(u32::from_ne_bytes)
    };
    match kind {
        LONG => {
            let (high, low, _generation) = (word(0)?, word(1)?, word(2)?);
            (high == 0).then_some(low)
        }
        SHORT if numbers == Numbers::Erofs => {
            let (number, _generation) = (word(0)?, word(1)?);
            Some(number)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn an_index_entry_names_an_inode() {
        let name = b"00fb21008100000000000000000000000000000000000000000200000000000000";
        for numbers in [Numbers::Image, Numbers::Erofs] {
            assert_eq!(inode_of_index(name, numbers), Some(2));
            assert_eq!(inode_of_index(&name[2..], numbers), None);
            assert_eq!(inode_of_index(b"#7", numbers), None);
            assert_eq!(inode_of_index(b"", numbers), None);
        }
        // Of ext4, or of EROFS before Linux 6.16.
        let short = b"00fb1d0001b3e5f7c1e7a34d6b8e2f0d0e8a51c7f30c00000001e3a2b4";
        assert_eq!(inode_of_index(short, Numbers::Image), None);
        assert_eq!(inode_of_index(short, Numbers::Erofs), Some(12));
    }
}
