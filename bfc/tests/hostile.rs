//! Sections with false contents and valid digests: readers refuse what would mislead them when they
//! reach it, and `verify` finds the rest.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod forge;

use std::io;
use std::sync::Arc;

use bfc::format::{S_IFDIR, S_IFREG};
use bfc::rootfs::format::{CONTENT_LEN, FRAME_LEN, Region, SectionHeader};
use bfc::rootfs::{Attr, Kind, LayerEntry, Node, Section, Tree, Xattr};
use bfc::writer::{ContentSink, Documents, ImageWriter, WriteOptions};
use bfc::{Container, Error, ReadAt, Result};
use forge::huge::Huge;
use forge::{dentry, forge, inode};

/// Inodes: 1 the root, 2 `d`, 3 `e` and `l`, 4 `d/f`, 5 `d/g`. Dentries: 0 `d`, 1 `e`, 2 `l`, 3
/// `d/f`, 4 `d/g`. Contents: 0 of `e`, one piece, 1 of `d/f`, three frames.
fn image() -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let options = WriteOptions {
        frame_log2: 12,
        ..WriteOptions::default()
    };
    let mut writer = ImageWriter::create(file.reopen().unwrap(), options).unwrap();
    let contents = [
        vec![b'e'; 100],
        (0..3000_u32).flat_map(u32::to_le_bytes).collect(),
    ];
    let numbers = contents.each_ref().map(|bytes| {
        writer
            .add(b"", bytes.len() as u64, &mut &bytes[..])
            .unwrap()
    });
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
    let file_node = |n: usize| Kind::File {
        size: contents[n].len() as u64,
        content: numbers[n],
    };
    let d = add(
        S_IFDIR | 0o755,
        Kind::Dir(std::collections::BTreeMap::new()),
    );
    let (e, f, g) = (
        add(S_IFREG, file_node(0)),
        add(S_IFREG, file_node(1)),
        add(
            S_IFREG,
            Kind::File {
                size: 0,
                content: None,
            },
        ),
    );
    for (dir, name, id) in [
        (Tree::ROOT, "d", d),
        (Tree::ROOT, "e", e),
        (Tree::ROOT, "l", e),
        (d, "f", f),
        (d, "g", g),
    ] {
        tree.link(dir, name.as_bytes(), id);
    }
    writer.finish(tree, Documents::default()).unwrap();
    std::fs::read(file.path()).unwrap()
}

fn open(source: Arc<dyn ReadAt>) -> Result<Section> {
    let container = Container::open(source)?;
    let locator = container.locator()?.unwrap();
    Section::open(container.source().clone(), &locator)
}

/// Visits all of the tree and all frames.
fn walk(section: &Section) -> Result<u64> {
    let (mut stack, mut visits) = (vec![1], 0);
    while let Some(ino) = stack.pop() {
        let dir = section.inode(ino)?.unwrap();
        let mut index = 0;
        while let Some(dentry) = section.dentry(&dir, index)? {
            index += 1;
            visits += 1;
            assert!(visits < 1000, "the walk does not end");
            let child = section.follow(&dentry)?;
            if child.is_dir() {
                stack.push(child.ino);
            } else if child.size > 0 {
                let content = section.content(child.data)?;
                for frame in 0..content.frames {
                    section.frame(&content, frame)?;
                }
            }
        }
    }
    Ok(visits)
}

/// Changes eight bytes of a content record.
fn content(section: &mut [u8], header: &SectionHeader, number: usize, field: usize, value: u64) {
    let at = header.contents.offset as usize + number * CONTENT_LEN + field;
    section[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

type Change = Box<dyn FnOnce(&mut [u8], &SectionHeader)>;

#[test]
fn the_image_is_valid_before_it_is_forged() {
    let section = open(Arc::new(forge(&image(), |_, _| {}))).unwrap();
    assert_eq!(walk(&section).unwrap(), 5);
    section.verify().unwrap();
}

#[test]
fn sections_that_mislead_readers_are_refused() {
    let cases: Vec<(&str, Change)> = vec![
        (
            "a second name for a directory",
            Box::new(|s, h| dentry(s, h, 1, |d| (d.ino, d.kind) = (2, 4))),
        ),
        (
            "the root below itself",
            Box::new(|s, h| dentry(s, h, 1, |d| (d.ino, d.kind) = (1, 4))),
        ),
        (
            "dentries of two directories",
            Box::new(|s, h| inode(s, h, 2, |i| (i.data, i.size) = (0, 3))),
        ),
        (
            "a directory of endless length",
            Box::new(|s, h| inode(s, h, 2, |i| i.size = 1 << 60)),
        ),
        (
            "a directory that is its own parent",
            Box::new(|s, h| inode(s, h, 2, |i| i.parent = 2)),
        ),
        (
            "a directory with a parent behind it",
            Box::new(|s, h| inode(s, h, 2, |i| i.parent = 5)),
        ),
        (
            "a directory that another dentry names",
            Box::new(|s, h| inode(s, h, 2, |i| i.dentry = 1)),
        ),
        (
            "a root that is a file",
            Box::new(|s, h| inode(s, h, 1, |i| i.mode = S_IFREG)),
        ),
        (
            "a time before 1970 with more nanoseconds than a second has",
            Box::new(|s, h| inode(s, h, 3, |i| (i.mtime_s, i.mtime_ns) = (-1, 1_000_000_000))),
        ),
        (
            "a dentry of another type",
            Box::new(|s, h| dentry(s, h, 1, |d| d.kind = 4)),
        ),
        (
            "a dentry of no inode",
            Box::new(|s, h| dentry(s, h, 1, |d| d.ino = 77)),
        ),
        (
            "one piece of 2 GiB",
            Box::new(|s, h| content(s, h, 0, 16, 2 << 30)),
        ),
        (
            "one piece that is stored in 900 GiB",
            Box::new(|s, h| content(s, h, 0, 8, 900 << 30)),
        ),
        (
            "one piece, stored in no byte",
            Box::new(|s, h| content(s, h, 0, 8, 0)),
        ),
        (
            "content in the header",
            Box::new(|s, h| content(s, h, 0, 0, 80)),
        ),
        (
            "content behind the section",
            Box::new(|s, h| content(s, h, 0, 0, 1 << 40)),
        ),
        (
            "an object whose header is to be read",
            Box::new(|s, h| s[h.contents.offset as usize + 30] = 1),
        ),
        (
            "content of another image",
            Box::new(|s, h| s[h.contents.offset as usize + 31] = 1),
        ),
        (
            "too few frames",
            Box::new(|s, h| content(s, h, 1, 16, 1 << 40)),
        ),
        (
            "frames that are not there",
            Box::new(|s, h| s[h.contents.offset as usize + CONTENT_LEN + 32] = 200),
        ),
        (
            "a frame of 4 GiB",
            Box::new(|s, h| s[h.frames.offset as usize + 8..][..4].fill(255)),
        ),
        (
            "a frame of no byte",
            Box::new(|s, h| s[h.frames.offset as usize + 8..][..4].fill(0)),
        ),
    ];
    for (name, change) in cases {
        let section = open(Arc::new(forge(&image(), change))).unwrap();
        let error = walk(&section).map(drop).unwrap_err();
        assert!(matches!(error, Error::Section { .. }), "{name}: {error}");
        assert!(section.verify().is_err(), "{name}");
    }
}

#[test]
fn what_is_only_wrong_is_found_by_verify() {
    let cases: Vec<(&str, Change)> = vec![
        (
            "a link count that is too small",
            Box::new(|s, h| inode(s, h, 3, |i| i.nlink = 1)),
        ),
        (
            "a link count that is too large",
            Box::new(|s, h| inode(s, h, 4, |i| i.nlink = 2)),
        ),
        (
            "a link count of a directory",
            Box::new(|s, h| inode(s, h, 1, |i| i.nlink = 2)),
        ),
        (
            "an inode without a name",
            Box::new(|s, h| dentry(s, h, 4, |d| d.ino = 4)),
        ),
        (
            "a dentry of no directory",
            Box::new(|s, h| inode(s, h, 2, |i| i.size = 1)),
        ),
        (
            "names that are not in order",
            Box::new(|s, h| dentry(s, h, 1, |d| d.name = 0)),
        ),
        (
            "a name with a slash",
            Box::new(|s, h| s[h.names.offset as usize + 4] = b'/'),
        ),
        (
            "frames with a gap",
            Box::new(|s, h| s[h.frames.offset as usize + FRAME_LEN] += 1),
        ),
        (
            "a link count of nothing",
            Box::new(|s, h| inode(s, h, 3, |i| i.nlink = 0)),
        ),
    ];
    for (name, change) in cases {
        let section = open(Arc::new(forge(&image(), change))).unwrap();
        let error = section.verify().unwrap_err();
        assert!(matches!(error, Error::Section { .. }), "{name}: {error}");
    }
}

/// A file of an image with attributes, and a layer.
fn with_attributes() -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut writer = ImageWriter::create(file.reopen().unwrap(), WriteOptions::default()).unwrap();
    let mut tree = Tree::default();
    let dir = tree.make_dirs(b"d");
    let xattrs = vec![Xattr {
        name: b"user.a".to_vec(),
        value: b"b".to_vec(),
    }];
    let f = tree.add(Node {
        attr: Attr {
            mode: S_IFREG,
            xattrs,
            ..Attr::default()
        },
        kind: Kind::File {
            size: 0,
            content: None,
        },
    });
    tree.link(dir, b"f", f);
    let record = writer.end_layer().unwrap();
    let layers = vec![LayerEntry {
        record,
        ..LayerEntry::default()
    }];
    writer
        .finish(
            tree,
            Documents {
                layers,
                ..Documents::default()
            },
        )
        .unwrap();
    std::fs::read(file.path()).unwrap()
}

#[test]
fn unlisted_attributes_and_endless_layers_are_damage() {
    let list = |s: &[u8], h: &SectionHeader| {
        h.xattrs.offset as usize
            + u32::from_le_bytes(s[h.xattrs.offset as usize..][..4].try_into().unwrap()) as usize
    };
    let cases: Vec<(&str, Change)> = vec![
        (
            "a list that ends early",
            Box::new(|s, h| s[h.xattrs.offset as usize + 4] = 1),
        ),
        (
            "a list without the directory",
            Box::new(move |s, h| {
                let at = list(s, h);
                s[at..at + 4].copy_from_slice(&2_u32.to_le_bytes())
            }),
        ),
        (
            "a layer that ends behind the image",
            Box::new(|s, h| s[h.layers.offset as usize + 72 + 5] = 1),
        ),
        (
            "a layer that ends in the header",
            Box::new(|s, h| s[h.layers.offset as usize + 72..][..8].fill(0)),
        ),
        (
            "a layer of contents that are not there",
            Box::new(|s, h| s[h.layers.offset as usize + 64] = 9),
        ),
        (
            "a layer of frames that are not there",
            Box::new(|s, h| s[h.layers.offset as usize + 68] = 9),
        ),
    ];
    open(Arc::new(with_attributes())).unwrap().verify().unwrap();
    for (name, change) in cases {
        let error = open(Arc::new(forge(&with_attributes(), change)))
            .unwrap()
            .verify()
            .unwrap_err();
        assert!(matches!(error, Error::Section { .. }), "{name}: {error}");
    }
}

#[test]
fn images_of_earlier_versions_must_be_rebuilt() {
    // As the version before wrote it: no feature, no committed length.
    let before = forge(&image(), |section, _| section[8..16].fill(0));
    let error = open(Arc::new(before)).unwrap_err();
    assert!(error.to_string().contains("build it again"), "{error}");
    let mut before = image();
    before[72..88].fill(0);
    let crc = bfc::crc::Flavour::Raw.crc(&before[12..4096]).to_le_bytes();
    before[8..12].copy_from_slice(&crc);
    assert!(matches!(open(Arc::new(before)), Err(Error::Outdated)));
    // Holes are of a version to come.
    let later = forge(&image(), |section, _| section[8] |= 8);
    assert!(matches!(open(Arc::new(later)), Err(Error::Unsupported(_))));
}

/// A file that claims to be 1 TiB long, and is shorter.
struct Claims(Vec<u8>);

impl ReadAt for Claims {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(1 << 40)
    }
}

/// Readers believe lengths only as far as the file has bytes.
#[test]
fn claims_of_a_long_file_are_errors() {
    let good = image();
    let footer = good.len() - 56;
    let claim = |at: usize, value: u64| {
        let mut bytes = good.clone();
        bytes[footer + at..footer + at + 8].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    // The index is the last GiB before the footer, or one longer than any.
    let refused = |bytes: Vec<u8>| match Container::open(Arc::new(Claims(bytes))) {
        Err(_) => true,
        Ok(container) => container.index().is_err() && container.locator().is_err(),
    };
    assert!(refused(claim(8, 1 << 39)) && refused(claim(20, 1 << 39)));
    // Blobs, and a path that content is sealed with.
    let section = open(Arc::new(Claims(good.clone()))).unwrap();
    assert!(matches!(
        section.blob(Region {
            offset: 0,
            size: 1 << 40
        }),
        Err(Error::TooLarge(_))
    ));
    assert!(
        section
            .blob(Region {
                offset: 0,
                size: 1 << 20
            })
            .is_err()
    );
    let mut sealed = section.content(0).unwrap();
    sealed.path_len = u32::MAX;
    assert!(section.content_path(&sealed).is_err());
}

/// A piece is stored in no more bytes than its length allows, wherever the file ends.
#[test]
fn stored_bytes_of_a_long_file_are_bounded() {
    let section = open(Arc::new(Huge::new(image()))).unwrap();
    assert_eq!(walk(&section).unwrap(), 5);
    section.verify().unwrap();
    let piece = forge(&image(), |section, header| {
        content(section, header, 0, 8, 900 << 30)
    });
    let piece = open(Arc::new(Huge::new(piece))).unwrap();
    assert!(
        matches!(piece.content(0), Err(Error::Section { reason, .. })
            if reason.contains("longer than a frame"))
    );
    // The content may be as long, its frames may not: the first 4 GiB, or one that ends behind it.
    let frames = forge(&image(), |section, header| {
        content(section, header, 1, 8, 900 << 30);
        let frame = header.frames.offset as usize;
        section[frame + 8..frame + 12].fill(0xff);
        section[frame + FRAME_LEN..][..8].copy_from_slice(&(900_u64 << 30).to_le_bytes());
    });
    let section = open(Arc::new(Huge::new(frames))).unwrap();
    let content = section.content(1).unwrap();
    for (number, wanted) in [
        (0, "stored longer than a frame"),
        (1, "outside its content"),
    ] {
        assert!(
            matches!(section.frame(&content, number), Err(Error::Section { reason, .. })
            if reason.contains(wanted))
        );
    }
    section.frame(&content, 2).unwrap();
}

#[test]
fn a_v1_path_is_no_longer_than_a_path() {
    let index = |len: u32| {
        let mut blob = [1_u32.to_le_bytes(), 1_u32.to_le_bytes(), len.to_le_bytes()].concat();
        blob.extend(b"a/".iter().cycle().take(len as usize));
        blob.extend([0; 48]);
        bfc::Index::new(blob)
    };
    assert_eq!(index(65_535).unwrap().len(), 1);
    assert!(matches!(index(65_536), Err(Error::Index { entry: 0, .. })));
}
