//! Any bytes as two layers: read, made again from their skeletons, merged, written as a section.
//! Nothing may panic, take memory without bound, or come out otherwise than it went in.
#![no_main]

use std::io::Read;

use bfc::rootfs::skeleton::{Segment, Skeleton, SkeletonReader};
use bfc::rootfs::{Extras, Tree, format};
use bfc::writer::ContentSink;
use libfuzzer_sys::fuzz_target;
use lxcri_fs::layer::{Budget, merge, read, replay};
use lxcri_fs_fuzz::Bounded;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

const BLOCK: usize = 512;

/// Contents in memory.
#[derive(Default)]
struct Memory(Vec<Vec<u8>>);

impl ContentSink for Memory {
    fn add(&mut self, _: &[u8], size: u64, input: &mut dyn Read) -> bfc::Result<Option<u32>> {
        let mut bytes = Vec::new();
        input
            .take(size)
            .read_to_end(&mut bytes)
            .map_err(bfc::Error::Input)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        self.0.push(bytes);
        Ok(u32::try_from(self.0.len() - 1).ok())
    }

    fn end_layer(&mut self) -> bfc::Result<format::LayerRecord> {
        Ok(format::LayerRecord::default())
    }
}

/// Repairs the checksums that would stop a mutation at the door.
fn repair(tar: &mut [u8]) {
    for block in tar
        .chunks_exact_mut(BLOCK)
        .filter(|b| b[257..262] == *b"ustar")
    {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

fn tar_of(skeleton: &Skeleton, contents: &Memory) -> Vec<u8> {
    let mut reader = SkeletonReader::new(&skeleton.compressed, skeleton.size)
        .expect("a skeleton that was just written");
    let mut out = Vec::new();
    while let Some(segment) = reader
        .next_segment()
        .expect("a skeleton that was just written")
    {
        match segment {
            Segment::Raw(bytes) => out.extend_from_slice(bytes),
            Segment::Content { id, offset, size } => out.extend_from_slice(
                &contents.0[id as usize][offset as usize..(offset + size) as usize],
            ),
        }
    }
    out
}

fuzz_target!(|data: &[u8]| {
    // The first byte says where the second layer begins.
    let Some((&first, rest)) = data.split_first() else {
        return;
    };
    let mut tars = rest.to_vec();
    repair(&mut tars);
    let (lower, upper) = tars.split_at(tars.len().min(usize::from(first) * BLOCK));
    let mut tree = Tree::default();
    for tar in [lower, upper] {
        let mut contents = Memory::default();
        let mut budget = Budget::new(16 << 20).with_memory(64 << 20);
        let Ok(layer) = read::read(&mut &tar[..], &mut contents, &mut budget) else {
            return;
        };
        assert!(tar_of(&layer.skeleton, &contents) == tar);
        let replayed = replay::changes(&layer.skeleton.compressed, layer.skeleton.size)
            .expect("what was read replays");
        assert!(replayed == layer.changes);
        if merge::apply(&mut tree, layer.changes).is_err() {
            return;
        }
    }
    let _ = bfc::rootfs::build(&tree, &Extras::default());
});
