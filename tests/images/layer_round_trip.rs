//! The reader of layers reads what the writer has written, and notices damage.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use bfc::format::{S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, S_IFSOCK};
use bfc::rootfs::{Attr, Kind, Node, Xattr};
use lxcri_fs::layer::merge::{Change, What};
use lxcri_fs::layer::replay;
use lxcri_fs::layer::tar::{Body, Writer};
use proptest::prelude::*;

use crate::common::run;

use super::layer::{layer, read_tar, tar_of};

fn any_attr(kind: u32) -> impl Strategy<Value = Attr> {
    let name = "[a-z=%.]{1,20}";
    let xattrs = prop::collection::btree_map(name, prop::collection::vec(any::<u8>(), 0..50), 0..3);
    (
        0..0o10000_u32,
        0..u32::MAX,
        0..u32::MAX,
        any::<i64>(),
        0..1_000_000_000_u32,
        xattrs,
    )
        .prop_map(move |(mode, uid, gid, mtime_s, mtime_ns, xattrs)| Attr {
            mode: kind | mode,
            uid,
            gid,
            // What a header or a record can say: one second from either end is lost to the sign.
            mtime_s: mtime_s.clamp(-i64::MAX + 1, i64::MAX),
            mtime_ns,
            xattrs: xattrs
                .into_iter()
                .map(|(n, value)| Xattr {
                    name: [b"trusted.", n.as_bytes()].concat(),
                    value,
                })
                .collect(),
        })
}

fn any_path() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::collection::vec(
        any::<u8>().prop_filter("a name's", |&b| b != 0 && b != b'/'),
        1..80,
    );
    let name = name.prop_filter("names that stand for others", |n| {
        n != b"." && n != b".." && !n.starts_with(b".wh.")
    });
    prop::collection::vec(name, 1..5).prop_map(|names| names.join(&b'/'))
}

/// An entry for the writer, and the content of a file.
fn any_entry() -> impl Strategy<Value = (Change, Vec<u8>)> {
    let node = |kind: u32, what: fn(Vec<u8>) -> Kind| {
        let target = prop::collection::vec(1..=255_u8, 1..300);
        (any_path(), any_attr(kind), target).prop_map(move |(path, mut attr, bytes)| {
            if kind == S_IFLNK {
                // The only mode that a symlink has.
                attr.mode = S_IFLNK | 0o777;
            }
            let kind = what(bytes.clone());
            let content = if matches!(kind, Kind::File { .. }) {
                bytes
            } else {
                Vec::new()
            };
            (
                Change {
                    path,
                    what: What::Node(Node { attr, kind }),
                },
                content,
            )
        })
    };
    prop_oneof![
        node(S_IFREG, |b| Kind::File {
            size: b.len() as u64,
            content: Some(0)
        }),
        node(S_IFDIR, |_| Kind::Dir(BTreeMap::new())),
        node(S_IFLNK, |b| Kind::Symlink(b.into())),
        node(S_IFSOCK, |_| Kind::Other),
        node(S_IFIFO, |_| Kind::Other),
        node(bfc::format::S_IFBLK, |b| Kind::Device(
            u32::from(b[0]),
            0xf_ffff
        )),
        (any_path(), any_path()).prop_map(|(path, target)| (
            Change {
                path,
                what: What::HardLink(target)
            },
            Vec::new()
        )),
    ]
}

fn write(entries: &[(Change, Vec<u8>)]) -> Vec<u8> {
    let mut tar = Writer::new(Vec::new());
    for (change, content) in entries {
        let body = match &change.what {
            What::HardLink(target) => Body::HardLink(target),
            What::Node(Node {
                kind: Kind::File { size, .. },
                ..
            }) => Body::File(*size, &mut &content[..]),
            What::Node(Node {
                kind: Kind::Symlink(target),
                ..
            }) => Body::Symlink(target),
            What::Node(Node {
                kind: Kind::Device(major, minor),
                ..
            }) => Body::Device(*major, *minor),
            _ => Body::None,
        };
        let attr = match &change.what {
            What::Node(node) => node.attr.clone(),
            _ => Attr {
                mode: S_IFREG,
                ..Attr::default()
            },
        };
        tar.append(&change.path, &attr, body).unwrap();
    }
    tar.finish().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_reader_reads_what_is_written(entries in prop::collection::vec(any_entry(), 0..8)) {
        let (changes, contents) = layer(&write(&entries));
        prop_assert_eq!(changes.len(), entries.len());
        for (mut found, (expected, content)) in changes.into_iter().zip(entries) {
            if let What::Node(Node { kind: Kind::File { content: id, .. }, .. }) = &mut found.what {
                prop_assert_eq!(id.map_or(&[][..], |id| &contents.0[id as usize]), &content[..]);
                *id = Some(0);
            }
            prop_assert_eq!(found, expected);
        }
    }

    /// Damage anywhere gives an error, or another valid layer whose skeleton reproduces it.
    #[test]
    fn damaged_tars_do_no_harm(
        entries in prop::collection::vec(any_entry(), 1..5),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let mut tar = write(&entries);
        let at = at.index(tar.len());
        tar[at] = byte;
        // With its checksum made right, a damaged header is looked at.
        let header = at / 512 * 512;
        let sum = |bytes: &[u8]| bytes.iter().map(|&b| u32::from(b)).sum::<u32>();
        let field = header + 148..header + 156;
        let sum = sum(&tar[header..header + 512]) - sum(&tar[field.clone()]) + 8 * 32;
        tar[field].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        if let Some(cut) = cut {
            tar.truncate(cut.index(tar.len()));
        }
        if let Ok((read, contents)) = read_tar(&tar, 1 << 20) {
            prop_assert!(tar_of(&read.skeleton, &contents) == tar);
            let skeleton = &read.skeleton;
            let replayed = replay::changes(&skeleton.compressed, skeleton.size).unwrap();
            prop_assert_eq!(replayed, read.changes);
        }
    }
}

/// GNU tar lists what the writer has written.
#[test]
fn gnu_tar_reads_the_canonical_form() {
    let dir = tempfile::tempdir().unwrap();
    let attr = |mode| Attr {
        mode,
        uid: 3_000_000,
        gid: 7,
        mtime_s: 5,
        mtime_ns: 250_000_000,
        xattrs: Vec::new(),
    };
    let file = |path: &str, content: &[u8]| {
        let kind = Kind::File {
            size: content.len() as u64,
            content: Some(0),
        };
        (
            Change {
                path: path.into(),
                what: What::Node(Node {
                    attr: attr(S_IFREG | 0o640),
                    kind,
                }),
            },
            content.to_vec(),
        )
    };
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let link = Change {
        path: b"hard".to_vec(),
        what: What::HardLink(long.clone().into_bytes()),
    };
    let bytes = write(&[
        file(&long, b"content"),
        (link, Vec::new()),
        file("empty", b""),
    ]);
    let path: &Path = &dir.path().join("x.tar");
    std::fs::write(path, bytes).unwrap();
    let listing = run(Command::new("tar")
        .env("TZ", "UTC")
        .args(["--numeric-owner", "--full-time", "-tvf"])
        .arg(path));
    let lines: Vec<_> = listing.lines().collect();
    assert_eq!(
        lines[0],
        format!("-rw-r----- 3000000/7         7 1970-01-01 00:00:05.25 {long}")
    );
    assert!(
        lines[1].ends_with(&format!("hard link to {long}")),
        "{listing}"
    );
    assert_eq!(lines.len(), 3);
}
