//! A blob that is read while it grows, under many schedules.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::sync::{check, switch, thread};

const PIECES: [&[u8]; 3] = [b"one", b"and", b"another"];

/// Fetches all pieces and ends with `result`, while two read. Returns what each of them got.
fn fetch(spool: &Arc<Spool>, result: Result<()>) -> Vec<(Vec<u8>, io::Result<usize>)> {
    thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut bytes = Vec::new();
                    let result = spool.reader().read_to_end(&mut bytes);
                    (bytes, result)
                })
            })
            .collect();
        for piece in PIECES {
            spool.append(piece).unwrap();
            switch();
        }
        spool.end(result);
        // As the thread that downloads does for all blobs in the end.
        spool.end(Err(Error::Cancelled));
        readers
            .into_iter()
            .map(|reader| reader.join().unwrap())
            .collect()
    })
}

fn spool() -> Arc<Spool> {
    Arc::new(Spool::new(
        tempfile::tempfile().unwrap(),
        None,
        PathBuf::from("blob"),
        0,
    ))
}

#[test]
fn readers_get_all_of_a_growing_blob() {
    check(200, || {
        let spool = spool();
        for (bytes, result) in fetch(&spool, Ok(())) {
            assert_eq!(bytes, PIECES.concat());
            assert_eq!(result.unwrap(), bytes.len());
        }
        assert!(spool.failure().is_none());
    });
}

#[test]
fn a_failure_ends_all_readers() {
    check(200, || {
        let spool = spool();
        let failed = fetch(&spool, Err(Error::Cancelled));
        for (bytes, result) in failed {
            assert!(PIECES.concat().starts_with(&bytes));
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
        assert!(spool.failure().is_some());
    });
}
