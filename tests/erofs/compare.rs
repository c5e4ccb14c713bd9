//! Compares metadata with the tree that they were made of, through our own reader. The fuzz target
//! uses it, too.

use std::collections::HashMap;
use std::fmt::Debug;

use bfc::format::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use lxcri_fs::erofs::format::{OVERLAY_MARKS, encode_device, file_type};
use lxcri_fs::erofs::{Data, Layout, Metadata, Node};
use lxcri_fs::fs::{ROOT, Rootfs, Seek};

fn same<T: PartialEq + Debug>(what: &str, expected: T, found: T) {
    assert!(expected == found, "{what}: {expected:?}, found {found:?}");
}

/// Panics unless metadata show the tree, and each content is where the layout has it.
pub fn compare(rootfs: &Rootfs, layout: &Layout, image: &Metadata<'_>) {
    let mut numbers = HashMap::new();
    let root = image.root().unwrap();
    let mut waiting = vec![(ROOT, root, root.nid)];
    inode(rootfs, layout, image, ROOT, &root);
    numbers.insert(ROOT, root.nid);
    while let Some((ino, node, parent)) = waiting.pop() {
        let mut expected = vec![
            (b".".to_vec(), None, node.nid),
            (b"..".to_vec(), None, parent),
        ];
        rootfs
            .readdir_plus(ino, 0, &mut |_, child, record, name| {
                expected.push((name.to_vec(), Some((child, record.mode)), 0));
                true
            })
            .unwrap();
        expected.sort();
        let blocks = image.blocks(&node).unwrap();
        let found = blocks.flat_map(|block| block.entries().unwrap());
        let mut count = 0;
        for (entry, (name, child, nid)) in found.zip(&expected) {
            let entry = entry.unwrap();
            count += 1;
            same("a name", &name[..], entry.name);
            let Some((child, mode)) = *child else {
                same("`.` or `..`", *nid, entry.nid);
                continue;
            };
            same("a type", file_type(mode), Some(entry.kind));
            let known = numbers.insert(child, entry.nid);
            if let Some(known) = known {
                same("the number of a hard link", known, entry.nid);
                continue;
            }
            let node_of_child = image.node(entry.nid).unwrap();
            inode(rootfs, layout, image, child, &node_of_child);
            if mode & S_IFMT == S_IFDIR {
                waiting.push((child, node_of_child, node.nid));
            }
        }
        same("the number of entries", expected.len(), count);
    }
    let count = numbers.len() as u64;
    same("the number of inodes", count, image.super_block().inodes);
    numbers
        .into_values()
        .fold(std::collections::HashSet::new(), |mut seen, nid| {
            assert!(seen.insert(nid), "two inodes have the number {nid}");
            seen
        });
}

fn inode(rootfs: &Rootfs, layout: &Layout, image: &Metadata<'_>, ino: u32, node: &Node) {
    let record = rootfs.inode(ino).unwrap();
    let found = &node.inode;
    same("a mode", record.mode & 0xffff, node.mode());
    same("owners", (record.uid, record.gid), (found.uid, found.gid));
    same("links", record.nlink.max(1), found.nlink);
    let time = (found.mtime_s, found.mtime_ns);
    same("a time", (record.mtime_s, record.mtime_ns), time);
    let expected: Vec<_> = if rootfs.has_xattrs() {
        let all = rootfs.xattrs(ino).unwrap();
        let shown = all
            .into_iter()
            .filter(|x| !x.name.starts_with(OVERLAY_MARKS));
        shown.map(|x| (x.name, x.value)).collect()
    } else {
        Vec::new()
    };
    let xattrs = image.xattrs(node).unwrap();
    let xattrs: Vec<_> = xattrs.into_iter().map(|(n, v)| (n, v.to_vec())).collect();
    same("attributes", expected, xattrs);
    match record.mode & S_IFMT {
        S_IFREG => file(rootfs, layout, image, ino, node),
        S_IFLNK => {
            let target = rootfs.readlink(ino).unwrap();
            same("a target", &target[..], image.target(node).unwrap());
        }
        S_IFCHR | S_IFBLK => {
            let (major, minor) = record.rdev();
            same("a device", encode_device(major, minor), Some(found.data));
        }
        S_IFDIR => {}
        _ => same("a length", 0, found.size),
    }
}

fn file(rootfs: &Rootfs, layout: &Layout, image: &Metadata<'_>, ino: u32, node: &Node) {
    let record = rootfs.inode(ino).unwrap();
    same("a length", record.size, node.inode.size);
    let place = u32::try_from(record.data)
        .ok()
        .and_then(|n| layout.place(n));
    let mut at = 0;
    for data in image.data(node).unwrap() {
        match data.unwrap() {
            Data::Device {
                device,
                offset,
                len,
            } => {
                let place = place.unwrap();
                same("a device", place.device, device);
                same("an address", place.offset + at, offset);
                at += len;
            }
            Data::Hole(len) => {
                let next = rootfs.seek(ino, at, Seek::Data).unwrap();
                assert!(next.is_none_or(|next| next >= at + len), "data in a hole");
                at += len;
            }
        }
    }
    same("the length of all data", record.size, at);
}
