//! Whoever owns a directory above a mount point leads nobody elsewhere: not who mounts, with or
//! without an upper, and not who unmounts. Needs root.

use std::os::unix::fs::{chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::{Mounted, Stop, golden, lxcri_fs, run, stderr};
use rustix::fs::{CWD, RenameFlags, renameat_with};

const NOBODY: u32 = 65534;

struct Fixture {
    _temp: tempfile::TempDir,
    top: PathBuf,
    image: PathBuf,
}

impl Fixture {
    /// `protected/x` is root's, `home` is a user's: with a directory `home/m/x`, and a symlink of
    /// his, `home/s`, that leads to `protected`.
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let top = temp.path().canonicalize().unwrap();
        for dir in ["protected/x", "home/m/x"] {
            std::fs::create_dir_all(top.join(dir)).unwrap();
        }
        symlink(top.join("protected"), top.join("home/s")).unwrap();
        for owned in ["home", "home/m", "home/m/x", "home/s"] {
            lchown(top.join(owned), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let image = top.join("image.bfc");
        std::fs::copy(golden("zstd.bfc"), &image).unwrap();
        Self {
            _temp: temp,
            top,
            image,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.top.join(name)
    }

    fn mount(&self, args: &[&str], dir: &Path) -> Output {
        lxcri_fs()
            .arg("mount")
            .args(args)
            .arg(&self.image)
            .arg(dir)
            .output()
            .unwrap()
    }

    /// The mount points below the fixture.
    fn mounts(&self) -> Vec<PathBuf> {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let paths = text
            .lines()
            .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from));
        paths.filter(|path| path.starts_with(&self.top)).collect()
    }

    /// Runs `act` while the user puts his directory and his symlink in each other's place.
    fn while_swapped(&self, act: impl FnOnce()) {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let stopped = Stop(&stop);
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    renameat_with(
                        CWD,
                        self.path("home/m"),
                        CWD,
                        self.path("home/s"),
                        RenameFlags::EXCHANGE,
                    )
                    .unwrap();
                    std::thread::sleep(std::time::Duration::from_micros(300));
                }
            });
            act();
            drop(stopped);
        });
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        for path in self.mounts() {
            let _ = Command::new("umount").arg("-l").arg(path).status();
        }
    }
}

#[test]
fn mount_and_umount_follow_no_symlink_of_another_user() {
    let fixture = Fixture::new();
    let through = fixture.path("home/s/x");
    let upper = fixture.path("upper");
    for args in [
        &[][..],
        &["--foreground"],
        &["--ephemeral"],
        &["--upper", upper.to_str().unwrap()],
        &["--idmap", "0:0:65536"],
    ] {
        let output = fixture.mount(args, &through);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{args:?}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains("another user could have created")
                && stderr(&output).contains("hint:"),
            "{}",
            stderr(&output)
        );
        assert_eq!(fixture.mounts(), [] as [&Path; 0], "{args:?}");
    }
    let _mounted = Mounted::new(
        &[fixture.image.to_str().unwrap()],
        &fixture.path("protected/x"),
    );
    let output = lxcri_fs().arg("umount").arg(&through).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_eq!(fixture.mounts(), [fixture.path("protected/x")]);
}

#[test]
fn mount_and_umount_follow_symlinks_of_root() {
    let fixture = Fixture::new();
    symlink("protected", fixture.path("link")).unwrap();
    symlink("link/x", fixture.path("far")).unwrap();
    for args in [&[][..], &["--ephemeral"]] {
        let output = fixture.mount(args, &fixture.path("far"));
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(fixture.mounts(), [fixture.path("protected/x")]);
        let again = fixture.mount(args, &fixture.path("link/x"));
        assert_eq!(again.status.code(), Some(6), "{}", stderr(&again));
        run(lxcri_fs().arg("umount").arg(fixture.path("far")));
        assert_eq!(fixture.mounts(), [] as [&Path; 0]);
    }
    // But not one in a directory where everybody may put another.
    std::fs::set_permissions(
        &fixture.top,
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    assert_eq!(
        fixture.mount(&[], &fixture.path("far")).status.code(),
        Some(1)
    );
}

#[test]
fn mount_uses_the_directory_that_its_path_named_at_first() {
    let fixture = Fixture::new();
    // So that a mount takes no time.
    let keep = fixture.path("keep");
    std::fs::create_dir(&keep).unwrap();
    let kept = Mounted::new(&[fixture.image.to_str().unwrap()], &keep);
    let mut done = 0;
    fixture.while_swapped(|| {
        for round in 0..40 {
            let args: &[&str] = if round % 2 == 0 {
                &[]
            } else {
                &["--ephemeral"]
            };
            done += u32::from(
                fixture
                    .mount(args, &fixture.path("home/m/x"))
                    .status
                    .success(),
            );
            let mounts = fixture.mounts();
            assert!(
                !mounts
                    .iter()
                    .any(|path| path.starts_with(fixture.path("protected"))),
                "{mounts:?}"
            );
            for path in mounts
                .iter()
                .filter(|path| path.starts_with(fixture.path("home")))
            {
                // Under whichever of its two names it is found.
                let there = ["m/x", "s/x"].map(|name| fixture.path("home").join(name));
                assert!(there.contains(path));
                while fixture.mounts().iter().any(|path| there.contains(path)) {
                    there.iter().for_each(|path| {
                        drop(
                            Command::new("umount")
                                .arg("-l")
                                .arg("--no-canonicalize")
                                .arg(path)
                                .output(),
                        )
                    });
                }
            }
        }
    });
    assert!(done > 0);
    drop(kept);
}

#[test]
fn umount_removes_only_the_mount_that_its_path_named_at_first() {
    let fixture = Fixture::new();
    chown(fixture.path("home/m"), Some(NOBODY), Some(NOBODY)).unwrap();
    let keep = fixture.path("keep");
    std::fs::create_dir(&keep).unwrap();
    let kept = Mounted::new(&[fixture.image.to_str().unwrap()], &keep);
    let other = fixture.path("protected/x");
    run(Command::new("mount")
        .args(["-t", "tmpfs", "none"])
        .arg(&other));
    let ours = || {
        fixture
            .mounts()
            .iter()
            .any(|path| path.starts_with(fixture.path("home")))
    };
    let mut done = 0;
    fixture.while_swapped(|| {
        for _ in 0..60 {
            if !ours() {
                fixture.mount(&[], &fixture.path("home/m/x"));
            }
            let before = ours();
            let _ = lxcri_fs()
                .arg("umount")
                .arg(fixture.path("home/m/x"))
                .output()
                .unwrap();
            done += u32::from(before && !ours());
            assert!(fixture.mounts().contains(&other));
        }
    });
    assert!(done > 0);
    drop(kept);
}
