//! EROFS metadata. Of any bytes as an image, and of a random tree: what is made passes the check,
//! and shows the tree. Any bytes as metadata: they are refused, or can be read.
#![no_main]

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use bfc::format::{S_IFBLK, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG};
use bfc::rootfs::{Attr, Kind, Node, Tree, Xattr};
use bfc::source::ReadAt;
use bfc::writer::{ContentSink, Documents, ImageWriter, WriteOptions};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use lxcri_fs::erofs::{Inodes, Layout, Metadata, check, write};
use lxcri_fs::fs::{ImageOptions, Rootfs};
use lxcri_fs_fuzz::compare::compare;
use lxcri_fs_fuzz::forge::{huge::Huge, mend};
use lxcri_fs_fuzz::{Bounded, mutate};

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

/// First bytes of an image, and of a tree. Everything else is metadata.
const IMAGE: &[u8] = b"BFC";
const TREE: &[u8] = b"TREE";
/// Length of an item of a tree, bytes.
const ITEM: usize = 12;
/// Most items of a tree.
const MAX_ITEMS: usize = 200;
/// Where metadata say how many blocks the devices have.
const DEVICE_BLOCKS: [usize; 2] = [2048 + 64, 2048 + 128 + 64];
/// How many inodes are looked at that did not pass the check.
const MAX_READ: usize = 4096;

/// What is made of a tree passes the check, and shows the tree.
fn made(rootfs: &Rootfs, large: u64) {
    let Ok(layout) = Layout::of(rootfs.section(), large) else {
        return;
    };
    let devices = [layout.bytes(0), layout.bytes(1)];
    for form in [Inodes::Short, Inodes::Long] {
        let Ok(bytes) = write(rootfs, &layout, form) else {
            return;
        };
        check(&bytes, devices).expect("what was just written");
        compare(rootfs, &layout, &Metadata::open(&bytes, devices).unwrap());
    }
}

fn image(data: &[u8]) {
    let mut bytes = data.to_vec();
    mend::mend(&mut bytes);
    let how = bytes.get(mutate::HOW).copied().unwrap_or(0);
    let source: Arc<dyn ReadAt> = if how & 1 == 0 {
        Arc::new(bytes)
    } else {
        Arc::new(Huge::new(bytes))
    };
    let options = ImageOptions {
        cache_bytes: 1 << 20,
        spool_bytes: 0,
        subdir: (how & 2 != 0).then(|| PathBuf::from("dir")),
        hide_xattrs: how & 4 != 0,
        ..ImageOptions::default()
    };
    let key = bfc::Key::from_slice(&[0; 32]).ok().map(bfc::Secret::Key);
    if let Ok(rootfs) = Rootfs::open_all(vec![(PathBuf::new(), source, key)], &options) {
        made(&rootfs, u64::from(how >> 3) << 8);
    }
}

/// A tree of items of [`ITEM`] bytes.
fn tree(data: &[u8]) {
    let fd = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(fd);
    let options = WriteOptions {
        frame_log2: 12,
        ..WriteOptions::default()
    };
    let mut writer = ImageWriter::create(file.try_clone().unwrap(), options).unwrap();
    let mut tree = Tree::default();
    let mut ids = vec![Tree::ROOT];
    for item in data.chunks_exact(ITEM).take(MAX_ITEMS) {
        let [
            parent,
            name,
            name_len,
            kind,
            a,
            b,
            c,
            d,
            time,
            nanoseconds,
            xattr,
            extra,
        ] = *item.first_chunk().unwrap();
        let parent = ids[usize::from(parent) % ids.len()];
        let letter = if matches!(name, 0 | b'/') { b'_' } else { name };
        let mut name = vec![letter; usize::from(name_len).max(1)];
        name.push(extra.max(b'0'));
        name.truncate(255);
        if tree.children(parent).is_none() || tree.child(parent, &name).is_some() {
            continue;
        }
        let number = u32::from_le_bytes([a, b, c, d]);
        let (kind, mode) = match kind % 8 {
            0 | 1 => (Kind::Dir(BTreeMap::new()), S_IFDIR),
            2 | 3 => {
                let size = (number % 70_000) as usize;
                let mut bytes = vec![b; size];
                let data = usize::from(d) << 8;
                bytes[data.min(size)..].fill(0);
                let size = size as u64;
                let content = writer.add(b"file", size, &mut &bytes[..]).unwrap();
                (Kind::File { size, content }, S_IFREG)
            }
            4 => {
                let target = vec![c.max(1); (number % 4097) as usize];
                (Kind::Symlink(target.into()), S_IFLNK)
            }
            5 => (Kind::Device(number >> 20, number & 0x1f_ffff), S_IFBLK),
            6 => (Kind::Other, S_IFIFO),
            _ => {
                let id = ids[number as usize % ids.len()];
                if tree.children(id).is_none() {
                    tree.link(parent, &name, id);
                }
                continue;
            }
        };
        let value = vec![d; usize::from(extra) << (xattr & 9)];
        let space = [
            "user.a",
            "trusted.b",
            "security.c",
            "system.posix_acl_access",
        ];
        let attr = Attr {
            mode: mode | number & 0o7777,
            uid: number,
            gid: u32::from(a),
            mtime_s: i64::from(time.cast_signed()) << (b & 31),
            mtime_ns: u32::from(nanoseconds & 1) * 999_999_999,
            xattrs: (xattr & 16 != 0)
                .then(|| Xattr {
                    name: space[usize::from(xattr >> 6)].into(),
                    value,
                })
                .into_iter()
                .collect(),
        };
        let id = tree.add(Node { attr, kind });
        tree.link(parent, &name, id);
        ids.push(id);
    }
    writer.finish(tree, Documents::default()).unwrap();
    let image = (PathBuf::new(), Arc::new(file) as Arc<dyn ReadAt>, None);
    let rootfs = Rootfs::open_all(vec![image], &ImageOptions::default()).unwrap();
    made(&rootfs, data.len() as u64 * 100);
}

/// Reads everything, whether it passed the check or not.
fn read(image: &Metadata<'_>, is_sound: bool) {
    let Ok(root) = image.root() else {
        return assert!(!is_sound);
    };
    let mut waiting = vec![root];
    let mut left = MAX_READ;
    while let Some(node) = waiting.pop() {
        if left == 0 {
            return;
        }
        left -= 1;
        assert!(image.xattrs(&node).is_ok() || !is_sound);
        match node.mode() & S_IFMT {
            S_IFREG => match image.data(&node) {
                Ok(data) => data.for_each(|data| assert!(data.is_ok() || !is_sound)),
                Err(_) => assert!(!is_sound),
            },
            S_IFLNK => assert!(image.target(&node).is_ok() || !is_sound),
            S_IFDIR => {
                let Ok(blocks) = image.blocks(&node) else {
                    assert!(!is_sound);
                    continue;
                };
                let all = blocks.map(|block| block.entries());
                for entry in all.filter_map(Result::ok).flatten() {
                    let Ok(entry) = entry else {
                        assert!(!is_sound);
                        break;
                    };
                    if matches!(entry.name, b"." | b"..") || waiting.len() > MAX_READ {
                        continue;
                    }
                    match image.node(entry.nid) {
                        Ok(child) => waiting.push(child),
                        Err(_) => assert!(!is_sound),
                    }
                }
            }
            _ => {}
        }
    }
}

fn metadata(data: &[u8]) {
    let devices = DEVICE_BLOCKS.map(|at| {
        let blocks = data.get(at..at + 4).and_then(|b| b.first_chunk());
        blocks.map_or(0, |b| u64::from(u32::from_le_bytes(*b)) * 4096)
    });
    let checked = check(data, devices);
    match Metadata::open(data, devices) {
        Ok(image) => read(&image, checked.is_ok()),
        Err(_) => assert!(checked.is_err()),
    }
}

fuzz_target!(|data: &[u8]| {
    if data.starts_with(IMAGE) {
        image(data);
    } else if let Some(items) = data.strip_prefix(TREE) {
        tree(items);
    } else {
        metadata(data);
    }
});

// Half of the mutations are the fuzzer's own, the others know the structures.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let bytes = &mut data[..size];
    if seed % 2 == 0 || bytes.starts_with(TREE) {
        return fuzzer_mutate(data, size, max_size);
    }
    if !bytes.starts_with(IMAGE) {
        mutate::mutate_metadata(bytes, seed);
    } else if !mutate::mutate(bytes, seed) {
        return fuzzer_mutate(data, size, max_size);
    }
    size
});
