//! FORMAT.md's worked examples are what this crate reads and writes.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;

use bfc::Container;

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
        bytes.extend(hex.split_whitespace().map(|b| u8::from_str_radix(b, 16).unwrap()));
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
    assert_eq!((container.footer().index_offset, container.footer().index_size), (0x10a3, 0xa9));
    let index = container.index().unwrap();
    let entries: Vec<_> = index.entries().map(|e| (e.path.to_vec(), e.obj_offset, e.mode, e.orig_size)).collect();
    assert_eq!(
        entries,
        [(b"d".to_vec(), 0x1000, 0o040_755, 0), (b"d/a".to_vec(), 0x1030, 0o100_644, 3), (b"l".to_vec(), 0x1063, 0o120_777, 1),]
    );
}
