//! What a power cut leaves of containers that write to ZFS and to ext4, and of commits under way:
//! what was synced, and whole images.
//!
//! Two tests with the cut between them, which `tests/zfs/run` runs in a VM that it kills when the
//! first one says so. Both find the pool in `LXCRI_FS_TEST_POOL`, and in `LXCRI_FS_TEST_DISK` a
//! directory on ext4.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Mounted, golden, lxcri_fs, run, stderr};

/// Bytes of each file that is written.
const SIZE: usize = 20_000;

fn disk() -> PathBuf {
    PathBuf::from(
        std::env::var_os("LXCRI_FS_TEST_DISK").expect("LXCRI_FS_TEST_DISK names a directory"),
    )
}

/// The uppers: what they are called, and what `--upper` takes.
fn uppers() -> [(&'static str, String); 2] {
    let pool = std::env::var("LXCRI_FS_TEST_POOL").expect("LXCRI_FS_TEST_POOL names a pool");
    [
        ("zfs", format!("zfs:{pool}/cut")),
        ("ext4", disk().join("upper").to_str().unwrap().to_owned()),
    ]
}

fn image() -> PathBuf {
    disk().join("image.bfc")
}

fn mount(name: &str, upper: &str) -> Mounted {
    let dir = disk().join(format!("mnt-{name}"));
    std::fs::create_dir_all(&dir).unwrap();
    Mounted::new(&["--upper", upper, image().to_str().unwrap()], &dir)
}

/// What the file of this number holds.
fn content(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(SIZE / 8)
}

/// How many files are known to be synced.
fn progress(name: &str) -> PathBuf {
    disk().join(format!("synced-{name}"))
}

/// Writes files for ever: a new one, the same synced under its last name, and a large file of the
/// image that is copied up by it.
fn write_for_ever(name: &str, root: &Path) {
    let known = File::create(progress(name)).unwrap();
    for number in 1_u64.. {
        let (new, last) = (root.join("new"), root.join(format!("file-{number}")));
        let mut file = File::create(&new).unwrap();
        file.write_all(&content(number)).unwrap();
        file.sync_all().unwrap();
        std::fs::rename(&new, &last).unwrap();
        File::open(root).unwrap().sync_all().unwrap();
        known.write_all_at(&number.to_le_bytes(), 0).unwrap();
        known.sync_data().unwrap();
    }
}

/// Makes images of what is being written, for ever, one new and one in place of the last.
fn commit_for_ever(name: &str, upper: &str) {
    let committed = disk().join(format!("committed-{name}.bfc"));
    loop {
        let mut command = lxcri_fs();
        command
            .args(["commit", upper, "--force", "-o"])
            .arg(&committed)
            .stderr(Stdio::null())
            .stdout(Stdio::null());
        let _ = command.status();
    }
}

#[test]
#[ignore = "needs a VM that is killed: tests/zfs/run"]
fn before() {
    run(lxcri_fs()
        .arg("build")
        .arg(golden(""))
        .arg("-o")
        .arg(image()));
    rustix::fs::sync();
    let mounted: Vec<_> = uppers()
        .map(|(name, upper)| (name, mount(name, &upper), upper))
        .into();
    std::thread::scope(|scope| {
        for (name, mounted, upper) in &mounted {
            scope.spawn(move || write_for_ever(name, &mounted.0));
            // What is in a directory is only committed when nobody uses it.
            if *name == "zfs" {
                scope.spawn(move || commit_for_ever(name, upper));
            } else {
                scope.spawn(append_for_ever);
            }
        }
        let begun = || {
            uppers().iter().all(|(name, _)| synced(name) > 2)
                && disk().join("committed-zfs.bfc").exists()
        };
        while !begun() {
            std::thread::sleep(Duration::from_millis(100));
        }
        println!("cut the power");
    });
}

/// Appends layers to an image, for ever.
fn append_for_ever() {
    let appended = disk().join("appended.bfc");
    std::fs::copy(image(), &appended).unwrap();
    File::open(&appended).unwrap().sync_all().unwrap();
    for number in 0.. {
        let dir = disk().join("layer");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(format!("layer-{number}")), content(number)).unwrap();
        run(lxcri_fs().arg("append").arg(&appended).arg(&dir));
    }
}

fn synced(name: &str) -> u64 {
    let mut number = [0; 8];
    File::open(progress(name))
        .and_then(|file| file.read_exact_at(&mut number, 0))
        .map_or(0, |()| u64::from_le_bytes(number))
}

fn verify(image: &Path) {
    let output = lxcri_fs().arg("verify").arg(image).output().unwrap();
    assert!(
        output.status.success(),
        "{}: {}",
        image.display(),
        stderr(&output)
    );
}

#[test]
#[ignore = "needs a VM that was killed: tests/zfs/run"]
fn after() {
    for image in ["image.bfc", "committed-zfs.bfc", "appended.bfc"] {
        verify(&disk().join(image));
    }
    println!("images: whole");
    for (name, upper) in uppers() {
        // The upper is mounted as if nothing had been.
        let mounted = mount(name, &upper);
        let count = synced(name);
        assert!(count > 2, "{name}: {count}");
        for number in 1..=count {
            let path = mounted.0.join(format!("file-{number}"));
            assert!(
                std::fs::read(&path).unwrap() == content(number),
                "{}",
                path.display()
            );
        }
        assert_eq!(
            std::fs::read(mounted.0.join("plain.bfc")).unwrap(),
            std::fs::read(golden("plain.bfc")).unwrap()
        );
        std::fs::write(mounted.0.join("file-1"), "and on").unwrap();
        run(Command::new("find").arg(&mounted.0));
        drop(mounted);
        run(lxcri_fs().args(["diff", &upper]));
        println!("{name}: {count} files synced before the cut, all there");
    }
}
