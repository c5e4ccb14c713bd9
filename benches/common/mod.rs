//! The images that the benches use, made once in the target directory.
#![allow(dead_code)] // each bench uses a part

use std::fs::File;
use std::path::{Path, PathBuf};

use bfc::format::S_IFREG;
use bfc::rootfs::{Attr, Kind, Node, Tree};
use bfc::writer::{ContentSink, Documents, ImageWriter, WriteOptions};
use lxcri_fs::fs::{ImageFile, ImageOptions, Rootfs};

/// How many files a directory has.
pub const FILES: u32 = 1000;
/// Length of the file `big`, bytes.
pub const BIG: u64 = 32 << 20;

/// An image with at least so many entries: directories of [`FILES`] files, and one file of [`BIG`]
/// bytes.
pub fn image(entries: u32) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{entries}.bfc"));
    if !path.exists() {
        let new = path.with_extension("new");
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&new)
            .unwrap();
        write(
            ImageWriter::create(file, WriteOptions::default()).unwrap(),
            entries,
        );
        std::fs::rename(new, &path).unwrap();
    }
    path
}

fn write(mut writer: ImageWriter, entries: u32) {
    let big = writer.add(b"big", BIG, &mut text(BIG).as_slice()).unwrap();
    let small = writer
        .add(b"small", 1000, &mut text(1000).as_slice())
        .unwrap();
    let mut tree = Tree::default();
    let mut add = |path: &str, size, content| {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let dir = tree.make_dirs(dir.as_bytes());
        let attr = Attr {
            mode: S_IFREG | 0o644,
            mtime_s: 1_500_000_000,
            ..Attr::default()
        };
        let file = tree.add(Node {
            attr,
            kind: Kind::File { size, content },
        });
        tree.link(dir, name.as_bytes(), file);
    };
    add("big", BIG, big);
    for i in 0..entries {
        add(&path(i), 1000, small);
    }
    writer.finish(tree, Documents::default()).unwrap();
}

/// The path of a file.
pub fn path(number: u32) -> String {
    format!(
        "directory-{:04}/file-{:03}.txt",
        number / FILES,
        number % FILES
    )
}

/// Opens an image as `mount` does.
pub fn open(path: &Path) -> Rootfs {
    let source = ImageFile {
        path: path.to_owned(),
        file: File::open(path).unwrap(),
        secret: None,
    };
    Rootfs::open(vec![source], &ImageOptions::default()).unwrap()
}

/// Numbers that look random, the same in every run (xorshift).
pub fn numbers() -> impl Iterator<Item = u64> {
    std::iter::successors(Some(0x9e37_79b9_7f4a_7c15_u64), |&x| {
        let x = x ^ x << 13;
        let x = x ^ x >> 7;
        Some(x ^ x << 17)
    })
}

/// Something that compresses as program text does, to about a third.
fn text(len: u64) -> Vec<u8> {
    let words: Vec<String> = numbers()
        .take(4000)
        .map(|n| format!("{:x}", n >> (n % 48)))
        .collect();
    let mut out = Vec::new();
    for n in numbers() {
        if out.len() as u64 >= len {
            break;
        }
        out.extend_from_slice(words[n as usize % words.len()].as_bytes());
        out.push(b' ');
    }
    out.truncate(len as usize);
    out
}
