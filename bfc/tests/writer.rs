//! What the writer writes, the reader reads; and damage is refused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation
)]

use std::sync::Arc;

use bfc::content::Decoder;
use bfc::format::{Compression, Encryption, S_IFDIR, S_IFREG};
use bfc::rootfs::{Attr, Kind, Node, Section, Tree};
use bfc::writer::{ContentSink, Documents, ImageWriter, Keep, WriteOptions, Written};
use bfc::{Container, Error, Key};

const FRAME_LOG2: u8 = 12;

fn options() -> WriteOptions {
    WriteOptions {
        frame_log2: FRAME_LOG2,
        ..WriteOptions::default()
    }
}

/// Bytes that compress, and differ with `seed`.
fn text(seed: u32, len: usize) -> Vec<u8> {
    (0..len as u32)
        .flat_map(|i| (i / 7 * (seed + 3)).to_string().into_bytes())
        .take(len)
        .collect()
}

/// Bytes that do not compress.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 32) as u8
        })
        .collect()
}

fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("empty", vec![]),
        ("one", b"x".to_vec()),
        ("frame", text(1, 4096)),
        ("frames", text(2, 50_000)),
        ("frames-again", text(2, 50_000)),
        ("noise", noise(5, 30_001)),
        ("tiny-noise", noise(6, 100)),
        ("last", text(3, 4097)),
    ]
}

fn add_files(writer: &mut ImageWriter, tree: &mut Tree, files: &[(&str, Vec<u8>)]) {
    for (name, bytes) in files {
        let content = writer
            .add(name.as_bytes(), bytes.len() as u64, &mut &bytes[..])
            .unwrap();
        let attr = Attr {
            mode: S_IFREG | 0o644,
            mtime_s: -5,
            mtime_ns: 7,
            uid: 4_000_000_000,
            ..Attr::default()
        };
        let id = tree.add(Node {
            attr,
            kind: Kind::File {
                size: bytes.len() as u64,
                content,
            },
        });
        tree.link(Tree::ROOT, name.as_bytes(), id);
    }
}

fn image(options: WriteOptions) -> (tempfile::NamedTempFile, Tree, Written) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut writer = ImageWriter::create(file.reopen().unwrap(), options).unwrap();
    let mut tree = Tree::default();
    tree.node_mut(Tree::ROOT).attr.mode = S_IFDIR | 0o750;
    add_files(&mut writer, &mut tree, &files());
    let layer = writer.end_layer().unwrap();
    assert!(layer.contents_end > 0);
    let written = writer.finish(tree.clone(), Documents::default()).unwrap();
    (file, tree, written)
}

/// The bytes of an image of these files.
fn image_of(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut writer = ImageWriter::create(file.reopen().unwrap(), options()).unwrap();
    let mut tree = Tree::default();
    add_files(&mut writer, &mut tree, files);
    writer.finish(tree, Documents::default()).unwrap();
    std::fs::read(file.path()).unwrap()
}

fn open(bytes: Vec<u8>) -> Result<(Container, Section), Error> {
    let container = Container::open(Arc::new(bytes))?;
    let locator = container.locator()?.ok_or(Error::NotBfc("no section"))?;
    let section = Section::open(container.source().clone(), &locator)?;
    Ok((container, section))
}

fn read(
    container: &Container,
    section: &Section,
    name: &str,
    key: Option<&Key>,
) -> Result<Vec<u8>, Error> {
    let root = section.inode(1)?.unwrap();
    let dentry = section.lookup(&root, name.as_bytes())?.unwrap();
    let inode = section.inode(dentry.ino)?.unwrap();
    if inode.size == 0 {
        return Ok(Vec::new());
    }
    let content = section.content(inode.data)?;
    let path = section.content_path(&content)?;
    let decoder = Decoder {
        source: &**container.source(),
        len: container.len(),
        flavour: container.flavour(),
        key,
        check_hash: true,
    };
    let mut out = vec![0; content.size as usize];
    if content.frames == 0 {
        decoder.whole(&content, &path, &mut out)?;
    }
    let frames = (0..content.frames)
        .map(|index| section.frame(&content, index))
        .collect::<Result<Vec<_>, _>>()?;
    decoder.frames(&content, &frames, 0, &path, 1 << FRAME_LOG2, &mut out)?;
    Ok(out)
}

#[test]
fn round_trip() {
    let (file, _, written) = image(options());
    let bytes = std::fs::read(file.path()).unwrap();
    assert_eq!(bytes.len() as u64, written.len);
    let (container, section) = open(bytes).unwrap();
    section.verify().unwrap();
    for (name, content) in files() {
        assert_eq!(
            read(&container, &section, name, None).unwrap(),
            content,
            "{name}"
        );
    }
    let inode = section.inode(2).unwrap().unwrap();
    assert_eq!(
        (inode.mtime_s, inode.mtime_ns, inode.uid),
        (-5, 7, 4_000_000_000)
    );
    // Six different contents: the two alike are one, and the empty file has none.
    assert_eq!(section.content_count(), 6);
    assert_eq!(container.index().unwrap().len(), files().len());
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let (a, _, _) = image(options());
    let (b, _, _) = image(options());
    assert_eq!(
        std::fs::read(a.path()).unwrap(),
        std::fs::read(b.path()).unwrap()
    );
}

#[test]
fn incompressible_content_is_stored() {
    let (file, _, _) = image(options());
    let (_, section) = open(std::fs::read(file.path()).unwrap()).unwrap();
    let stored = (0..section.content_count())
        .map(|n| section.content(n).unwrap())
        .filter(|c| c.comp == Compression::None);
    assert_eq!(stored.map(|c| c.size).collect::<Vec<_>>(), [1, 30_001, 100]);
}

#[test]
fn v1_content_of_several_frames_is_one_zstd_stream() {
    let (file, _, _) = image(options());
    let container = Container::open(Arc::new(std::fs::read(file.path()).unwrap())).unwrap();
    let index = container.index().unwrap();
    let entry = index.entries().find(|e| e.path == b"frames").unwrap();
    let object = &std::fs::read(file.path()).unwrap()[entry.obj_offset as usize..]
        [..entry.obj_size as usize];
    assert_eq!(
        zstd::stream::decode_all(&object[48..]).unwrap(),
        text(2, 50_000)
    );
}

#[test]
fn encrypted() {
    let key = Key::from_slice(&[9; 32]).unwrap();
    let sealed = WriteOptions {
        key: Some((key.clone(), [0; 32])),
        ..options()
    };
    let (file, _, _) = image(sealed);
    let (container, section) = open(std::fs::read(file.path()).unwrap()).unwrap();
    for (name, content) in files() {
        assert_eq!(
            read(&container, &section, name, Some(&key)).unwrap(),
            content,
            "{name}"
        );
    }
    let other = Key::from_slice(&[8; 32]).unwrap();
    assert!(matches!(
        read(&container, &section, "one", Some(&other)),
        Err(Error::Content { .. })
    ));
    assert!(matches!(
        read(&container, &section, "one", None),
        Err(Error::KeyNeeded)
    ));
    assert_eq!(section.content(1).unwrap().enc, Encryption::Whole);
    let frames = section.content(2).unwrap();
    assert_eq!(frames.enc, Encryption::Frames);

    // Two frames of one file change places: each is whole, and neither opens.
    let (a, b) = (
        section.frame(&frames, 0).unwrap(),
        section.frame(&frames, 1).unwrap(),
    );
    let path = section.content_path(&frames).unwrap();
    let decoder = Decoder {
        source: &**container.source(),
        len: container.len(),
        flavour: container.flavour(),
        key: Some(&key),
        check_hash: false,
    };
    let mut out = vec![0; 1 << FRAME_LOG2];
    decoder
        .frames(&frames, &[a], 0, &path, 4096, &mut out)
        .unwrap();
    assert!(
        decoder
            .frames(&frames, &[b], 0, &path, 4096, &mut out)
            .is_err()
    );
    assert!(
        decoder
            .frames(&frames, &[a], 0, b"elsewhere", 4096, &mut out)
            .is_err()
    );
}

#[test]
fn append_in_place_keeps_the_old_image_until_the_header() {
    let (file, mut tree, before) = image(options());
    let old = std::fs::read(file.path()).unwrap();
    let (container, section) = open(old.clone()).unwrap();
    let handle = std::fs::File::options()
        .read(true)
        .write(true)
        .open(file.path())
        .unwrap();
    let mut writer =
        ImageWriter::resume(handle, &container, &section, Keep::All, options()).unwrap();
    // One content that is there already, one that is new.
    add_files(
        &mut writer,
        &mut tree,
        &[("copy", text(2, 50_000)), ("new", text(9, 20_000))],
    );
    writer.end_layer().unwrap();
    let after = writer.finish(tree, Documents::default()).unwrap();
    let new = std::fs::read(file.path()).unwrap();
    assert_eq!(
        new[512..old.len()],
        old[512..],
        "only the first sector changes"
    );
    assert!(
        after.len - before.len < 17_000,
        "content that is there is not stored again"
    );
    let (container, section) = open(new.clone()).unwrap();
    assert_eq!(
        (container.header().committed, container.header().generation),
        (after.len, 2)
    );
    assert_eq!(
        read(&container, &section, "new", None).unwrap(),
        text(9, 20_000)
    );
    assert_eq!(
        read(&container, &section, "copy", None).unwrap(),
        text(2, 50_000)
    );
    assert_eq!(
        read(&container, &section, "noise", None).unwrap(),
        noise(5, 30_001)
    );

    // However much of it is there: with the old header it is the old image, with the new one the
    // new image or damage.
    for cut in (old.len()..=new.len())
        .step_by(977)
        .chain([new.len() - 1, new.len()])
    {
        let mut bytes = new[..cut].to_vec();
        match open(bytes.clone()) {
            Ok(_) => assert_eq!(cut, new.len()),
            Err(error) => assert!(
                matches!(error, Error::CutOff { .. }) && cut < new.len(),
                "{error}"
            ),
        }
        bytes[..512].copy_from_slice(&old[..512]);
        let (container, section) = open(bytes).unwrap();
        assert_eq!(
            (container.torn().is_some(), container.header().generation),
            (cut > old.len(), 1)
        );
        assert!(
            section
                .lookup(&section.inode(1).unwrap().unwrap(), b"new")
                .unwrap()
                .is_none()
        );
    }
}

/// A decoder that knows nothing of our digests notices damage by zstd's own checksum: all bits of a
/// content's frames, one at a time.
#[test]
fn a_foreign_decoder_finds_every_flipped_bit() {
    let bytes = image_of(&[("one", text(4, 300)), ("two", text(5, 5000))]);
    let (container, section) = open(bytes.clone()).unwrap();
    for (number, expected) in [(0, text(4, 300)), (1, text(5, 5000))] {
        let content = section.content(number).unwrap();
        assert_eq!(content.comp, Compression::Zstd);
        let stored = bytes[content.offset as usize..][..content.stored as usize].to_vec();
        assert_eq!(zstd::stream::decode_all(&stored[..]).unwrap(), expected);
        for bit in 0..stored.len() * 8 {
            let mut damaged = stored.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // A bit that means nothing may change.
            if let Ok(found) = zstd::stream::decode_all(&damaged[..]) {
                assert_eq!(found, expected, "bit {bit}");
            }
        }
    }
    assert_eq!(container.header().generation, 1);
}

/// Every bit of section, index and footer, one at a time: refused, or served right.
#[test]
fn no_flipped_bit_of_the_metadata_is_believed() {
    let good = image_of(&[("a", b"hello".to_vec()), ("b", text(1, 5000))]);
    let start = Container::open(Arc::new(good.clone()))
        .unwrap()
        .locator()
        .unwrap()
        .unwrap()
        .offset as usize;
    for bit in start * 8..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let Ok((container, section)) = open(bytes) else {
            continue;
        };
        for (name, content) in [("a", b"hello".to_vec()), ("b", text(1, 5000))] {
            let looked_up = section
                .inode(1)
                .and_then(|root| section.lookup(&root.unwrap(), name.as_bytes()));
            match looked_up {
                Ok(Some(_)) => match read(&container, &section, name, None) {
                    Ok(found) => assert_eq!(found, content, "bit {bit}"),
                    Err(_) => continue,
                },
                Ok(None) => panic!("bit {bit}: {name} has gone"),
                Err(_) => continue,
            }
        }
    }
}

/// A feature that a reader must know, and one that it may ignore.
#[test]
fn unknown_features() {
    let (file, _, _) = image(options());
    let good = std::fs::read(file.path()).unwrap();
    let container = Container::open(Arc::new(good.clone())).unwrap();
    let (footer, locator) = (container.footer(), container.locator().unwrap().unwrap());
    let changed = |field: usize| {
        let mut bytes = good.clone();
        let section = locator.offset as usize;
        bytes[section + field + 5] = 0x80;
        // The root digest, the locator's checksum and the index's follow from the header.
        let digest = *blake3::hash(&bytes[section..section + 512]).as_bytes();
        let locator = bfc::rootfs::format::Locator {
            root_digest: digest,
            ..locator
        }
        .encode(container.flavour());
        let end = (footer.index_offset + footer.index_size) as usize;
        bytes[end - 64..end].copy_from_slice(&locator);
        let crc = container
            .flavour()
            .crc(&bytes[footer.index_offset as usize..end])
            .to_le_bytes();
        bytes[end + 16..end + 20].copy_from_slice(&crc);
        open(bytes)
    };
    let error = changed(8).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("incompatible features 0x800000000000"),
        "{error}"
    );
    let (container, section) = changed(16).unwrap();
    assert_eq!(
        read(&container, &section, "frames", None).unwrap(),
        text(2, 50_000)
    );
}
