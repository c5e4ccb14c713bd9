//! What is decoded before anybody asks for it, with either engine. Needs root.

use std::time::Duration;

use crate::common::{Mounted, build_image, eventually, lxcri_fs, requests, run, stats};

#[test]
fn sequential_readers_find_the_next_files_decoded() {
    find_decoded("fuse");
}

/// The kernel reads the decoded device ahead, from one file into the next.
#[test]
fn sequential_readers_find_the_next_files_read_by_the_kernel() {
    find_decoded("split");
}

fn find_decoded(engine: &str) {
    let temp = tempfile::tempdir().unwrap();
    let (source, image, dir) = (
        temp.path().join("source"),
        temp.path().join("image.bfc"),
        temp.path().join("mnt"),
    );
    for path in [&source, &dir] {
        std::fs::create_dir(path).unwrap();
    }
    // Sizes on both sides of a page, none at all, some that are too large for it.
    let sizes = [0, 1, 4095, 4096, 4097, 70_000, 131_072, 200_000];
    let content = |n: usize| -> Vec<u8> {
        (0..sizes[n % sizes.len()])
            .map(|at| u8::try_from((at / 7 + n) % 251).unwrap())
            .collect()
    };
    let names: Vec<String> = (0..400).map(|n| format!("{n:03}")).collect();
    for (n, name) in names.iter().enumerate() {
        std::fs::write(source.join(name), content(n)).unwrap();
    }
    build_image(&source, &image);
    let with_content = (0..400).filter(|n| n % sizes.len() != 0).count() as u64;
    let mut fewest = u64::MAX;
    for round in 0..5 {
        let mounted = Mounted::new(&["--engine", engine, image.to_str().unwrap()], &dir);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), names.len());
        for (n, name) in names.iter().enumerate() {
            assert!(
                std::fs::read(dir.join(name)).unwrap() == content(n),
                "{name}"
            );
            // As long as it takes to make some of them ready; longer on a busy machine.
            std::thread::sleep(Duration::from_millis(1 << round));
        }
        assert_eq!(stats(&dir)["damaged"], 0);
        fewest = fewest.min(requests(&dir, "read"));
        drop(mounted);
        // Or the next mount would go on with its cache.
        eventually("end of the keeper", || {
            (!run(lxcri_fs().arg("ps")).contains(image.to_str().unwrap())).then_some(())
        });
        // Another test may have dropped caches meanwhile.
        if fewest < with_content / 2 {
            return;
        }
    }
    panic!("{fewest} reads of {with_content} files");
}
