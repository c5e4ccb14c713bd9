//! FORMAT.md's worked examples are what this crate reads and writes.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;

use bfc::format::{S_IFDIR, S_IFLNK, S_IFREG};
use bfc::rootfs::{Attr, Kind, Node, Section, Tree};
use bfc::writer::{ContentSink, Documents, ImageWriter, WriteOptions};
use bfc::{Container, ReadAt};

/// The bytes of the dump in FORMAT.md's block of this kind, as `hexdump -C` prints them.
fn dump(kind: &str) -> Vec<u8> {
    let text = include_str!("../FORMAT.md");
    let (_, block) = text.split_once(&format!("```hexdump {kind}\n")).unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let mut bytes: Vec<u8> = Vec::new();
    let mut repeat = false;
    for line in block.lines() {
        if line == "*" {
            repeat = true;
            continue;
        }
        let (offset, rest) = line.split_once(' ').unwrap_or((line, ""));
        let offset = usize::from_str_radix(offset, 16).unwrap();
        if repeat {
            let last = bytes[bytes.len() - 16..].to_vec();
            while bytes.len() < offset {
                bytes.extend_from_slice(&last);
            }
            repeat = false;
        }
        assert_eq!(bytes.len(), offset, "{line}");
        let hex = rest.split('|').next().unwrap();
        bytes.extend(
            hex.split_whitespace()
                .map(|b| u8::from_str_radix(b, 16).unwrap()),
        );
    }
    bytes
}

#[test]
fn the_worked_example_is_the_file() {
    assert_eq!(dump("v1"), include_bytes!("hello.bfc"));
}

#[test]
fn the_worked_example_reads_as_described() {
    let container = Container::open(Arc::new(dump("v1"))).unwrap();
    assert_eq!(container.header().crc, 0x5707_d555);
    assert_eq!(
        (
            container.footer().index_offset,
            container.footer().index_size
        ),
        (0x10a3, 0xa9)
    );
    let index = container.index().unwrap();
    let entries: Vec<_> = index
        .entries()
        .map(|e| (e.path.to_vec(), e.obj_offset, e.mode, e.orig_size))
        .collect();
    assert_eq!(
        entries,
        [
            (b"d".to_vec(), 0x1000, 0o040_755, 0),
            (b"d/a".to_vec(), 0x1030, 0o100_644, 3),
            (b"l".to_vec(), 0x1063, 0o120_777, 1),
        ]
    );
}

/// As `hexdump -C` prints them.
fn hexdump(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let (mut out, mut last, mut repeats) = (String::new(), None, false);
    for (number, line) in bytes.chunks(16).enumerate() {
        if last.replace(line) == Some(line) {
            if !repeats {
                out.push_str("*\n");
            }
            repeats = true;
            continue;
        }
        repeats = false;
        let hex: String = line
            .iter()
            .enumerate()
            .map(|(i, b)| format!("{}{b:02x}", if i == 8 { "  " } else { " " }))
            .collect();
        let text: String = line
            .iter()
            .map(|&b| {
                if (0x20..0x7f).contains(&b) {
                    char::from(b)
                } else {
                    '.'
                }
            })
            .collect();
        writeln!(out, "{:08x} {hex:<49}  |{text}|", number * 16).unwrap();
    }
    writeln!(out, "{:08x}", bytes.len()).unwrap();
    out
}

/// The tree of the second example, as the writer makes an image of it.
fn rootfs_example() -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut writer = ImageWriter::create(file.reopen().unwrap(), WriteOptions::default()).unwrap();
    let content = writer.add(b"d/a", 3, &mut &b"hi\n"[..]).unwrap();
    let mut tree = Tree::default();
    let mut add = |mode, kind| {
        tree.add(Node {
            attr: Attr {
                mode,
                ..Attr::default()
            },
            kind,
        })
    };
    let d = add(
        S_IFDIR | 0o755,
        Kind::Dir(std::collections::BTreeMap::new()),
    );
    let a = add(S_IFREG | 0o644, Kind::File { size: 3, content });
    let l = add(S_IFLNK | 0o777, Kind::Symlink((*b"a").into()));
    for (dir, name, id) in [
        (Tree::ROOT, "d", d),
        (Tree::ROOT, "l", l),
        (d, "a", a),
        (d, "b", a),
    ] {
        tree.link(dir, name.as_bytes(), id);
    }
    writer.finish(tree, Documents::default()).unwrap();
    std::fs::read(file.path()).unwrap()
}

#[test]
fn the_worked_example_of_a_section_is_what_is_written() {
    let written = rootfs_example();
    assert!(
        dump("rootfs") == written,
        "it is now:\n{}",
        hexdump(&written)
    );
}

#[test]
fn the_worked_example_of_a_section_reads_as_described() {
    let container = Container::open(Arc::new(dump("rootfs"))).unwrap();
    assert_eq!(
        container.header().committed,
        container.source().len().unwrap()
    );
    assert_eq!(container.header().generation, 1);
    let locator = container.locator().unwrap().unwrap();
    assert_eq!((locator.offset, locator.size), (0x2000, 0x520));
    let section = Section::open(container.source().clone(), &locator).unwrap();
    section.verify().unwrap();
    let header = section.header();
    let regions = [
        header.inodes,
        header.dentries,
        header.names,
        header.contents,
        header.chunks,
    ];
    assert_eq!(
        regions.map(|r| r.offset),
        [0x200, 0x300, 0x380, 0x480, 0x500]
    );
    let (d, a) = (
        section.inode(2).unwrap().unwrap(),
        section.inode(4).unwrap().unwrap(),
    );
    assert_eq!((d.parent, d.dentry, d.data, d.size), (1, 0, 2, 2));
    assert_eq!((a.nlink, a.size), (2, 3));
    assert_eq!(section.dentry(&d, 1).unwrap().unwrap().dir, 2);
}
