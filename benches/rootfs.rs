//! What a mount does for each request, without FUSE; and opening an image, which must not take
//! longer because it holds more.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lxcri_fs::fs::ROOT;

/// What opening an image of a million entries may take, its pages being in the cache.
const OPEN_LIMIT: Duration = Duration::from_millis(5);
const MILLION: u32 = 1_000_000;

fn open(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("open");
    for entries in [1_000, 100_000, MILLION] {
        let image = common::image(entries);
        group.bench_with_input(BenchmarkId::from_parameter(entries), &image, |b, image| {
            b.iter(|| common::open(image))
        });
    }
    group.finish();

    let image = common::image(MILLION);
    let mut took: Vec<_> = (0..21).map(|_| time_of_open(&image)).collect();
    took.sort();
    assert!(
        took[10] <= OPEN_LIMIT,
        "a million entries: opened in {:?} (median), at most {OPEN_LIMIT:?} are allowed",
        took[10]
    );
}

fn time_of_open(image: &Path) -> Duration {
    let start = Instant::now();
    black_box(common::open(image));
    start.elapsed()
}

fn lookup(criterion: &mut Criterion) {
    let rootfs = common::open(&common::image(MILLION));
    let (dir, _) = rootfs.resolve(Path::new("directory-0500")).unwrap();
    let mut group = criterion.benchmark_group("lookup");
    group.bench_function("there", |b| {
        b.iter(|| {
            rootfs
                .lookup(dir, black_box(b"file-500.txt"))
                .unwrap()
                .unwrap()
        })
    });
    group.bench_function("not there", |b| {
        b.iter(|| {
            assert!(
                rootfs
                    .lookup(dir, black_box(b"file-500.tx"))
                    .unwrap()
                    .is_none()
            )
        })
    });
    let mut numbers = common::numbers();
    let mut path = || common::path((numbers.next().unwrap() % u64::from(MILLION)) as u32);
    group.bench_function("random path", |b| {
        b.iter_batched(
            &mut path,
            |path| rootfs.resolve(Path::new(&path)).unwrap(),
            criterion::BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn readdir(criterion: &mut Criterion) {
    let rootfs = common::open(&common::image(MILLION));
    let (dir, _) = rootfs.resolve(Path::new("directory-0500")).unwrap();
    let mut group = criterion.benchmark_group("readdir");
    group.throughput(Throughput::Elements(common::FILES.into()));
    group.bench_function("names", |b| {
        b.iter(|| {
            rootfs
                .readdir(dir, 0, &mut |_, _, _, name| !black_box(name).is_empty())
                .unwrap()
        })
    });
    group.bench_function("names and attributes", |b| {
        b.iter(|| {
            rootfs
                .readdir_plus(dir, 0, &mut |_, _, inode, name| {
                    black_box(inode).size > 0 && !black_box(name).is_empty()
                })
                .unwrap()
        });
    });
    group.finish();
}

fn read(criterion: &mut Criterion) {
    let rootfs = common::open(&common::image(1_000));
    let (big, _) = rootfs.lookup(ROOT, b"big").unwrap().unwrap();
    let mut out = Vec::new();
    let mut numbers = common::numbers();
    let mut group = criterion.benchmark_group("read");
    for len in [4 << 10, 64 << 10, 1 << 20] {
        group.throughput(Throughput::Bytes(len));
        group.bench_function(format!("{} KiB at random", len >> 10), |b| {
            b.iter(|| {
                out.clear();
                let offset = numbers.next().unwrap() % (common::BIG / len) * len;
                rootfs.read(big, offset, len as usize, &mut out).unwrap();
                assert_eq!(out.len() as u64, len);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, open, lookup, readdir, read);
criterion_main!(benches);
