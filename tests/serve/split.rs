//! What only the split engine does. Needs root.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use super::common::{Mounted, build_image, is_split, stats};

const FRAME: usize = 64 << 10;

/// Content that does not compress, so that its frames are found in the image.
fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..len.div_ceil(8))
        .flat_map(|_| next().to_le_bytes())
        .take(len)
        .collect()
}

fn split(image: &Path, dir: &Path) -> Mounted {
    Mounted::new(&["--engine", "split", image.to_str().unwrap()], dir)
}

fn drop_caches() {
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

/// One bit of each frame of each file is flipped, one after the other: the pages of that frame are
/// errors, and no other byte of any file.
#[test]
fn damage_is_an_error_for_the_pages_of_its_frame_and_for_nothing_else() {
    if !is_split() {
        eprintln!("NOT TESTED: this host mounts no EROFS");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let (source, image, dir) = (
        temp.path().join("source"),
        temp.path().join("image.bfc"),
        temp.path().join("mnt"),
    );
    std::fs::create_dir(&source).unwrap();
    std::fs::create_dir(&dir).unwrap();
    let lens = [100, 5_000, FRAME, FRAME + 1_000, 3 * FRAME + 777, 10_000];
    let files: Vec<(String, Vec<u8>)> = (1..)
        .zip(lens)
        .map(|(seed, len)| (format!("f{seed}"), random(seed, len)))
        .collect();
    for (name, bytes) in &files {
        std::fs::write(source.join(name), bytes).unwrap();
    }
    build_image(format!("dir:{}", source.display()), &image);
    let stored = std::fs::read(&image).unwrap();
    for (name, bytes) in &files {
        for (number, frame) in bytes.chunks(FRAME).enumerate() {
            let wanted = &frame[..frame.len().min(64)];
            let at = stored
                .windows(wanted.len())
                .position(|window| window == wanted)
                .unwrap();
            let file = File::options().write(true).open(&image).unwrap();
            file.write_all_at(&[stored[at] ^ 4], at as u64).unwrap();
            {
                let _mounted = split(&image, &dir);
                drop_caches();
                let bad = number * FRAME..number * FRAME + frame.len();
                for (other, expected) in &files {
                    let opened = File::open(dir.join(other)).unwrap();
                    // From both ends, so that read-ahead meets the damage from either side.
                    let mut pages: Vec<usize> = (0..expected.len()).step_by(4096).collect();
                    if number % 2 == 1 {
                        pages.reverse();
                    }
                    for page in pages {
                        let len = (expected.len() - page).min(4096);
                        let mut read = vec![0; len];
                        let result = opened.read_exact_at(&mut read, page as u64);
                        if other == name && bad.contains(&page) {
                            let error = result.unwrap_err();
                            assert_eq!(error.raw_os_error(), Some(5), "{other} {page}");
                        } else {
                            result
                                .unwrap_or_else(|e| panic!("{name} {number}: {other} {page}: {e}"));
                            assert!(read == expected[page..page + len], "{other} {page}");
                        }
                    }
                }
                assert!(stats(&dir)["damaged"].as_u64().unwrap() > 0);
            }
            file.write_all_at(&[stored[at]], at as u64).unwrap();
        }
    }
}

/// What is kept of an image is used again, and not believed when it is damaged.
#[test]
fn kept_metadata_are_used_again_and_damaged_ones_are_not() {
    if !is_split() {
        eprintln!("NOT TESTED: this host mounts no EROFS");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let (source, image, dir) = (
        temp.path().join("source"),
        temp.path().join("image.bfc"),
        temp.path().join("mnt"),
    );
    std::fs::create_dir_all(source.join("d")).unwrap();
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(source.join("d/f"), "content").unwrap();
    build_image(&source, &image);
    let kept = || -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir("/var/cache/lxcri-fs/erofs").unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let shows = || {
        let _mounted = split(&image, &dir);
        assert_eq!(std::fs::read_to_string(dir.join("d/f")).unwrap(), "content");
        dir.join("d").metadata().unwrap().ino()
    };
    let _ = std::fs::create_dir_all("/var/cache/lxcri-fs/erofs");
    let before = kept();
    let ino = shows();
    let mine = || -> Vec<_> {
        let now = kept();
        now.into_iter()
            .filter(|path| !before.contains(path))
            .collect()
    };
    // Other tests mount images meanwhile.
    let new = mine();
    assert!(!new.is_empty());
    for path in &new {
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    }
    assert_eq!(shows(), ino);
    for path in new {
        let Ok(file) = File::options().write(true).open(&path) else {
            continue;
        };
        file.write_all_at(&[0xff; 64], 5000).unwrap();
    }
    assert_eq!(shows(), ino);
}
