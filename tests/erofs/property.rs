//! Random trees are written, checked, and read back.

use std::fs::File;
use std::path::PathBuf;

use bfc::format::{S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, S_IFSOCK};
use bfc::rootfs::{Attr, Kind, Node, Tree, Xattr};
use bfc::writer::{ContentSink, Documents, ImageWriter, WriteOptions};
use lxcri_fs::erofs::{self, Error, Inodes, Layout, Metadata, check, write};
use lxcri_fs::fs::{ImageFile, ImageOptions, Rootfs};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::compare::compare;

/// Short frames, so that small files have several.
const FRAME_LOG2: u8 = 12;

/// Something in a tree: where it is, by which other, and what it is.
#[derive(Debug, Clone)]
struct Item {
    /// Which of the directories before it has it.
    parent: prop::sample::Index,
    name: Vec<u8>,
    kind: What,
    mode: u16,
    ids: (u32, u32),
    time: (i64, u32),
    xattrs: Vec<(usize, Vec<u8>, Vec<u8>)>,
}

#[derive(Debug, Clone)]
enum What {
    Dir,
    /// Length, and how many bytes at its beginning are data.
    File(usize, usize),
    Symlink(usize),
    Device(u32, u32),
    Fifo,
    Socket,
    /// Another name of one of the inodes before it.
    Link(prop::sample::Index),
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        3 => Just(What::Dir),
        4 => (0..70_000_usize, 0..70_000_usize).prop_map(|(len, data)| What::File(len, data)),
        1 => Just(What::File(0, 0)),
        2 => (1..=4095_usize).prop_map(What::Symlink),
        1 => (0..4096_u32, 0..1_048_576_u32).prop_map(|(a, b)| What::Device(a, b)),
        1 => Just(What::Fifo),
        1 => Just(What::Socket),
        2 => any::<prop::sample::Index>().prop_map(What::Link),
    ]
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_map(|b| if b == 0 || b == b'/' { b'_' } else { b });
    let length = prop_oneof![4 => 1..20_usize, 1 => 200..=255_usize];
    let name = length.prop_flat_map(move |len| vec(byte.clone(), len));
    name.prop_map(|name| match &name[..] {
        b"." | b".." => b"dots".to_vec(),
        _ => name,
    })
}

fn xattr() -> impl Strategy<Value = (usize, Vec<u8>, Vec<u8>)> {
    let value = prop_oneof![4 => vec(any::<u8>(), 0..40), 1 => vec(any::<u8>(), 3000..9000)];
    (0..6_usize, vec(1..=255_u8, 1..30), value)
}

fn item() -> impl Strategy<Value = Item> {
    let id = prop_oneof![0..70_000_u32, any::<u32>()];
    let second = prop_oneof![3 => 0..1_i64 << 33, 1 => any::<i64>()];
    let nanosecond = prop_oneof![2 => Just(0), 1 => 0..1_000_000_000_u32];
    (
        any::<prop::sample::Index>(),
        name(),
        what(),
        0..0o10000_u16,
        (id.clone(), id),
        (second, nanosecond),
        prop_oneof![3 => Just(Vec::new()), 1 => vec(xattr(), 1..6)],
    )
        .prop_map(|(parent, name, kind, mode, ids, time, xattrs)| Item {
            parent,
            name,
            kind,
            mode,
            ids,
            time,
            xattrs,
        })
}

const PREFIXES: [&str; 6] = [
    "user.",
    "trusted.",
    "trusted.overlay.",
    "security.",
    "system.posix_acl_access",
    "system.posix_acl_default",
];

fn attr(item: &Item, kind: u32) -> Attr {
    let mut xattrs: Vec<Xattr> = Vec::new();
    for (prefix, rest, value) in &item.xattrs {
        let mut name = PREFIXES[*prefix].as_bytes().to_vec();
        if name.ends_with(b".") {
            name.extend_from_slice(rest);
        }
        if xattrs.iter().all(|x| x.name != name) {
            let value = value.clone();
            xattrs.push(Xattr { name, value });
        }
    }
    Attr {
        mode: kind | u32::from(item.mode),
        uid: item.ids.0,
        gid: item.ids.1,
        mtime_s: item.time.0,
        mtime_ns: item.time.1,
        xattrs,
    }
}

fn image_file() -> (tempfile::NamedTempFile, ImageWriter) {
    let temp = tempfile::NamedTempFile::new().unwrap();
    let file = File::options()
        .read(true)
        .write(true)
        .open(temp.path())
        .unwrap();
    let options = WriteOptions {
        frame_log2: FRAME_LOG2,
        ..WriteOptions::default()
    };
    (temp, ImageWriter::create(file, options).unwrap())
}

fn open(temp: &tempfile::NamedTempFile) -> Rootfs {
    let source = ImageFile {
        path: PathBuf::new(),
        file: temp.reopen().unwrap(),
        secret: None,
    };
    Rootfs::open(vec![source], &ImageOptions::default()).unwrap()
}

fn image(items: &[Item]) -> Rootfs {
    let (temp, mut writer) = image_file();
    let mut tree = Tree::default();
    let mut dirs = vec![Tree::ROOT];
    let mut others = Vec::new();
    for item in items {
        let dir = *item.parent.get(&dirs);
        if tree.child(dir, &item.name).is_some() {
            continue;
        }
        let (kind, mode) = match &item.kind {
            What::Dir => (Kind::Dir(std::collections::BTreeMap::new()), S_IFDIR),
            What::File(len, data) => {
                let mut bytes = crate::oddities::noise(*data.min(len), *len as u64);
                bytes.resize(*len, 0);
                let content = writer.add(b"file", *len as u64, &mut &bytes[..]).unwrap();
                let size = *len as u64;
                (Kind::File { size, content }, S_IFREG)
            }
            What::Symlink(len) => (Kind::Symlink(vec![b't'; *len].into()), S_IFLNK),
            What::Device(major, minor) => (Kind::Device(*major, *minor), S_IFCHR),
            What::Fifo => (Kind::Other, S_IFIFO),
            What::Socket => (Kind::Other, S_IFSOCK),
            What::Link(to) => {
                if !others.is_empty() {
                    tree.link(dir, &item.name, *to.get(&others));
                }
                continue;
            }
        };
        let is_dir = mode == S_IFDIR;
        let attr = attr(item, mode);
        let id = tree.add(Node { attr, kind });
        tree.link(dir, &item.name, id);
        if is_dir { &mut dirs } else { &mut others }.push(id);
    }
    writer.finish(tree, Documents::default()).unwrap();
    open(&temp)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn random_trees_are_read_back(items in vec(item(), 0..120), large in 0..100_000_u64) {
        let rootfs = image(&items);
        let layout = Layout::of(rootfs.section(), large).unwrap();
        let devices = [layout.bytes(0), layout.bytes(1)];
        for form in [Inodes::Short, Inodes::Long] {
            let bytes = write(&rootfs, &layout, form).unwrap();
            prop_assert_eq!(check(&bytes, devices), Ok(()));
            compare(&rootfs, &layout, &Metadata::open(&bytes, devices).unwrap());
            prop_assert!(bytes == write(&rootfs, &layout, form).unwrap());
        }
    }
}

/// Why no metadata can be made of a root directory with one inode in it.
fn refused(kind: Kind, mode: u32, xattrs: Vec<Xattr>) -> Error {
    let (temp, writer) = image_file();
    let mut tree = Tree::default();
    let attr = Attr {
        mode,
        xattrs,
        ..Attr::default()
    };
    let id = tree.add(Node { attr, kind });
    tree.link(Tree::ROOT, b"it", id);
    writer.finish(tree, Documents::default()).unwrap();
    let rootfs = open(&temp);
    let layout = Layout::of(rootfs.section(), erofs::LARGE).unwrap();
    write(&rootfs, &layout, Inodes::Short).unwrap_err()
}

#[test]
fn what_erofs_cannot_express_is_refused() {
    let xattr = |name: &str, len| Xattr {
        name: name.as_bytes().to_vec(),
        value: vec![b'v'; len],
    };
    let fifo = |xattrs| refused(Kind::Other, S_IFIFO, xattrs);
    let many = (0..256).map(|n| xattr(&format!("user.{n}"), 1)).collect();
    for error in [
        fifo(vec![xattr("user.long", 65_536)]),
        fifo(vec![xattr("system.nfs4_acl", 10)]),
        fifo(vec![xattr("user.", 10)]),
        fifo(vec![xattr(&format!("user.{}", "n".repeat(251)), 10)]),
        fifo(many),
        refused(Kind::Device(4096, 0), S_IFCHR, Vec::new()),
        refused(Kind::Device(0, 1 << 20), S_IFCHR, Vec::new()),
        refused(Kind::Symlink(vec![b't'; 4096].into()), S_IFLNK, Vec::new()),
    ] {
        assert!(error.exceeds(), "{error}");
        assert!(
            matches!(error, Error::Inexpressible { ino: 2, .. }),
            "{error}"
        );
    }
    // What is just within the limits.
    let rootfs = image(&[]);
    drop(rootfs);
    let longest = [
        xattr("user.long", 65_535),
        xattr(&format!("user.{}", "n".repeat(250)), 10),
    ];
    let (temp, writer) = image_file();
    let mut tree = Tree::default();
    let id = tree.add(Node {
        attr: Attr {
            mode: S_IFIFO,
            xattrs: longest.to_vec(),
            ..Attr::default()
        },
        kind: Kind::Other,
    });
    tree.link(Tree::ROOT, b"it", id);
    writer.finish(tree, Documents::default()).unwrap();
    let rootfs = open(&temp);
    let layout = Layout::of(rootfs.section(), erofs::LARGE).unwrap();
    let bytes = write(&rootfs, &layout, Inodes::Short).unwrap();
    assert_eq!(check(&bytes, [0, 0]), Ok(()));
}
