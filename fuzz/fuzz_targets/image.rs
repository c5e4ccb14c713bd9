//! Any bytes as an image: opened, walked, every file read. Nothing may panic, hang or take memory that the bytes do not account for.
#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use lxcri_fs::fs::{Options, ROOT, Rootfs, Source};

/// Repairs the checksums that would stop a mutation at the door: header and index.
fn repair(bytes: &mut [u8]) {
    let crc = |b: &[u8]| bfc::crc::Flavour::Raw.crc(b).to_le_bytes();
    if bytes.len() < 4096 + 56 {
        return;
    }
    let header = crc(&bytes[12..4096]);
    bytes[8..12].copy_from_slice(&header);
    let footer = bytes.len() - 56;
    let field = |at: usize| u64::from_le_bytes(bytes[footer + at..footer + at + 8].try_into().unwrap_or_default());
    let (size, offset) = (field(8), field(20));
    if let Some(index) = usize::try_from(offset).ok().zip(usize::try_from(size).ok()).and_then(|(o, s)| bytes.get(o..o.checked_add(s)?)) {
        let index = crc(index);
        bytes[footer + 16..footer + 20].copy_from_slice(&index);
    }
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.to_vec();
    if data.first() == Some(&b'B') {
        repair(&mut bytes);
    }
    let Ok(mut file) = tempfile::tempfile() else { return };
    if file.write_all(&bytes).is_err() {
        return;
    }
    let source = Source { path: "fuzz".into(), file, secret: bfc::Key::from_slice(&[0; 32]).ok().map(bfc::Secret::Key) };
    let options = Options { cache_bytes: 1 << 20, ..Options::default() };
    let Ok(rootfs) = Rootfs::open(vec![source], &options) else { return };
    let mut stack = vec![ROOT];
    while let Some(dir) = stack.pop() {
        let mut below = Vec::new();
        let _ = rootfs.readdir_plus(dir, 0, &mut |_, ino, inode, name| {
            let _ = rootfs.lookup(dir, name);
            let _ = rootfs.xattr_names(ino);
            let _ = rootfs.readlink(ino);
            let mut out = Vec::new();
            let _ = rootfs.read(ino, 0, 4096, &mut out);
            let _ = rootfs.read(ino, inode.size / 2, 70_000, &mut out);
            if inode.is_dir() {
                below.push(ino);
            }
            true
        });
        stack.append(&mut below);
    }
});
