//! A newer kernel shows and continues what a container has written on ZFS and on ext4 with an older
//! one.
//!
//! Two tests with a change of kernels between them, which `tests/zfs/run` runs in its two guests,
//! one after the other on the same disk. Both find the pool in `LXCRI_FS_TEST_POOL`, and in
//! `LXCRI_FS_TEST_DISK` a directory on ext4.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Mounted, lxcri_fs, run};

fn disk() -> PathBuf {
    PathBuf::from(
        std::env::var_os("LXCRI_FS_TEST_DISK").expect("LXCRI_FS_TEST_DISK names a directory"),
    )
}

/// The uppers: what they are called, and what `--upper` takes.
fn uppers() -> [(&'static str, String); 2] {
    let pool = std::env::var("LXCRI_FS_TEST_POOL").expect("LXCRI_FS_TEST_POOL names a pool");
    [
        ("zfs", format!("zfs:{pool}/kernels")),
        ("ext4", disk().join("kernels").to_str().unwrap().to_owned()),
    ]
}

fn mount(name: &str, upper: &str) -> Mounted {
    let dir = disk().join(format!("kernels-{name}"));
    std::fs::create_dir_all(&dir).unwrap();
    Mounted::new(
        &[
            "--upper",
            upper,
            disk().join("kernels.bfc").to_str().unwrap(),
        ],
        &dir,
    )
}

/// A tree as `find` and `cat` print it, one line each. getfattr(1) fails for files without
/// attributes.
fn seen(root: &Path) -> String {
    let script = "find . -printf '%P %y %m %U %G %T@ %l\\n' | sort; find . -type f | sort | xargs \
                  -d '\\n' sha256sum; getfattr -Rhd -m 'user|security|posix' . 2>/dev/null || :";
    run(Command::new("sh").args(["-c", script]).current_dir(root))
}

fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap()
}

#[test]
#[ignore = "needs two VMs: tests/zfs/run"]
fn before() {
    let source = disk().join("source");
    let sh = |dir: &Path, script: &str| {
        drop(run(Command::new("sh")
            .args(["-ec", script])
            .current_dir(dir)))
    };
    std::fs::create_dir_all(&source).unwrap();
    sh(
        &source,
        "mkdir -p etc data/deep usr/bin; for i in 1 2 3 4 5 6; do head -c 300000 /dev/urandom \
         >data/file$i; done; echo image >etc/issue
        echo gone >etc/gone; echo deep >data/deep/file; printf '#!/bin/true\\n' >usr/bin/tool; \
         chmod 4755 usr/bin/tool; setfattr -n user.of -v image data/file1; setfacl -m u:1234:r \
         data/file2",
    );
    run(lxcri_fs()
        .arg("build")
        .arg(&source)
        .arg("-o")
        .arg(disk().join("kernels.bfc")));
    for (name, upper) in uppers() {
        let mounted = mount(name, &upper);
        sh(
            &mounted.0,
            "echo new >etc/new; echo more >>data/file1; chmod 600 data/file2; rm etc/gone; mv \
             data/deep data/moved; rm data/file3; mkdir data/file3; chown 7:8 data/file4
            mv data/file5 etc/five; ln etc/new etc/again; setfattr -n user.of -v container \
             data/file6; mkfifo etc/fifo; ln -s /nowhere etc/link; rm -r usr; mkdir usr; echo usr \
             >usr/usr",
        );
        std::fs::write(disk().join(format!("seen-{name}")), seen(&mounted.0)).unwrap();
    }
    std::fs::write(disk().join("kernel"), kernel()).unwrap();
    rustix::fs::sync();
}

#[test]
#[ignore = "needs two VMs: tests/zfs/run"]
fn after() {
    let before = std::fs::read_to_string(disk().join("kernel")).unwrap();
    assert_ne!(before, kernel());
    for (name, upper) in uppers() {
        let mounted = mount(name, &upper);
        let was = std::fs::read_to_string(disk().join(format!("seen-{name}"))).unwrap();
        assert!(was.lines().count() > 20);
        assert_eq!(seen(&mounted.0), was, "{name}");
        std::fs::write(mounted.0.join("data/file1"), "and on").unwrap();
        std::fs::rename(mounted.0.join("data/moved"), mounted.0.join("data/back")).unwrap();
        drop(mounted);
        let mounted = mount(name, &upper);
        assert_eq!(
            std::fs::read_to_string(mounted.0.join("data/file1")).unwrap(),
            "and on"
        );
        assert_eq!(
            std::fs::read_to_string(mounted.0.join("data/back/file")).unwrap(),
            "deep\n"
        );
        drop(mounted);
        run(lxcri_fs().args(["diff", &upper]));
        println!(
            "{name}: written with Linux {}, and there with {}",
            before.trim(),
            kernel().trim()
        );
    }
}
