//! The pieces of the image format: decoding a frame, parsing a v1 index.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::fs::File;
use std::sync::Arc;

use bfc::Container;
use bfc::content::Decoder;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lxcri_fs::fs::ROOT;

/// A frame of 64 KiB read from the page cache, decompressed, its CRC checked; and with the BLAKE3
/// of what is stored checked as well.
fn frame(criterion: &mut Criterion) {
    let rootfs = common::open(&common::image(1_000));
    let container = rootfs.containers().next().unwrap();
    let section = rootfs.section();
    let (_, big) = rootfs.lookup(ROOT, b"big").unwrap().unwrap();
    let content = section.content(big.data).unwrap();
    let frame_len = 1 << section.header().frame_log2;
    let mut out = vec![0; frame_len];

    let mut group = criterion.benchmark_group("frame");
    group.throughput(Throughput::Bytes(out.len() as u64));
    for (name, check_hash) in [("decode", false), ("decode and check digest", true)] {
        let decoder = Decoder {
            source: &**container.source(),
            len: container.len(),
            flavour: container.flavour(),
            key: None,
            check_hash,
        };
        let mut indices = (0..content.frames).cycle();
        group.bench_function(name, |b| {
            b.iter(|| {
                let index = indices.next().unwrap();
                let frame = section.frame(&content, index).unwrap();
                decoder
                    .frames(&content, &[frame], index, b"big", frame_len, &mut out)
                    .unwrap();
            });
        });
    }
    group.finish();
}

/// The v1 index, which is read only of images that have no rootfs section.
fn v1_index(criterion: &mut Criterion) {
    let container = Container::open(Arc::new(File::open(common::image(100_000)).unwrap())).unwrap();
    let mut group = criterion.benchmark_group("v1 index");
    group.throughput(Throughput::Elements(container.index().unwrap().len() as u64));
    group.bench_function("read and parse", |b| b.iter(|| container.index().unwrap()));
    group.finish();
}

criterion_group!(benches, frame, v1_index);
criterion_main!(benches);
