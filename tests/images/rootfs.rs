//! A real root file system in an image is usable as one: chroot, dpkg, perl; find, tar and md5sum
//! see what the source has.
//!
//! Needs root and Debian's mmdebstrap; `tests/run.sh` installs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::{Mounted, Stop, assert_same_tree, eventually, lxcri_fs, run, tree};

/// A minimal Debian as a tar, unpacked, and as an image; made once a build directory.
fn debian() -> &'static (PathBuf, PathBuf) {
    static MADE: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    MADE.get_or_init(|| {
        let base = Path::new(env!("CARGO_TARGET_TMPDIR")).join("debian");
        std::fs::create_dir_all(&base).unwrap();
        let (tar, dir, image) = (
            base.join("debian.tar"),
            base.join("rootfs"),
            base.join("debian.bfc"),
        );
        if !dir.exists() {
            // A mirror that is a snapshot may be past its date.
            let lenient = "--aptopt=Acquire::Check-Valid-Until \"false\"";
            run(Command::new("mmdebstrap")
                .args(["--quiet", "--variant=minbase", lenient, "stable"])
                .arg(&tar));
            let half = base.join("rootfs.new");
            let _ = std::fs::remove_dir_all(&half);
            std::fs::create_dir(&half).unwrap();
            run(Command::new("tar")
                .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-C"])
                .arg(&half)
                .arg("-xpf")
                .arg(&tar));
            std::fs::rename(&half, &dir).unwrap();
        }
        run(lxcri_fs()
            .arg("build")
            .arg(format!("tar:{}", tar.display()))
            .arg("--force")
            .arg("-o")
            .arg(&image));
        (dir, image)
    })
}

#[test]
fn the_mount_equals_the_source() {
    let (source, image) = debian();
    let dir = tempfile::tempdir().unwrap();
    let _mounted = Mounted::new(&[image.to_str().unwrap()], dir.path());
    assert_same_tree(&tree(source), &tree(dir.path()));
}

#[test]
fn programs_run_in_it() {
    let (_, image) = debian();
    let dir = tempfile::tempdir().unwrap();
    let _mounted = Mounted::new(&["-o", "suid,dev", image.to_str().unwrap()], dir.path());
    let chroot = |args: &[&str]| run(Command::new("chroot").arg(dir.path()).args(args));
    assert_eq!(chroot(&["/bin/sh", "-c", "echo $((6 * 7))"]), "42\n");
    assert!(
        chroot(&["dpkg", "-l"])
            .lines()
            .filter(|l| l.starts_with("ii "))
            .count()
            > 50
    );
    assert_eq!(chroot(&["perl", "-MPOSIX", "-e", "print floor(2.5)"]), "2");
}

#[test]
fn ordinary_tools_see_what_the_source_has() {
    let (source, image) = debian();
    let dir = tempfile::tempdir().unwrap();
    let _mounted = Mounted::new(&[image.to_str().unwrap()], dir.path());
    let both = |script: &str| {
        let output = |root: &Path| run(Command::new("sh").args(["-c", script]).current_dir(root));
        let (a, b) = (output(source), output(dir.path()));
        assert!(
            a == b && !a.is_empty(),
            "{script}: {} and {} bytes",
            a.len(),
            b.len()
        );
    };
    both("find . -printf '%p %m %U %G %y %l %T@\\n' | LC_ALL=C sort");
    both("find . -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum");
    both(
        "tar --sort=name --numeric-owner --format=posix --pax-option=delete=atime,delete=ctime \
         -cf - . | sha256sum",
    );
    both("ls -laR --time-style=full-iso usr/bin etc | grep -v ^total | awk '!/^d/' | tr -s ' '");
}

#[test]
fn parallel_readers_get_the_same_bytes() {
    let (source, image) = debian();
    let dir = tempfile::tempdir().unwrap();
    let _mounted = Mounted::new(&[image.to_str().unwrap()], dir.path());
    let script =
        "find usr/bin usr/lib -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum | md5sum";
    let expected = run(Command::new("sh").args(["-c", script]).current_dir(source));
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                assert_eq!(
                    run(Command::new("sh")
                        .args(["-c", script])
                        .current_dir(dir.path())),
                    expected
                )
            });
        }
    });
}

#[test]
fn killed_workers_cause_no_error_in_programs() {
    let (_, image) = debian();
    let temp = tempfile::tempdir().unwrap();
    let [dir, overlay, upper, work] =
        ["mnt", "overlay", "upper", "work"].map(|name| temp.path().join(name));
    for path in [&dir, &overlay, &upper, &work] {
        std::fs::create_dir(path).unwrap();
    }
    let _mounted = Mounted::new(&["--log-file", "/dev/null", image.to_str().unwrap()], &dir);
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        dir.display(),
        upper.display(),
        work.display()
    );
    run(Command::new("mount")
        .args(["-t", "overlay", "-o", &options, "overlay"])
        .arg(&overlay));
    let loads = [
        (&dir, "find . -ls | wc -l"),
        (
            &dir,
            "find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 -P 3 -n 100 cat | wc -c",
        ),
        (
            &overlay,
            "find usr/bin usr/lib -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum | md5sum",
        ),
        // Programs and libraries are mapped.
        (
            &overlay,
            "for i in 1 2 3 4 5; do chroot . perl -MPOSIX -MList::Util -e 'print floor(2.5)'; done",
        ),
        (&dir, "chroot . dpkg -l | wc -l"),
    ];
    let load = |(root, script): (&PathBuf, &str)| {
        run(Command::new("sh").args(["-ec", script]).current_dir(root))
    };
    let expected = loads.map(load);
    let row = || {
        eventually("row of the mount", || {
            let rows = run(lxcri_fs().args(["ps", "--json"]));
            let mut rows = rows
                .lines()
                .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
            rows.find(|row| {
                row["mountpoints"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|m| m == dir.to_str().unwrap())
            })
        })
    };
    let stop = AtomicBool::new(false);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for (work, expected) in loads.into_iter().zip(&expected) {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(load(work), *expected, "{}", work.1);
                }
            });
        }
        let _stop = Stop(&stop);
        while row()["restarts"].as_u64().unwrap() < 50 && start.elapsed() < Duration::from_secs(120)
        {
            // Or nobody would have to ask.
            std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
            std::thread::sleep(Duration::from_millis(50));
            if let Some(worker) = row()["worker"].as_u64() {
                let _ = Command::new("kill")
                    .args(["-9", &worker.to_string()])
                    .stderr(Stdio::null())
                    .status();
            }
        }
    });
    run(Command::new("umount").arg(&overlay));
    assert!(row()["restarts"].as_u64().unwrap() >= 50, "{}", row());
}
