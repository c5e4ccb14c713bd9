//! Holes of files stay holes, from the source to a commit and an export. GNU cp and tar, and the
//! kernel's lseek(2), are the oracles.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::common::{Mounted, build_image, lxcri_fs, requests, run};
use crate::sh;

const MIB: u64 = 1 << 20;
/// Length of a frame, bytes.
const FRAME: u64 = 64 << 10;

/// The parts of a file that are data, as the kernel says.
fn data(path: &Path) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap();
    let (mut parts, mut at) = (Vec::new(), 0);
    loop {
        let start = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => return parts,
            other => other.unwrap(),
        };
        at = rustix::fs::seek(&file, SeekFrom::Hole(start)).unwrap();
        parts.push((start, at));
    }
}

fn held(path: &Path) -> u64 {
    path.metadata().unwrap().blocks() * 512
}

/// Each part of data, as frames see it: from the frame that it begins in to the one it ends in.
fn in_frames(parts: &[(u64, u64)], size: u64) -> Vec<(u64, u64)> {
    let mut rounded: Vec<(u64, u64)> = Vec::new();
    for (start, end) in parts {
        let (start, end) = (start / FRAME * FRAME, end.next_multiple_of(FRAME).min(size));
        match rounded.last_mut() {
            Some(last) if last.1 >= start => last.1 = end,
            _ => rounded.push((start, end)),
        }
    }
    rounded
}

#[test]
fn holes_stay_holes() {
    let dir = tempfile::Builder::new().tempdir_in("/var/tmp").unwrap();
    let dir = dir.path();
    sh(
        dir,
        "mkdir src mnt
        truncate -s 150M src/lastlog; printf a | dd of=src/lastlog conv=notrunc status=none
        printf b | dd of=src/lastlog bs=1M seek=100 conv=notrunc status=none
        truncate -s 3000000 src/hole
        head -c 300000 /dev/urandom > src/end; truncate -s 1000001 src/end
        head -c 1000000 /dev/urandom > src/full
        truncate -s 65536 src/small",
    );
    let image = dir.join("image.bfc");
    build_image(dir.join("src"), &image);
    let names = ["lastlog", "hole", "end", "full", "small"];
    let same = |other: &Path| {
        for name in names {
            run(std::process::Command::new("cmp")
                .arg(dir.join("src").join(name))
                .arg(other.join(name)));
        }
    };
    let mnt = dir.join("mnt");
    for engine in ["fuse", "split"] {
        let _mounted = Mounted::new(&["--engine", engine, image.to_str().unwrap()], &mnt);
        for name in names {
            let (source, mounted) = (dir.join("src").join(name), mnt.join(name));
            let size = source.metadata().unwrap().len();
            let mut expected = in_frames(&data(&source), size);
            if size <= FRAME {
                // One piece: data.
                expected = vec![(0, size)];
            }
            assert_eq!(data(&mounted), expected, "{name}");
            // EROFS counts the blocks of a file by its length.
            let bytes: u64 = match engine {
                "fuse" => expected.iter().map(|(start, end)| end - start).sum(),
                _ => size.next_multiple_of(4096),
            };
            assert_eq!(
                mounted.metadata().unwrap().blocks(),
                bytes.div_ceil(512),
                "{name}"
            );
        }
        same(&mnt);
        // cp takes them over; by itself only if the file has fewer blocks than its length.
        let sparse = if engine == "fuse" { "auto" } else { "always" };
        sh(
            dir,
            &format!("mkdir -p copy; cp --sparse={sparse} mnt/lastlog copy/"),
        );
        assert!(held(&dir.join("copy/lastlog")) < MIB);
    }
    let upper = dir.join("upper");
    {
        let _mounted = Mounted::new(
            &["--upper", upper.to_str().unwrap(), image.to_str().unwrap()],
            &mnt,
        );
        let file = File::options()
            .write(true)
            .open(mnt.join("lastlog"))
            .unwrap();
        file.write_all_at(b"z", 100).unwrap();
        assert!(held(&upper.join("upper/lastlog")) < 4 * MIB);
    }
    run(lxcri_fs()
        .args(["commit", "upper", "-o", "committed.bfc"])
        .current_dir(dir));
    {
        let _mounted = Mounted::new(&[dir.join("committed.bfc").to_str().unwrap()], &mnt);
        assert_eq!(
            data(&mnt.join("lastlog")),
            [(0, FRAME), (100 * MIB, 100 * MIB + FRAME)]
        );
        sh(
            dir,
            "printf z | dd of=src/lastlog bs=1 seek=100 conv=notrunc status=none",
        );
        same(&mnt);
    }
    sh(dir, "mkdir unpacked");
    run(lxcri_fs()
        .args(["export", "committed.bfc", "--tar", "out.tar"])
        .current_dir(dir));
    assert!(dir.join("out.tar").metadata().unwrap().len() < 4 * MIB);
    sh(dir, "tar -C unpacked -xf out.tar");
    run(lxcri_fs()
        .args(["extract", "committed.bfc", "extracted"])
        .current_dir(dir));
    for tree in ["unpacked", "extracted"] {
        same(&dir.join(tree));
        assert!(held(&dir.join(tree).join("lastlog")) < MIB, "{tree}");
        assert!(held(&dir.join(tree).join("hole")) < MIB, "{tree}");
    }
    // What was exported is a source, and the same tree.
    build_image(dir.join("out.tar"), &dir.join("again.bfc"));
    let _mounted = Mounted::new(&[dir.join("again.bfc").to_str().unwrap()], &mnt);
    same(&mnt);
}

/// Encrypted zeros differ from each other, and are holes all the same.
#[test]
fn holes_of_encrypted_images_are_holes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    sh(
        dir,
        "mkdir src mnt; head -c 32 /dev/urandom > key; truncate -s 5M src/f
        printf b | dd of=src/f bs=1M seek=3 conv=notrunc status=none",
    );
    run(lxcri_fs()
        .args(["build", "src", "-o", "image.bfc", "--key-file", "key"])
        .current_dir(dir));
    let (image, key) = (dir.join("image.bfc"), dir.join("key"));
    // A mount with EROFS would have to decode all of it to know.
    let key = ["--engine", "fuse", "--key-file", key.to_str().unwrap()];
    let args = [&key[..], &[image.to_str().unwrap()]].concat();
    let _mounted = Mounted::new(&args, &dir.join("mnt"));
    for _ in 0..2 {
        assert_eq!(data(&dir.join("mnt/f")), [(3 * MIB, 3 * MIB + FRAME)]);
    }
    sh(dir, "cmp src/f mnt/f");
}

/// An image without holes costs the kernel one question.
#[test]
fn a_kernel_asks_once_about_holes_that_an_image_has_none_of() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    sh(
        dir,
        "mkdir src mnt; for i in a b c; do head -c 200000 /dev/urandom > src/$i; done",
    );
    build_image(dir.join("src"), &dir.join("image.bfc"));
    let mnt = dir.join("mnt");
    let image = dir.join("image.bfc");
    let _mounted = Mounted::new(&["--engine", "fuse", image.to_str().unwrap()], &mnt);
    for name in ["a", "b", "c"] {
        assert_eq!(data(&mnt.join(name)), [(0, 200_000)]);
    }
    assert_eq!(requests(&mnt, "lseek"), 1);
}
