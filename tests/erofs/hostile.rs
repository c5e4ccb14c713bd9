//! Metadata that were changed are refused, or can be read without harm.

use std::fs;

use lxcri_fs::erofs::format::DIRENT_LEN;
use lxcri_fs::erofs::{Inodes, Layout, Metadata, Node, check};
use lxcri_fs::fs::ImageOptions;

use crate::common::build_image;
use crate::support::{metadata, open};

/// Where the UUID is, which may be any.
const UUID: std::ops::Range<usize> = 1024 + 48..1024 + 64;

/// Metadata of a few files, for devices of these lengths.
fn sample() -> (Vec<u8>, [u64; 2]) {
    let dir = tempfile::tempdir().unwrap();
    let (tree, image) = (dir.path().join("tree"), dir.path().join("image"));
    fs::create_dir_all(tree.join("dir/inner")).unwrap();
    fs::create_dir(tree.join("other")).unwrap();
    fs::write(tree.join("dir/file"), "content").unwrap();
    fs::write(tree.join("dir/empty"), "").unwrap();
    fs::write(tree.join("big"), vec![b'b'; 200_000]).unwrap();
    let sparse = fs::File::create(tree.join("sparse")).unwrap();
    sparse.set_len(300_000).unwrap();
    fs::hard_link(tree.join("big"), tree.join("dir/link")).unwrap();
    std::os::unix::fs::symlink("a target", tree.join("symlink")).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(tree.join("dir/file"), "user.name", b"value", flags).unwrap();
    // Directory blocks that are not inline.
    for number in 0..40 {
        fs::write(tree.join(format!("other/{number:0200}")), "").unwrap();
    }
    build_image(&tree, &image);
    let rootfs = open(&[&image], &ImageOptions::default());
    let layout = Layout::of(rootfs.section(), 100_000).unwrap();
    let bytes = metadata(&rootfs, &layout, Inodes::Long);
    (bytes, [layout.bytes(0), layout.bytes(1)])
}

/// The inode of a name.
fn find(image: &Metadata<'_>, path: &str) -> Node {
    path.split('/').fold(image.root().unwrap(), |dir, name| {
        let mut blocks = image.blocks(&dir).unwrap();
        let nid = blocks.find_map(|block| {
            let mut entries = block.entries().unwrap().map(Result::unwrap);
            entries
                .find(|entry| entry.name == name.as_bytes())
                .map(|entry| entry.nid)
        });
        image.node(nid.unwrap()).unwrap()
    })
}

/// Where the inode of a name is.
fn place(bytes: &[u8], devices: [u64; 2], path: &str) -> usize {
    let image = Metadata::open(bytes, devices).unwrap();
    usize::try_from(find(&image, path).nid * 32).unwrap()
}

#[track_caller]
fn refused(bytes: &[u8], devices: [u64; 2], reason: &str) {
    let damage = check(bytes, devices).expect_err(reason);
    assert_eq!(damage.reason, reason);
}

#[test]
fn a_super_block_that_differs_in_any_bit_is_refused() {
    let (bytes, devices) = sample();
    for at in 0..4096 {
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            let is_free = UUID.contains(&at);
            assert_eq!(check(&changed, devices).is_ok(), is_free, "byte {at}");
        }
    }
    for wrong in [
        [devices[0] + 4096, devices[1]],
        [0, 0],
        [devices[0], u64::MAX],
    ] {
        assert!(check(&bytes, wrong).is_err());
    }
    for len in [0, 1, 4095, 4096, bytes.len() - 4096, bytes.len() - 1] {
        assert!(check(&bytes[..len], devices).is_err(), "{len} bytes");
    }
}

/// Reads all that a directory leads to.
fn read(image: &Metadata<'_>, node: &Node) {
    image.xattrs(node).unwrap();
    match node.mode() & 0o170_000 {
        0o040_000 => {
            for block in image.blocks(node).unwrap() {
                for entry in block.entries().unwrap().map(Result::unwrap) {
                    if !matches!(entry.name, b"." | b"..") {
                        read(image, &image.node(entry.nid).unwrap());
                    }
                }
            }
        }
        0o100_000 => image.data(node).unwrap().for_each(|data| {
            data.unwrap();
        }),
        0o120_000 => assert!(!image.target(node).unwrap().is_empty()),
        _ => {}
    }
}

#[test]
fn bits_that_are_flipped_are_harmless() {
    let (mut bytes, devices) = sample();
    let mut sound = 0;
    for at in 4096..bytes.len() {
        let bit = 1 << (at % 8);
        bytes[at] ^= bit;
        if check(&bytes, devices).is_ok() {
            sound += 1;
            let image = Metadata::open(&bytes, devices).unwrap();
            read(&image, &image.root().unwrap());
        }
        bytes[at] ^= bit;
    }
    // Owners, times, values and the like may be any.
    assert!(sound > 100 && sound < bytes.len() - 5000, "{sound}");
}

#[test]
fn trees_that_are_none_are_refused() {
    let (bytes, devices) = sample();
    let at = |path: &str| place(&bytes, devices, path);
    let entry_of = |path: &str, number: usize| at(path) + 64 + number * DIRENT_LEN;
    let with = |at: usize, new: &[u8]| {
        let mut changed = bytes.clone();
        changed[at..at + new.len()].copy_from_slice(new);
        changed
    };
    let nid = |path: &str| (at(path) as u64 / 32).to_le_bytes();
    // `.`, `..`, `empty`, `file`, `inner`, `link`.
    let inner = entry_of("dir", 4);
    refused(
        &with(inner, &nid("other")),
        devices,
        "a directory with two names",
    );
    refused(
        &with(inner, &nid("dir")),
        devices,
        "a directory with two names",
    );
    let outside = u64::MAX.to_le_bytes();
    refused(
        &with(inner, &outside),
        devices,
        "an inode outside the metadata",
    );
    refused(
        &with(entry_of("dir", 0), &nid("other")),
        devices,
        "`.` or `..` leads elsewhere",
    );
    refused(
        &with(entry_of("dir", 1), &nid("dir")),
        devices,
        "`.` or `..` leads elsewhere",
    );
    refused(
        &with(entry_of("dir", 3), &nid("symlink")),
        devices,
        "an entry of another type than its inode",
    );
    // Names: they begin behind six entries.
    let names = entry_of("dir", 6);
    assert_eq!(&bytes[names..names + 3 + 5], b"...empty");
    refused(&with(names + 3, b"/"), devices, "an invalid name");
    refused(&with(names + 3, &[0]), devices, "an invalid name");
    refused(
        &with(names + 3, b"z"),
        devices,
        "names that are not in order",
    );
    refused(&with(names, b"a"), devices, "a directory with two names");
    let first_name = entry_of("dir", 0) + 8;
    refused(
        &with(first_name, &[13, 0]),
        devices,
        "a block of a directory without entries",
    );
    refused(
        &with(entry_of("dir", 3) + 8, &[255, 15]),
        devices,
        "names that do not follow each other",
    );
}

#[test]
fn inodes_that_lead_outside_are_refused() {
    let (bytes, devices) = sample();
    let at = |path: &str| place(&bytes, devices, path);
    let with = |at: usize, new: &[u8]| {
        let mut changed = bytes.clone();
        changed[at..at + new.len()].copy_from_slice(new);
        changed
    };
    const SIZE: usize = 8;
    const DATA: usize = 16;
    let outside = "data outside the devices";
    for block in [0_u32, 1, (1 << 18) - 1, u32::MAX] {
        let changed = with(at("big") + DATA, &block.to_le_bytes());
        refused(&changed, devices, outside);
    }
    for size in [1_u64 << 20, 1 << 40, u64::MAX] {
        let changed = with(at("big") + SIZE, &size.to_le_bytes());
        refused(&changed, devices, outside);
    }
    let fields = "an inode whose fields do not fit each other";
    let huge = u64::MAX.to_le_bytes();
    let target = 65_544_u64.to_le_bytes();
    refused(&with(at("symlink") + SIZE, &target), devices, fields);
    refused(&with(at("sparse") + SIZE, &huge), devices, fields);
    let long = (1_u64 << 40).to_le_bytes();
    refused(
        &with(at("sparse") + SIZE, &long),
        devices,
        "chunks outside the metadata",
    );
    refused(&with(at("sparse") + 64, &[1, 0, 0, 0]), devices, outside);
    let far = u64::MAX - u64::MAX % 4096 + 8;
    assert!(check(&with(at("other") + SIZE, &far.to_le_bytes()), devices).is_err());
    refused(
        &with(at("other") + DATA, &u32::MAX.to_le_bytes()),
        devices,
        "data outside the metadata",
    );
    refused(
        &with(at("other") + DATA, &0_u32.to_le_bytes()),
        devices,
        "data outside the metadata",
    );
    refused(
        &with(at("dir/file") + 64 + 12, &u32::MAX.to_le_bytes()),
        devices,
        "an attribute outside the metadata",
    );
    refused(
        &with(at("dir/file") + 64 + 4, &[2]),
        devices,
        "the attributes of an inode are not as we write them",
    );
    refused(
        &with(at("dir/file"), &[0xff]),
        devices,
        "an inode that is not as we write one",
    );
}

#[test]
fn attributes_that_overlayfs_would_take_for_its_own_are_refused() {
    let (bytes, devices) = sample();
    // The only attribute: `user.name` becomes one whose name is as long.
    let entry = b"\x04\x01\x05\0namevalue";
    let at = bytes.windows(entry.len()).position(|b| b == entry).unwrap();
    let with = |entry: &[u8]| {
        let mut changed = bytes.clone();
        changed[at..at + entry.len()].copy_from_slice(entry);
        changed
    };
    assert_eq!(check(&with(b"\x08\x04\x01\0overlay-v"), devices), Ok(()));
    let reason = "an attribute that overlayfs would take for its own";
    refused(&with(b"\x08\x04\x01\0overlay.v"), devices, reason);
    let reason = "an attribute with an invalid name";
    refused(&with(b"\x04\x02\x05\0"), devices, reason);
    refused(&with(b"\0\x01\x05\0"), devices, reason);
    let reason = "an attribute of an unknown name space";
    refused(&with(b"\x04\x05"), devices, reason);
}

#[test]
fn structures_that_are_read_over_and_over_are_refused() {
    let (bytes, devices) = sample();
    let image = Metadata::open(&bytes, devices).unwrap();
    // All empty files of `other` become symlinks whose targets are the same, long bytes.
    let other = find(&image, "other");
    let mut changed = bytes.clone();
    let target = changed.len();
    changed.resize(target + 4096, b't');
    changed[1024 + 36..1024 + 40].copy_from_slice(&((target / 4096 + 1) as u32).to_le_bytes());
    for block in image.blocks(&other).unwrap() {
        for entry in block.entries().unwrap().map(Result::unwrap) {
            if entry.name.starts_with(b".") {
                continue;
            }
            let at = usize::try_from(entry.nid * 32).unwrap();
            changed[at + 4..at + 6].copy_from_slice(&0o120_777_u16.to_le_bytes());
            changed[at + 8..at + 16].copy_from_slice(&4095_u64.to_le_bytes());
            changed[at + 16..at + 20].copy_from_slice(&((target / 4096) as u32).to_le_bytes());
        }
    }
    // Their entries say so.
    let full = usize::try_from(other.inode.data).unwrap() * 4096;
    let count = usize::try_from(other.inode.size / 4096).unwrap();
    let tail = usize::try_from(other.nid * 32).unwrap() + 64;
    for block in (0..count).map(|n| full + n * 4096).chain([tail]) {
        let names = usize::from(u16::from_le_bytes([changed[block + 8], changed[block + 9]]));
        for entry in (block..block + names).step_by(DIRENT_LEN) {
            if changed[entry + 10] == 1 {
                changed[entry + 10] = 7;
            }
        }
    }
    let damage = check(&changed, devices).unwrap_err();
    assert_eq!(damage.reason, "structures that overlap", "{damage}");
}
