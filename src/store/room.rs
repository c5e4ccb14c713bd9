//! Space that a store in a directory keeps: on a file system that is full, what gives space back
//! has to write too, and gets this.

use std::fs::File;
use std::io::Write;
use std::path::Path;

/// The file that takes the space.
const ROOM: &str = "room";
/// How much, bytes: some small files.
const SIZE: u64 = 64 << 10;

/// Takes the space, if it is not taken and there is enough. Without it, the store works until its
/// file system is full.
pub(super) fn take(store: &Path) {
    let path = store.join(ROOM);
    if path.exists() {
        return;
    }
    // Bytes that no file system compresses.
    let mut bytes = vec![0; usize::try_from(SIZE).unwrap_or(0)];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    let written = File::create_new(&path).and_then(|mut file| file.write_all(&bytes));
    if written.is_err() {
        let _ = std::fs::remove_file(&path);
    }
}

/// Gives the space back; false if there is none.
pub(super) fn give(store: &Path) -> bool {
    std::fs::remove_file(store.join(ROOM)).is_ok()
}
