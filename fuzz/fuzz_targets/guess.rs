//! Any bytes as a file whose kind is to be guessed, and archives whose kind is known: the guess is
//! right, or the file is refused; it is never silently taken for something else.
#![no_main]

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use lxcri_fs::build::sources::{Platform, SourceKind, SourceOptions, Spec, open};
use lxcri_fs_fuzz::Bounded;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

const BLOCK: usize = 512;
/// Limit of what is unpacked, bytes.
const MAX_SIZE: u64 = 1 << 20;
/// Most members of an archive.
const MAX_MEMBERS: usize = 24;

const LAYER: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef/layer.tar";
/// Names of members: those that tell kinds apart, as they are written by different programs, and
/// those that only look like them.
const NAMES: [&str; 16] = [
    "oci-layout",
    "./oci-layout",
    "/oci-layout",
    "index.json",
    "./index.json",
    "manifest.json",
    "./manifest.json",
    "repositories",
    LAYER,
    "etc/passwd",
    "._manifest.json",
    "._oci-layout",
    "sub/manifest.json",
    "sub/oci-layout",
    "blobs/sha256/aa",
    "index.json.old",
];
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const MANIFESTS: &[u8] = br#"[{"Config":"a.json","RepoTags":["a:b"],"Layers":["l.tar"]}]"#;
const CONTENTS: [&[u8]; 8] = [
    b"",
    LAYOUT,
    MANIFESTS,
    b"[]",
    b"{}",
    b"null",
    br#"{"imageLayoutVersion":7}"#,
    br#"[{"Layers":[]}]"#,
];

/// A file in memory.
fn file(bytes: &[u8]) -> (File, PathBuf) {
    let fd = rustix::fs::memfd_create("guess", rustix::fs::MemfdFlags::CLOEXEC);
    let mut file = File::from(fd.expect("memory"));
    file.write_all(bytes).expect("memory");
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    (file, path)
}

fn header(name: &str, kind: u8, size: usize) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..108].copy_from_slice(b"0000644\0");
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn member(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut out = header(name, kind, content.len());
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    out
}

/// A member in one of the forms that programs write.
fn written(name: &str, form: u8, content: &[u8]) -> Vec<u8> {
    let before = match form % 3 {
        0 => Vec::new(),
        1 => member("././@LongLink", b'L', format!("{name}\0").as_bytes()),
        _ => {
            let record = |len: usize| format!("{len} path={name}\n");
            let len = (0..200).find(|&len| record(len).len() == len);
            member("pax", b'x', record(len.expect("a length")).as_bytes())
        }
    };
    let short = if form % 3 == 0 { name } else { "short" };
    [before, member(short, b'0', content)].concat()
}

/// What the archive of these members is.
fn truth(members: &[(&str, &[u8])]) -> SourceKind {
    let plain = |name: &str| {
        name.trim_start_matches("./")
            .trim_start_matches('/')
            .to_owned()
    };
    // As tar unpacks it, the last member of a name counts.
    let last = |wanted: &str| {
        let found = members.iter().rev().find(|(name, _)| plain(name) == wanted);
        found.map(|(_, content)| *content)
    };
    let is_there = |wanted: &str| last(wanted).is_some();
    let manifests = last("manifest.json") == Some(MANIFESTS);
    if last("oci-layout") == Some(LAYOUT) && is_there("index.json") {
        SourceKind::OciArchive
    } else if manifests || is_there("repositories") && is_there(LAYER) {
        SourceKind::DockerArchive
    } else {
        SourceKind::Tar
    }
}

fn guess(bytes: &[u8]) -> Option<Spec> {
    let (_file, path) = file(bytes);
    Spec::parse(path.as_os_str()).ok()
}

fuzz_target!(|data: &[u8]| {
    let Some((&how, rest)) = data.split_first() else {
        return;
    };
    if how & 1 == 0 {
        let (_file, path) = file(rest);
        let Ok(spec) = Spec::parse(path.as_os_str()) else {
            return;
        };
        assert_eq!(spec.kind == SourceKind::Bfc, rest.starts_with(b"BFCFv1"));
        let options = SourceOptions {
            platform: Platform::host(),
            secret: None,
            temp_dir: std::env::temp_dir(),
            max_size: MAX_SIZE,
        };
        let _ = open(&spec, &options);
        return;
    }
    let members: Vec<(&str, &[u8])> = rest
        .chunks_exact(3)
        .take(MAX_MEMBERS)
        .map(|m| {
            (
                NAMES[usize::from(m[0]) % NAMES.len()],
                CONTENTS[usize::from(m[1]) % CONTENTS.len()],
            )
        })
        .collect();
    let forms = rest.chunks_exact(3).map(|m| m[2]);
    if members.is_empty() {
        return;
    }
    let mut tar: Vec<u8> = members
        .iter()
        .zip(forms)
        .flat_map(|((name, content), form)| written(name, form, content))
        .collect();
    if how & 2 == 0 {
        tar.resize(tar.len() + 2 * BLOCK, 0);
    }
    let bytes = match how >> 2 & 3 {
        0 | 1 => tar,
        2 => zstd::bulk::compress(&tar, 1).expect("memory"),
        _ => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(&tar)
                .and_then(|()| out.finish())
                .expect("memory")
        }
    };
    let found = guess(&bytes).map(|spec| spec.kind);
    assert_eq!(found, Some(truth(&members)), "{members:?}");
});
