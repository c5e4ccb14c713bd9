//! Making EROFS metadata of a tree like a distribution's, which a mount may wait for.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)]

mod common;

use std::fs::File;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bfc::format::{S_IFDIR, S_IFLNK, S_IFREG};
use bfc::rootfs::{Attr, Kind, Node, Tree};
use bfc::writer::{ContentSink, Documents, ImageWriter, WriteOptions};
use criterion::{Criterion, criterion_group, criterion_main};
use lxcri_fs::erofs::{Inodes, LARGE, Layout, check, write};

/// The processor time that the metadata of 73,000 inodes may take.
const LIMIT: Duration = Duration::from_millis(30);
/// Directories, and what is in each on average: files, of which some have the same content, and
/// symlinks.
const DIRECTORIES: u64 = 7_300;
const FILES: u64 = 8;

/// The image, made once in the target directory.
fn image() -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-distribution.bfc");
    if !path.exists() {
        let new = path.with_extension("new");
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&new)
            .unwrap();
        let mut writer = ImageWriter::create(file, WriteOptions::default()).unwrap();
        let tree = tree(&mut writer);
        writer.finish(tree, Documents::default()).unwrap();
        std::fs::rename(new, &path).unwrap();
    }
    path
}

fn tree(writer: &mut ImageWriter) -> Tree {
    let mut tree = Tree::default();
    let mut numbers = common::numbers();
    let mut dirs = vec![Tree::ROOT];
    let attr = |mode, seconds: u64| Attr {
        mode,
        mtime_s: 1_600_000_000 + (seconds % 100_000_000).cast_signed(),
        ..Attr::default()
    };
    let name = |n: u64| {
        let long = "some-longer-words-than-others.so";
        format!("{:06x}{}", n >> 40, &long[..(n % 28) as usize]).into_bytes()
    };
    for number in 0..DIRECTORIES {
        let mut add = |tree: &mut Tree, dir, mode, kind| {
            let n = numbers.next().unwrap();
            let attr = attr(mode, n);
            let id = tree.add(Node { attr, kind });
            tree.link(dir, &name(n), id);
            (id, n)
        };
        let at = dirs[(number / 5) as usize];
        let (dir, n) = add(
            &mut tree,
            at,
            S_IFDIR | 0o755,
            Kind::Dir(Default::default()),
        );
        dirs.push(dir);
        for file in 0..n % (2 * FILES + 1) {
            let bytes = if file % 4 == 3 {
                b"the same".to_vec()
            } else {
                format!("{number} {file} {n}").into_bytes()
            };
            let size = bytes.len() as u64;
            let content = writer.add(b"file", size, &mut &bytes[..]).unwrap();
            add(
                &mut tree,
                dir,
                S_IFREG | 0o644,
                Kind::File { size, content },
            );
        }
        if n % 8 != 0 {
            let target = b"../share/another/directory/file".as_slice();
            add(
                &mut tree,
                dir,
                S_IFLNK | 0o777,
                Kind::Symlink(target.into()),
            );
        }
    }
    tree
}

fn metadata(criterion: &mut Criterion) {
    let path = image();
    let rootfs = common::open(&path);
    let layout = Layout::of(rootfs.section(), LARGE).unwrap();
    let devices = [layout.bytes(0), layout.bytes(1)];
    let bytes = write(&rootfs, &layout, Inodes::Long).unwrap();
    let sizes = [Inodes::Short, Inodes::Long].map(|form| {
        let bytes = write(&rootfs, &layout, form).unwrap();
        format!("{} bytes {form:?}", bytes.len())
    });
    let inodes = rootfs.section().inode_count();
    let contents = rootfs.section().content_count();
    eprintln!("{inodes} inodes, {contents} contents: {}", sizes.join(", "));

    let mut group = criterion.benchmark_group("erofs");
    group.sample_size(20);
    group.bench_function("layout", |b| {
        b.iter(|| Layout::of(rootfs.section(), LARGE).unwrap())
    });
    for form in [Inodes::Short, Inodes::Long] {
        group.bench_function(format!("write, {form:?}"), |b| {
            b.iter(|| write(&rootfs, &layout, form).unwrap())
        });
    }
    group.bench_function("check", |b| b.iter(|| check(&bytes, devices).unwrap()));
    group.bench_function("open, lay out and write", |b| b.iter(|| whole(&path)));
    group.finish();

    let took = (0..21).map(|_| processor_time(|| write(&rootfs, &layout, Inodes::Short).unwrap()));
    let fastest = took.min().unwrap();
    let others = [
        processor_time(|| Layout::of(rootfs.section(), LARGE).unwrap()),
        processor_time(|| check(&bytes, devices).unwrap()),
        processor_time(|| whole(&path)),
    ];
    eprintln!("processor time: write {fastest:?}; layout, check, all of it {others:?}");
    assert!(
        fastest <= LIMIT,
        "{inodes} inodes: {fastest:?}, at most {LIMIT:?} are allowed"
    );
}

/// How much processor time something takes: whatever else the machine does.
fn processor_time<T>(work: impl FnOnce() -> T) -> Duration {
    let now = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let start = now();
    black_box(work());
    now() - start
}

/// What a first mount waits for.
fn whole(path: &Path) -> Vec<u8> {
    let rootfs = common::open(path);
    let layout = Layout::of(rootfs.section(), LARGE).unwrap();
    write(&rootfs, &layout, Inodes::Short).unwrap()
}

criterion_group!(benches, metadata);
criterion_main!(benches);
