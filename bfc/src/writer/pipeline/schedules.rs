//! The pipeline under many schedules of its threads.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::sync::check;

/// Three frames and a part of one.
const FRAME_LOG2: u8 = 6;
const LARGE: usize = 200;
const OBJECT_HEADER: u64 = 48;

fn options() -> WriteOptions {
    WriteOptions {
        level: 1,
        frame_log2: FRAME_LOG2,
        ..WriteOptions::default()
    }
}

/// A pipeline that compresses nothing, and fails on pieces that begin with `bad`.
fn stored(file: &Arc<File>, bad: Option<u8>) -> Pipeline {
    let pack = move |job: Job| {
        // Other threads may run here, as they may while a compressor works.
        thread::yield_now();
        if job.raw.first().copied() == bad {
            return Err(Error::TooLarge("a piece"));
        }
        Ok(Packed {
            comp: Compression::None,
            size: job.raw.len() as u64,
            crc: Flavour::Raw.crc(&job.raw),
            hash: hash(&job.raw),
            bytes: job.raw,
        })
    };
    Pipeline::start_with(
        file.clone(),
        &options(),
        Flavour::Raw,
        Start::default(),
        || Ok(Box::new(pack)),
    )
    .unwrap()
}

fn file() -> Arc<File> {
    Arc::new(tempfile::tempfile().unwrap())
}

#[test]
fn an_image_does_not_depend_on_the_schedule() {
    fn write() -> (Vec<u8>, Vec<Content>, Vec<Frame>) {
        let file = file();
        let mut pipeline =
            Pipeline::start(file.clone(), &options(), Flavour::Raw, Start::default()).unwrap();
        let contents = [5, LARGE, 40, 5, LARGE, 64, 65]
            .into_iter()
            .zip([1, 2, 3, 1, 2, 4, 5]);
        let mut numbers = Vec::new();
        for (len, byte) in contents {
            let content = vec![byte; len];
            numbers.push(
                pipeline
                    .add(b"", len as u64, &mut &content[..])
                    .unwrap()
                    .unwrap(),
            );
        }
        // Identical content is stored once.
        assert_eq!(numbers, [0, 1, 2, 0, 1, 3, 4]);
        assert_eq!(pipeline.end_layer().unwrap().contents_end, 5);
        pipeline.add(b"", 1, &mut &b"6"[..]).unwrap();
        let done = pipeline.finish().unwrap();
        let mut bytes = vec![0; usize::try_from(done.position).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        (bytes, done.contents, done.frames)
    }
    check(100, || {
        static FIRST: std::sync::OnceLock<(Vec<u8>, Vec<Content>, Vec<Frame>)> =
            std::sync::OnceLock::new();
        let written = write();
        let first = FIRST.get_or_init(|| written.clone());
        assert!(written == *first, "{written:?} is not {first:?}");
        let (_, contents, _) = written;
        assert_eq!(contents.len(), 6);
        assert!(contents.is_sorted_by(|a, b| a.offset + a.stored <= b.offset));
    });
}

/// Every piece in memory was read, and is not in the file yet.
#[test]
fn the_pieces_in_memory_are_bounded() {
    struct Input<'a> {
        file: &'a File,
        read: &'a AtomicU64,
    }
    impl Read for Input<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let read = self.read.fetch_add(1, Ordering::Relaxed);
            buf.copy_from_slice(&read.to_le_bytes());
            let written = self.file.metadata()?.len() / (OBJECT_HEADER + 8);
            assert!(
                read - written <= IN_FLIGHT as u64,
                "{read} read, {written} written"
            );
            Ok(buf.len())
        }
    }
    check(100, || {
        let (file, read) = (file(), AtomicU64::new(0));
        let mut pipeline = stored(&file, None);
        for _ in 0..4 * IN_FLIGHT {
            let mut input = Input {
                file: &file,
                read: &read,
            };
            pipeline.add(b"", 8, &mut input).unwrap();
        }
        let done = pipeline.finish().unwrap();
        assert_eq!(done.contents.len(), 4 * IN_FLIGHT);
    });
}

/// A pipeline that does not end is a deadlock, which the model checker reports.
#[test]
fn an_error_of_a_compressor_ends_all_threads_and_is_reported() {
    check(100, || {
        // At the beginning; just before the end of a layer; the last.
        for bad in [0, 3, 13] {
            let error = fill(&mut stored(&file(), Some(bad))).unwrap_err();
            assert!(matches!(error, Error::TooLarge("a piece")), "{error:?}");
        }
    });
}

#[test]
fn an_error_of_the_output_ends_all_threads_and_is_reported() {
    check(100, || {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let error = fill(&mut stored(&Arc::new(full), None)).unwrap_err();
        assert!(
            matches!(&error, Error::Write { source, .. }
                if source.kind() == io::ErrorKind::StorageFull),
            "{error:?}"
        );
    });
}

#[test]
fn a_pipeline_that_is_given_up_ends() {
    check(100, || {
        let mut pipeline = stored(&file(), None);
        for byte in [1, 2, 3] {
            pipeline.add(b"", 1, &mut &[byte][..]).unwrap();
        }
    });
}

/// Adds large and small contents in two layers. The last of a layer are short enough for its end to
/// be under way with them.
fn fill(pipeline: &mut Pipeline) -> Result<()> {
    for layer in [0, 10] {
        for byte in layer..layer + 2 {
            pipeline.add(b"", LARGE as u64, &mut &[byte; LARGE][..])?;
        }
        for byte in layer + 2..layer + 4 {
            pipeline.add(b"", 1, &mut &[byte][..])?;
        }
        pipeline.end_layer()?;
    }
    pipeline.finish().map(drop)
}
