//! Any bytes as a layer's tar: read, merged, replayed from its skeleton. Nothing may panic or take memory without bound, and the replay makes the same
//! changes as the reading.
#![no_main]

use std::io::Read;

use bfc::rootfs::format::Layer;
use bfc::writer::ContentSink;
use libfuzzer_sys::fuzz_target;
use lxcri_fs::layer::{Budget, merge, read, replay};

/// Takes contents and forgets them.
#[derive(Default)]
struct Sink(u32);

impl ContentSink for Sink {
    fn add(&mut self, _path: &[u8], size: u64, input: &mut dyn Read) -> Result<Option<u32>, bfc::Error> {
        let copied = std::io::copy(&mut input.take(size), &mut std::io::sink()).map_err(bfc::Error::Input)?;
        if copied != size {
            return Err(bfc::Error::Input(std::io::ErrorKind::UnexpectedEof.into()));
        }
        self.0 += 1;
        Ok((size > 0).then_some(self.0))
    }

    fn end_layer(&mut self) -> Result<Layer, bfc::Error> {
        Ok(Layer::default())
    }
}

fuzz_target!(|data: &[u8]| {
    let mut budget = Budget::new(64 << 20);
    let Ok(layer) = read::read(&mut &data[..], &mut Sink::default(), &mut budget) else { return };
    let again = replay::changes(&layer.skeleton.compressed, layer.skeleton.size);
    assert_eq!(again.ok().as_ref(), Some(&layer.changes), "the replay makes other changes");
    let _ = merge::merge([layer.changes.clone(), layer.changes]);
});
