//! Any bytes as an image: opened, walked, read, verified, exported, stacked on itself. Nothing may
//! panic, hang, or take memory that the bytes do not account for. Checksums are mended first, so
//! that readers see what the mutation wrote.
#![no_main]

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use bfc::source::ReadAt;
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use lxcri_fs::build::export::{tree_tar, write_tar};
use lxcri_fs::fs::{ImageOptions, Order, ROOT, Rootfs, Step};
use lxcri_fs_fuzz::forge::{huge::Huge, mend};
use lxcri_fs_fuzz::{Bounded, mutate};

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

/// How much an export writes before its output is full, bytes.
const MAX_OUTPUT: usize = 1 << 20;
/// How many steps a walk takes: a seed has about a dozen names.
const MAX_STEPS: usize = 256;
/// How many layers are exported.
const MAX_LAYERS: usize = 4;

/// An output that is full after [`MAX_OUTPUT`] bytes.
struct Output(usize);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        if self.0 > MAX_OUTPUT {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            Ok(bytes.len())
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The key of the encrypted seeds.
fn secret() -> Option<bfc::Secret> {
    bfc::Key::from_slice(&[0; 32]).ok().map(bfc::Secret::Key)
}

/// Visits every name as the worker and the commands do.
fn walk(rootfs: &Rootfs, order: Order) {
    let Ok(mut walk) = rootfs.walk(ROOT, order) else {
        return;
    };
    let mut out = Vec::new();
    for _ in 0..MAX_STEPS {
        match walk.step() {
            Ok(Some(Step::Enter(visit))) => {
                // Any answer will do: the names of a damaged directory may not be sorted.
                let _ = rootfs.lookup(visit.dir, walk.name());
                let _ = rootfs.xattrs(visit.ino);
                let _ = rootfs.readlink(visit.ino);
                if visit.inode.is_dir() {
                    assert_eq!(
                        rootfs.directory_path(visit.ino).ok().as_deref(),
                        Some(walk.path())
                    );
                    continue;
                }
                out.clear();
                let _ = rootfs.read(visit.ino, 0, 4096, &mut out);
                assert!(out.len() <= 4096);
                let _ = rootfs.read(visit.ino, visit.inode.size / 2, 70_000, &mut out);
                let _ = rootfs.will_need(visit.ino, 0, 4096);
            }
            Ok(Some(Step::Leave(_))) | Err(_) => {}
            Ok(None) => break,
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.to_vec();
    mend::mend(&mut bytes);
    // The input chooses how it is used, by a byte of the image's UUID.
    let how = bytes.get(mutate::HOW).copied().unwrap_or(0);
    let source: Arc<dyn ReadAt> = if how & 1 == 0 {
        Arc::new(bytes)
    } else {
        Arc::new(Huge::new(bytes))
    };
    let order = if how & 2 == 0 {
        Order::Depth
    } else {
        Order::Listing
    };
    // No spool: the target works in memory.
    let options = ImageOptions {
        cache_bytes: 1 << 20,
        spool_bytes: 0,
        check_hash: how & 4 != 0,
        ..ImageOptions::default()
    };
    let image = || (PathBuf::new(), source.clone(), secret());
    let Ok(rootfs) = Rootfs::open_all(vec![image()], &options) else {
        return;
    };
    walk(&rootfs, order);
    let _ = rootfs.xattr_entries();
    match how >> 3 & 7 {
        0 => {
            let _ = rootfs.verify_section();
            let _ = tree_tar(&rootfs, &mut Output(0), &|_| ());
        }
        1 => {
            for layer in rootfs
                .section()
                .layers()
                .unwrap_or_default()
                .iter()
                .take(MAX_LAYERS)
            {
                let _ = write_tar(&rootfs, layer, &mut Output(0));
            }
        }
        2 => {
            if let Ok(rootfs) = Rootfs::open_all(vec![image(), image()], &options) {
                walk(&rootfs, order);
            }
        }
        _ => {}
    }
});

// Half of the mutations are the fuzzer's own, the others know the structures of an image.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if seed % 2 == 0 || !mutate::mutate(&mut data[..size], seed) {
        return fuzzer_mutate(data, size, max_size);
    }
    size
});
