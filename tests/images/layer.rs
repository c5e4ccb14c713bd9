//! Layer tars: every form of tar is read, invalid entries are refused, and a skeleton reproduces
//! both the tar and its changes.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::Command;

use bfc::format::{S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG};
use bfc::rootfs::skeleton::{Segment, Skeleton, SkeletonReader};
use bfc::rootfs::{Kind, Node, Tree, Xattr, format};
use bfc::writer::ContentSink;
use lxcri_fs::layer::merge::{Change, What, merge};
use lxcri_fs::layer::{Budget, Error, ReadLayer, read, replay};

use crate::common::run;

/// Contents in memory.
#[derive(Default)]
pub struct Memory(pub Vec<Vec<u8>>);

impl ContentSink for Memory {
    fn add(&mut self, _: &[u8], size: u64, input: &mut dyn Read) -> bfc::Result<Option<u32>> {
        let mut bytes = Vec::new();
        input
            .take(size)
            .read_to_end(&mut bytes)
            .map_err(bfc::Error::Input)?;
        assert_eq!(bytes.len() as u64, size);
        if size == 0 {
            return Ok(None);
        }
        let known = self
            .0
            .iter()
            .position(|c| *c == bytes)
            .unwrap_or(self.0.len());
        if known == self.0.len() {
            self.0.push(bytes);
        }
        Ok(Some(u32::try_from(known).unwrap()))
    }

    fn end_layer(&mut self) -> bfc::Result<format::LayerRecord> {
        Ok(format::LayerRecord::default())
    }
}

pub fn read_tar(tar: &[u8], max_size: u64) -> Result<(ReadLayer, Memory), Error> {
    let mut sink = Memory::default();
    let layer = read::read(&mut &tar[..], &mut sink, &mut Budget::new(max_size))?;
    Ok((layer, sink))
}

pub fn tar_of(skeleton: &Skeleton, contents: &Memory) -> Vec<u8> {
    let mut reader = SkeletonReader::new(&skeleton.compressed, skeleton.size).unwrap();
    let mut out = Vec::new();
    while let Some(segment) = reader.next_segment().unwrap() {
        match segment {
            Segment::Raw(bytes) => out.extend_from_slice(bytes),
            Segment::Content { id, offset, size } => {
                let (offset, size) = (
                    usize::try_from(offset).unwrap(),
                    usize::try_from(size).unwrap(),
                );
                out.extend_from_slice(&contents.0[id as usize][offset..offset + size]);
            }
        }
    }
    out
}

/// Reads a tar that is right, and checks what is true of each: its skeleton makes the same tar and
/// the same changes.
#[track_caller]
pub fn layer(tar: &[u8]) -> (Vec<Change>, Memory) {
    let (layer, contents) = read_tar(tar, 1 << 30).unwrap();
    assert!(tar_of(&layer.skeleton, &contents) == tar);
    assert_eq!(
        replay::changes(&layer.skeleton.compressed, layer.skeleton.size).unwrap(),
        layer.changes
    );
    (layer.changes, contents)
}

/// The nodes of a layer by path; the content of files.
pub(super) fn nodes(tar: &[u8]) -> BTreeMap<Vec<u8>, (Node, Vec<u8>)> {
    let (changes, contents) = layer(tar);
    let mut out = BTreeMap::new();
    for change in changes {
        if let What::Node(node) = change.what {
            let content = match node.kind {
                Kind::File {
                    content: Some(id), ..
                } => contents.0[id as usize].clone(),
                _ => Vec::new(),
            };
            out.insert(change.path, (node, content));
        }
    }
    out
}

#[track_caller]
pub(super) fn refused(tar: &[u8], text: &str) {
    let Err(error) = read_tar(tar, 1 << 30) else {
        panic!("taken")
    };
    assert!(error.to_string().contains(text), "{error}");
}

/// A header to be changed, and what follows it.
pub(super) struct Member {
    header: [u8; 512],
    data: Vec<u8>,
}

pub(super) fn member(name: &[u8], kind: u8, data: &[u8]) -> Member {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name);
    for (at, field) in [
        (100, "0000644"),
        (108, "0000000"),
        (116, "0000000"),
        (136, "00000000000"),
    ] {
        header[at..at + field.len()].copy_from_slice(field.as_bytes());
    }
    header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    Member {
        header,
        data: data.to_vec(),
    }
}

impl Member {
    pub(super) fn with(mut self, at: usize, bytes: &[u8]) -> Self {
        self.header[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn link(self, target: &[u8]) -> Self {
        self.with(157, target)
    }

    fn bytes(mut self) -> Vec<u8> {
        self.header[148..156].copy_from_slice(b"        ");
        let sum: u32 = self.header.iter().map(|&b| u32::from(b)).sum();
        self.header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut out = [&self.header[..], &self.data].concat();
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }
}

pub(super) fn pax(kind: u8, records: &[(&str, &[u8])]) -> Member {
    let mut data = Vec::new();
    for (key, value) in records {
        let body = key.len() + value.len() + 3;
        let len = (body..)
            .find(|len| body + len.to_string().len() == *len)
            .unwrap();
        data.extend_from_slice(format!("{len} {key}=").as_bytes());
        data.extend_from_slice(value);
        data.push(b'\n');
    }
    member(b"pax", kind, &data)
}

pub(super) fn tar(members: Vec<Member>) -> Vec<u8> {
    let mut out: Vec<u8> = members.into_iter().flat_map(Member::bytes).collect();
    out.resize(out.len() + 1024, 0);
    out
}

/// Makes a tar of what `script` makes, with GNU tar.
fn gnu_tar(script: &str, options: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let sh = |script: &str| {
        run(Command::new("bash")
            .args(["-euc", script])
            .current_dir(dir.path()))
    };
    sh(&format!("mkdir tree; cd tree; {script}"));
    sh(&format!(
        "tar -C tree --numeric-owner --sort=name {options} -cf out.tar ."
    ));
    std::fs::read(dir.path().join("out.tar")).unwrap()
}

#[test]
fn every_form_of_gnu_tar_is_read() {
    let long = "directory-with-a-name-of-some-length/".repeat(4);
    let script = format!(
        "mkdir -p {long}; echo in > {long}file; echo data > file; ln file hard; ln -s {long}file \
         sym; chmod 4751 file; mkfifo fifo
         touch -d '1965-01-02 03:04:05 UTC' old; touch -d '2400-01-01 UTC' new; mkdir empty"
    );
    for (form, long_names, old_times) in [
        ("v7", false, false),
        ("ustar", false, false),
        ("oldgnu", true, true),
        ("gnu", true, true),
        ("posix", true, true),
    ] {
        // Names and times that the form cannot say are left out.
        let mut exclude = String::new();
        if !old_times {
            exclude += " --exclude=./old --exclude=./new";
        }
        if !long_names {
            exclude += " --exclude=./directory-with* --exclude=./sym";
        }
        if form == "v7" {
            exclude += " --exclude=./fifo";
        }
        let found = nodes(&gnu_tar(&script, &format!("--format={form}{exclude}")));
        assert_eq!(found[&b"file"[..]].1, b"data\n", "{form}");
        assert_eq!(found[&b"file"[..]].0.attr.mode, S_IFREG | 0o4751, "{form}");
        assert_eq!(found[&b"empty"[..]].0.attr.mode & S_IFMT, S_IFDIR, "{form}");
        if long_names {
            assert_eq!(found[format!("{long}file").as_bytes()].1, b"in\n", "{form}");
            assert_eq!(
                found[&b"sym"[..]].0.kind,
                Kind::Symlink(format!("{long}file").as_bytes().into()),
                "{form}"
            );
        }
        if old_times {
            assert_eq!(found[&b"old"[..]].0.attr.mtime_s, -157_668_955, "{form}");
            assert_eq!(found[&b"new"[..]].0.attr.mtime_s, 13_569_465_600, "{form}");
        }
        if form != "v7" {
            assert_eq!(found[&b"fifo"[..]].0.attr.mode & S_IFMT, S_IFIFO, "{form}");
        }
    }
}

#[test]
fn sparse_files_are_read_in_all_their_forms() {
    // Enough parts for extension blocks, a file that is all hole, and one that ends in a hole.
    let script = "for i in $(seq 0 60); do printf \"part $i\" | dd of=parts bs=1 seek=$((i * \
                  20000)) conv=notrunc status=none; done
                  truncate -s 500000 hole; printf start > end; truncate -s 300000 end; echo plain \
                  > plain";
    let expected = nodes(&gnu_tar(script, "--format=gnu"));
    for options in [
        "--format=oldgnu",
        "--format=gnu",
        "--format=posix --sparse-version=0.0",
        "--format=posix --sparse-version=0.1",
        "--format=posix",
    ] {
        let found = nodes(&gnu_tar(
            script,
            &format!("--sparse --hole-detection=raw {options}"),
        ));
        for name in ["parts", "hole", "end", "plain"] {
            let (file, content) = &found[name.as_bytes()];
            assert!(*content == expected[name.as_bytes()].1, "{name} {options}");
            assert!(
                matches!(file.kind, Kind::File { size, .. } if size == content.len() as u64),
                "{name} {options}"
            );
        }
    }
}

#[test]
fn pax_records() {
    let file = || member(b"short", b'0', b"x");
    let one = |records: &[(&str, &[u8])]| {
        nodes(&tar(vec![pax(b'x', records), file()]))
            .into_iter()
            .next()
            .unwrap()
    };
    let (path, (node, _)) = one(&[
        ("path", b"long/\xff"),
        ("uid", b"4294967294"),
        ("gid", b"7"),
        ("mtime", b"-1.25"),
    ]);
    assert_eq!(path, b"long/\xff");
    assert_eq!(
        (
            node.attr.uid,
            node.attr.gid,
            node.attr.mtime_s,
            node.attr.mtime_ns
        ),
        (4_294_967_294, 7, -2, 750_000_000)
    );
    // The later record counts, and an empty value takes an earlier one back.
    assert_eq!(one(&[("path", b"a"), ("path", b"b")]).0, b"b");
    assert_eq!(one(&[("path", b"a"), ("path", b"")]).0, b"short");
    // A size larger than the header's field.
    let sized = tar(vec![
        pax(b'x', &[("size", b"3")]),
        member(b"f", b'0', b"abc").with(124, b"00000000000"),
    ]);
    assert_eq!(nodes(&sized)[&b"f"[..]].1, b"abc");
    // Global records count until others come, and local ones count more.
    let global = nodes(&tar(vec![
        pax(b'g', &[("uid", b"5"), ("gid", b"6")]),
        pax(b'x', &[("uid", b"7")]),
        member(b"a", b'0', b""),
        member(b"b", b'0', b""),
        pax(b'g', &[("uid", b"8")]),
        member(b"c", b'0', b""),
    ]));
    let owners: Vec<_> = global
        .values()
        .map(|(n, _)| (n.attr.uid, n.attr.gid))
        .collect();
    assert_eq!(owners, [(7, 6), (5, 6), (8, 6)]);
    // Attributes: SCHILY's are exact, libarchive's encoded.
    let (_, (node, _)) = one(&[
        ("SCHILY.xattr.user.a", b"x\0\n=y"),
        ("LIBARCHIVE.xattr.user.a", b"AAAA"),
        ("LIBARCHIVE.xattr.user.b", b"AAEC"),
        ("SCHILY.xattr.user.empty", b""),
    ]);
    let xattr = |name: &[u8], value: &[u8]| Xattr {
        name: name.to_vec(),
        value: value.to_vec(),
    };
    assert_eq!(
        node.attr.xattrs,
        [
            xattr(b"user.a", b"x\0\n=y"),
            xattr(b"user.b", b"\0\x01\x02"),
            xattr(b"user.empty", b"")
        ]
    );
}

#[test]
fn old_forms_and_odd_names() {
    let found = nodes(&tar(vec![
        // Before ustar: no magic, a directory is a name with a slash.
        member(b"dir/", b'\0', b"").with(257, &[0; 8]),
        member(b"dir/v7", b'\0', b"1").with(257, &[0; 8]),
        // ustar's prefix, and what star has there besides.
        member(b"name", b'0', b"2").with(345, b"pre/fix"),
        member(b"star", b'0', b"3")
            .with(345, b"pre")
            .with(476, b"00000000000 00000000000 ")
            .with(508, b"tar\0"),
        member(b"./dotted//twice/./", b'5', b""),
        member(b"contiguous", b'7', b"4"),
        // What the size field says of things without data is ignored, as Go's reader does.
        member(b"link", b'2', b"")
            .link(b"target")
            .with(124, b"00000001000"),
        member(b"last", b'0', b"5"),
        member(b"last", b'0', b"6"),
    ]));
    let names: Vec<_> = found
        .keys()
        .map(|k| String::from_utf8_lossy(k).into_owned())
        .collect();
    assert_eq!(
        names,
        [
            "contiguous",
            "dir",
            "dir/v7",
            "dotted/twice",
            "last",
            "link",
            "pre/fix/name",
            "pre/star"
        ]
    );
    assert_eq!(found[&b"dir"[..]].0.attr.mode & S_IFMT, S_IFDIR);
    assert_eq!(found[&b"link"[..]].0.attr.mode & S_IFMT, S_IFLNK);
    assert_eq!(
        (&found[&b"last"[..]].1[..], &found[&b"contiguous"[..]].1[..]),
        (&b"6"[..], &b"4"[..])
    );
}

#[test]
fn symlinks_have_all_permissions_whatever_the_tar_says() {
    let found = nodes(&tar(vec![member(b"l", b'2', b"").link(b"t")]));
    assert_eq!(found[&b"l"[..]].0.attr.mode, S_IFLNK | 0o777);
}

#[test]
fn ends() {
    let whole = tar(vec![member(b"a", b'0', b"x")]);
    // Without the blocks of zeros, with more of them, with something behind them.
    assert_eq!(nodes(&whole[..1024]).len(), 1);
    assert_eq!(nodes(&whole[..1536]).len(), 1);
    assert_eq!(nodes(&[&whole[..], &[0; 100_000]].concat()).len(), 1);
    assert_eq!(nodes(&[&whole[..], b"something"].concat()).len(), 1);
    assert_eq!(layer(b"").0, []);
    for cut in [1, 511, 512] {
        refused(&whole[..cut], "cut off");
    }
    // Without all of the last entry's padding.
    for cut in [513, 1000, 1023] {
        assert_eq!(nodes(&whole[..cut])[&b"a"[..]].1, b"x", "{cut}");
    }
    refused(
        &tar(vec![pax(b'x', &[("path", b"a")])]),
        "not followed by an entry",
    );
    refused(&[&[0; 512][..], &whole].concat(), "single block of zeros");
    refused(&[&whole[..], &vec![1; 2 << 20]].concat(), "follow the end");
    refused(&[7; 512], "checksum");
}

/// An AUFS keeps files with several names in a directory of its own.
#[test]
fn files_that_aufs_keeps_aside_have_their_names() {
    let (changes, _) = layer(&tar(vec![
        member(b".wh..wh.plnk", b'5', b""),
        member(b".wh..wh.plnk/12.34", b'0', b"content"),
        member(b".wh..wh.aufs", b'0', b""),
        member(b"usr/a", b'1', b"").link(b".wh..wh.plnk/12.34"),
        member(b"usr/b", b'1', b"").link(b".wh..wh.plnk/12.34"),
    ]));
    let tree = merge([changes]).unwrap();
    let names: Vec<_> = tree.children(Tree::ROOT).unwrap().keys().collect();
    assert_eq!(names, [&Box::from(&b"usr"[..])]);
    let usr = tree.child(Tree::ROOT, b"usr").unwrap();
    let file = tree.child(usr, b"a").unwrap();
    assert_eq!(Some(file), tree.child(usr, b"b"));
    assert!(matches!(tree.node(file).kind, Kind::File { size: 7, .. }));
}

#[test]
fn a_whiteout_with_content_is_still_a_whiteout() {
    let (changes, _) = layer(&tar(vec![
        member(b"a/.wh.b", b'0', b""),
        member(b".wh.c", b'0', b"content"),
        member(b"d/.wh..wh..opq", b'0', b""),
        member(b".wh..wh.plnk", b'5', b""),
        member(b".wh..wh.orph/1.2", b'0', b"x"),
    ]));
    let change = |path: &[u8], what| Change {
        path: path.to_vec(),
        what,
    };
    assert_eq!(
        changes,
        [
            change(b"a/b", What::Whiteout),
            change(b"c", What::Whiteout),
            change(b"d", What::Opaque)
        ]
    );
    for name in [&b".wh."[..], b"a/.wh..", b".wh..."] {
        refused(
            &tar(vec![member(name, b'0', b"")]),
            "whiteout without a name",
        );
    }
}

#[test]
fn invalid_entries_are_refused() {
    let file = || member(b"f", b'0', b"abcd");
    let sparse = |records: &[(&str, &[u8])]| tar(vec![pax(b'x', records), file()]);
    refused(&tar(vec![member(b"v", b'V', b"")]), "entry type");
    refused(&tar(vec![file().with(108, b"9999999")]), "uid");
    refused(
        &tar(vec![pax(b'x', &[("uid", b"4294967295")]), file()]),
        "uid",
    );
    refused(&tar(vec![member(b"l", b'2', b"")]), "has no target");
    refused(
        &tar(vec![pax(b'x', &[("mtime", b"soon")]), file()]),
        "mtime",
    );
    refused(
        &tar(vec![pax(b'x', &[("path", &[b'n'; 256])]), file()]),
        "255",
    );
    refused(
        &tar(vec![pax(b'x', &[("path", &b"n/".repeat(40_000))]), file()]),
        "path",
    );
    refused(
        &tar(vec![
            pax(b'x', &[("SCHILY.xattr.user.a", &[0; 70_000])]),
            file(),
        ]),
        "attribute",
    );
    refused(
        &tar(vec![
            pax(b'x', &[("linkpath", &[b't'; 4096])]),
            member(b"l", b'2', b""),
        ]),
        "4095",
    );
    refused(
        &tar(vec![file().with(
            124,
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        )]),
        "size",
    );
    refused(
        &sparse(&[("GNU.sparse.map", b"0,4")]),
        "expanded file is missing",
    );
    refused(
        &sparse(&[("GNU.sparse.size", b"100"), ("GNU.sparse.map", b"0,9")]),
        "sparse",
    );
    refused(
        &sparse(&[("GNU.sparse.size", b"3"), ("GNU.sparse.map", b"0,4")]),
        "sparse",
    );
    refused(
        &sparse(&[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")]),
        "its format is unknown",
    );
    refused(
        &sparse(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"9"),
        ]),
        "sparse",
    );
    // An expanded file counts at its full length.
    let huge = sparse(&[
        ("GNU.sparse.size", b"1000000000000"),
        ("GNU.sparse.map", b"0,4"),
    ]);
    assert!(matches!(read_tar(&huge, 1 << 30), Err(Error::MaxSize(_))));
}

/// The memory that attributes take is bounded, also when one global header gives them to every
/// entry.
#[test]
fn a_pax_header_shared_by_many_entries_takes_bounded_memory() {
    let value = vec![b'x'; 65_000];
    let records: Vec<(String, &[u8])> = (0..15)
        .map(|i| (format!("SCHILY.xattr.user.{i}"), &value[..]))
        .collect();
    let records: Vec<_> = records.iter().map(|(k, v)| (k.as_str(), *v)).collect();
    let head = pax(b'g', &records).bytes();
    let entry = member(b"f", b'0', b"").bytes();
    let mut tar: Box<dyn Read> = Box::new(std::io::Cursor::new(head));
    // At a megabyte each, the limit comes after some thirty entries.
    tar = Box::new(tar.chain(std::io::Cursor::new(entry.repeat(5000))));
    let error = read::read(
        &mut tar,
        &mut Memory::default(),
        &mut Budget::new(1 << 40).with_memory(32 << 20),
    )
    .unwrap_err();
    assert!(matches!(error, Error::Metadata(_)), "{error}");
}
