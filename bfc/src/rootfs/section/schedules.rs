//! Chunks that several threads read at the same time.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::io;

use super::*;
use crate::rootfs::{Extras, Tree, build};
use crate::sync::{Mutex, check, thread};

/// Bytes that come damaged the first time.
struct DamagedOnce {
    bytes: Vec<u8>,
    /// Where the damage is, until it was read.
    damage: Mutex<Option<u64>>,
}

impl ReadAt for DamagedOnce {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut damage = self.damage.lock().unwrap();
        let n = self.bytes.read_at(buf, offset)?;
        if let Some(at) = damage.take_if(|at| (offset..offset + n as u64).contains(at)) {
            buf[(at - offset) as usize] ^= 1;
        }
        Ok(n)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }
}

#[test]
fn a_damaged_chunk_is_an_error_of_its_readers_and_is_not_kept() {
    check(200, || {
        let mut tree = Tree::default();
        tree.make_dirs(b"a/b/c");
        let extras = Extras {
            frame_log2: 16,
            ..Extras::default()
        };
        let bytes = build(&tree, &extras).unwrap();
        let whole = Section::in_memory(bytes.clone()).unwrap();
        let locator = Locator {
            offset: 0,
            size: bytes.len() as u64,
            root_digest: *blake3::hash(&bytes[..SECTION_HEADER_LEN]).as_bytes(),
        };
        let source = Arc::new(DamagedOnce {
            bytes,
            damage: Mutex::new(None),
        });
        let section = Section::open(source.clone(), &locator).unwrap();
        *source.damage.lock().unwrap() = Some(section.header().inodes.offset);
        let errors = thread::scope(|scope| {
            let readers: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        (1..=4)
                            .map(|ino| match section.inode(ino) {
                                Ok(inode) => {
                                    assert_eq!(inode, whole.inode(ino).unwrap());
                                    0
                                }
                                Err(Error::Section { .. }) => 1,
                                Err(error) => panic!("{error:?}"),
                            })
                            .sum::<u32>()
                    })
                })
                .collect();
            readers
                .into_iter()
                .map(|reader| reader.join().unwrap())
                .sum::<u32>()
        });
        assert_eq!(errors, 1);
        assert_eq!(section.inode(1).unwrap(), whole.inode(1).unwrap());
    });
}
