//! Mounts that can be written to: what they promise, and what they refuse.
//!
//! Needs root, and the tools that `tests/run.sh` installs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod identity;
mod rebase;
mod xattrs;

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::{Mounted, build_image, eventually, hard_links_part, lxcri_fs, run, stderr};
use serde_json::Value;

fn sh(dir: &Path, script: &str) -> String {
    run(Command::new("bash").args(["-euc", script]).current_dir(dir))
}

/// Runs a script as root of a user namespace with the map 0:100000:65536, as a container's; what it
/// printed.
#[track_caller]
fn in_user_namespace(script: &str) -> String {
    let mut command = Command::new("unshare");
    command
        .args(["--user", "sh", "-c", "echo; read -r _"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut first = command.spawn().unwrap();
    first.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    // By hand, as newuidmap asks whether the host has reserved the range, and what the host has
    // reserved is not what is tested.
    for map in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{}/{map}", first.id()), "0 100000 65536").unwrap();
    }
    let target = first.id().to_string();
    let output = Command::new("nsenter")
        .args(["--user", "--target", &target, "bash", "-euc", script])
        .output()
        .unwrap();
    drop(first.stdin.take());
    first.wait().unwrap();
    assert!(output.status.success(), "{script}: {}", stderr(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

struct Fixture {
    dir: tempfile::TempDir,
    image: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Other users look at what is mounted here.
        sh(
            dir.path(),
            r"
            chmod 755 .
            mkdir -p root/bin root/dir root/home
            echo text > root/file
            ln root/file root/dir/link
            chmod 2750 root/dir
            chown 5:6 root/dir
            cp /bin/true root/bin/cap
            setcap cap_net_raw+ep root/bin/cap
            cp /usr/bin/id root/bin/suid
            chmod 4755 root/bin/suid
            head -c 3000000 /dev/urandom > root/large
            chown 1000:1000 root/home
            touch -d '2001-02-03 04:05:06.5' root
            setfattr -n user.root -v yes root",
        );
        let image = dir.path().join("image.bfc");
        build_image(dir.path().join("root"), &image);
        Self { dir, image }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Mounts the image on the directory `name`.
    fn mount(&self, args: &[&str], name: &str) -> Mounted {
        std::fs::create_dir_all(self.path(name)).unwrap();
        let mut all = vec![self.image.to_str().unwrap()];
        all.extend(args);
        Mounted::new(&all, &self.path(name))
    }

    fn try_mount(&self, args: &[&str], name: &str) -> Output {
        std::fs::create_dir_all(self.path(name)).unwrap();
        lxcri_fs()
            .arg("mount")
            .arg(&self.image)
            .args(args)
            .arg(self.path(name))
            .output()
            .unwrap()
    }

    fn upper(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// What `ps` says of the image.
    fn ps(&self) -> Option<Value> {
        let rows = run(lxcri_fs().args(["ps", "--json"]));
        let rows = rows
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        rows.into_iter()
            .find(|row| row["images"][0] == self.image.to_str().unwrap())
    }
}

fn mounts() -> String {
    std::fs::read_to_string("/proc/mounts").unwrap()
}

#[test]
fn a_remount_shows_what_was_written_and_the_image_is_unchanged() {
    let fixture = Fixture::new();
    let before = sh(fixture.dir.path(), "sha256sum image.bfc");
    let upper = fixture.upper("upper");
    {
        let _mounted = fixture.mount(&["--upper", &upper], "merged");
        // The root is the image's, as a container sees it.
        let script = "stat -c '%a %u:%g %Y' .; getfattr --only-values -n user.root .";
        assert_eq!(
            sh(&fixture.path("merged"), script),
            "755 0:0 981173106\nyes"
        );
        sh(
            &fixture.path("merged"),
            "echo more >> file; rm -r home; mv dir moved; chown 7:8 large; mkdir new; echo x > \
             new/x",
        );
        let row = fixture.ps().unwrap();
        assert_eq!(
            row["uppers"][0]["upper"],
            fixture.path("upper/upper").to_str().unwrap()
        );
    }
    {
        let _mounted = fixture.mount(&["--upper", &upper], "merged");
        let found = sh(
            &fixture.path("merged"),
            "cat file new/x; ls; stat -c '%u:%g %s' large moved; cat moved/link; cmp large \
             ../root/large",
        );
        // The other name of the file that was changed.
        let link = if hard_links_part() {
            "text\n"
        } else {
            "text\nmore\n"
        };
        assert_eq!(
            found,
            format!("text\nmore\nx\nbin\nfile\nlarge\nmoved\nnew\n7:8 3000000\n5:6 4096\n{link}")
        );
    }
    assert_eq!(sh(fixture.dir.path(), "sha256sum image.bfc"), before);
    assert_eq!(fixture.ps(), None);
}

#[test]
fn copy_up_keeps_inode_number_owner_mode_capabilities_and_attributes() {
    let fixture = Fixture::new();
    let _mounted = fixture.mount(&["--ephemeral"], "merged");
    let merged = fixture.path("merged");
    let ino = |name: &str| merged.join(name).metadata().unwrap().ino();
    // What is in use stays in memory, where the numbers are sure to last (see docs/SEMANTICS.md).
    let _in_use =
        ["large", "dir", "bin/cap"].map(|name| std::fs::File::open(merged.join(name)).unwrap());
    let before = (ino("large"), ino("dir"), ino("bin/cap"));
    sh(
        &merged,
        "chmod g+x large; echo >> bin/cap; touch dir/new; setcap cap_net_raw+ep bin/cap; chmod \
         o+r bin/cap",
    );
    assert_eq!((ino("large"), ino("dir"), ino("bin/cap")), before);
    assert_eq!(
        sh(&merged, "stat -c '%a %u:%g' dir; getcap bin/cap"),
        "2750 5:6\nbin/cap cap_net_raw=ep\n"
    );
    // A change of mode alone copies nothing, and takes nothing away either.
    assert_eq!(
        sh(
            &merged,
            "setfattr -n user.note -v kept bin/suid; stat -c %a bin/suid; getfattr --only-values \
             -n user.note bin/suid"
        ),
        "4755\nkept"
    );
}

#[test]
fn an_ephemeral_upper_has_the_given_size_and_leaves_nothing() {
    let fixture = Fixture::new();
    for size in ["--ephemeral=2000000", "--ephemeral=2M"] {
        let _mounted = fixture.mount(&[size], "merged");
        let merged = fixture.path("merged");
        sh(&merged, "echo hello > new; cat new file");
        let full = Command::new("dd")
            .args(["if=/dev/zero", "bs=1M", "count=4"])
            .arg(format!("of={}", merged.join("big").display()))
            .output()
            .unwrap();
        assert!(stderr(&full).contains("No space left"), "{}", stderr(&full));
        let row = fixture.ps().unwrap();
        assert_eq!(row["uppers"][0]["upper"], Value::Null);
        // Nothing of it is seen but the overlay.
        assert!(
            !mounts().contains("ephemeral-")
                || mounts()
                    .lines()
                    .filter(|l| l.contains("ephemeral-"))
                    .all(|l| l.contains(" overlay "))
        );
        let diff = lxcri_fs().arg("diff").arg(&merged).output().unwrap();
        assert_eq!(diff.status.code(), Some(5));
        assert!(stderr(&diff).contains("keeps nothing"), "{}", stderr(&diff));
    }
    assert!(!mounts().contains(fixture.path("merged").to_str().unwrap()));
    let left = std::fs::read_dir("/run/lxcri-fs")
        .unwrap()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with("ephemeral-"));
    assert_eq!(left.filter(|e| e.path().join("mnt").exists()).count(), 0);
}

#[test]
fn an_upper_where_overlayfs_cannot_write_is_refused_with_the_reason() {
    let fixture = Fixture::new();
    let _mounted = fixture.mount(&["--engine", "fuse"], "lower");
    let output = fixture.try_mount(&["--upper", &fixture.upper("lower/home")], "merged");
    assert!(
        stderr(&output).contains("it is on a FUSE file system"),
        "{}",
        stderr(&output)
    );
    let _overlay = fixture.mount(&["--ephemeral"], "overlay");
    let output = fixture.try_mount(&["--upper", &fixture.upper("overlay/home")], "merged");
    assert!(
        stderr(&output).contains("it is on overlayfs, where overlayfs cannot write"),
        "{}",
        stderr(&output)
    );
    let output = fixture.try_mount(
        &["--upper", &fixture.upper("file-system"), "--quota", "1G"],
        "merged",
    );
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    for map in ["0", "0:1", "0:0:0", "0:1:2,1:5:1"] {
        assert_eq!(
            fixture
                .try_mount(&["--ephemeral", "--idmap", map], "merged")
                .status
                .code(),
            Some(2),
            "{map}"
        );
    }
    assert!(!mounts().contains(fixture.path("merged").to_str().unwrap()));
}

#[test]
fn any_path_can_be_an_upper() {
    let fixture = Fixture::new();
    for name in [
        "a,b",
        r"back\slash",
        "co:lon",
        "sp ace",
        "li\nne",
        "eq=ual",
        "um\u{e4}laut",
        r"\,\:",
    ] {
        let upper = fixture.upper(name);
        {
            let _mounted = fixture.mount(&["--upper", &upper], "merged");
            std::fs::write(fixture.path("merged/new"), name).unwrap();
            assert!(fixture.ps().unwrap()["uppers"][0]["upper"].is_string());
            let diff = run(lxcri_fs().arg("diff").arg(fixture.path("merged")));
            assert_eq!(diff, "A /new\n", "{name}");
        }
        assert_eq!(
            std::fs::read_to_string(fixture.path(name).join("upper/new")).unwrap(),
            name
        );
    }
}

#[test]
fn an_idmapped_container_sees_its_own_ids_and_the_disk_has_the_hosts() {
    let fixture = Fixture::new();
    let upper = fixture.upper("upper");
    let _mounted = fixture.mount(
        &["-o", "suid", "--upper", &upper, "--idmap", "0:100000:65536"],
        "merged",
    );
    let inside = |script: &str| {
        in_user_namespace(&format!(
            "cd '{}' && {{ {script}; }}",
            fixture.path("merged").display()
        ))
    };
    assert_eq!(
        inside("id -u; stat -c '%u:%g' . home dir file"),
        "0\n0:0\n1000:1000\n5:6\n0:0\n"
    );
    inside(
        "echo new > new; chown 1:2 new; chown 1000 file; echo more >> large; mkdir d; cp bin/suid \
         d/suid; chown 3 d/suid; chmod 4755 d/suid",
    );
    assert_eq!(
        inside("stat -c '%u:%g %a' new file d/suid"),
        "1:2 644\n1000:0 644\n3:0 4755\n"
    );
    // Capabilities of the image's files are those of the container.
    assert!(inside("getcap -n bin/cap || getcap bin/cap").contains("cap_net_raw"));
    assert_eq!(inside("setpriv --reuid 4 --clear-groups d/suid -u"), "3\n");
    let disk = sh(
        &fixture.path("upper"),
        "stat -c '%u:%g' upper upper/new upper/file",
    );
    assert_eq!(disk, "100000:100000\n100001:100002\n101000:100000\n");
    // Who is not in the map has nothing to say.
    let stranger = Command::new("setpriv")
        .args(["--reuid", "0", "--clear-groups", "stat", "-c", "%u"])
        .arg(fixture.path("merged/file"))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&stranger.stdout), "101000\n");
}

#[test]
fn an_upper_in_a_user_namespace_needs_no_root() {
    let fixture = Fixture::new();
    sh(
        fixture.dir.path(),
        "mkdir merged mine; chown 1000:1000 mine; mknod -m 666 fuse c 10 229",
    );
    // Where it was built may be out of their reach, such as below /root.
    std::fs::copy(env!("CARGO_BIN_EXE_lxcri-fs"), fixture.path("program")).unwrap();
    let program = "../program";
    let script = format!(
        "mount --bind '{dir}/fuse' /dev/fuse; cd '{dir}/mine'; exec setpriv --reuid 1000 --regid \
         1000 --clear-groups env XDG_RUNTIME_DIR='{dir}/mine' unshare -rm bash -euc '
            mkdir merged; {program} mount ../image.bfc --upper upper merged; echo more >> \
         merged/file; rm merged/large; mv merged/bin/cap merged/tool
            cat merged/file; ls merged; {program} diff merged; {program} umount merged; {program} \
         ps --json; ls upper/upper'",
        dir = fixture.dir.path().display()
    );
    let found = run(Command::new("unshare").args(["-m", "bash", "-euc", &script]));
    let expected = "text\nmore\nbin\ndir\nfile\nhome\ntool\nC /bin\nD /bin/cap\nC /file\nD \
                    /large\nA /tool\nbin\nfile\nlarge\ntool\n";
    assert_eq!(found, expected);
}

#[test]
fn the_death_of_a_worker_causes_no_read_or_write_error() {
    let fixture = Fixture::new();
    let _mounted = fixture.mount(&["--upper", &fixture.upper("upper")], "merged");
    let merged = fixture.path("merged");
    let script = "for i in $(seq 60); do cat large bin/* > /dev/null; cp large copy$i; cmp large \
                  copy$i; echo $i >> file; rm copy$i; find . > /dev/null; echo 3 > \
                  /proc/sys/vm/drop_caches; done; wc -l < file";
    let mut load = Command::new("bash");
    load.args(["-euc", script])
        .current_dir(&merged)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut load = load.spawn().unwrap();
    let mut killed = 0;
    while load.try_wait().unwrap().is_none() {
        if let Some(worker) = fixture
            .ps()
            .and_then(|row| row["worker"].as_u64())
            .filter(|_| killed < 10)
        {
            run(Command::new("kill").args(["-KILL", &worker.to_string()]));
            killed += 1;
        }
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    let output = load.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "61\n");
    assert!(killed > 2);
}

#[test]
fn umount_undoes_all_mounts_of_an_upper_in_any_state() {
    let fixture = Fixture::new();
    let umount = |name: &str| {
        lxcri_fs()
            .arg("umount")
            .arg(fixture.path(name))
            .output()
            .unwrap()
    };
    // Twice.
    drop(fixture.mount(&["--upper", &fixture.upper("upper")], "merged"));
    assert!(umount("merged").status.success());
    // The upper's directory is gone.
    {
        let _mounted = fixture.mount(&["--upper", &fixture.upper("gone")], "merged");
        std::fs::remove_dir_all(fixture.path("gone")).unwrap();
    }
    // The keeper was killed.
    {
        let _mounted = fixture.mount(&["--upper", &fixture.upper("upper")], "merged");
        let row = fixture.ps().unwrap();
        for name in ["keeper", "worker"] {
            run(Command::new("kill").args(["-KILL", &row[name].to_string()]));
        }
    }
    eventually("end of the processes", || {
        fixture.ps().is_none().then_some(())
    });
    // Whoever mounted was killed half-way: what was out of sight goes when anybody asks.
    let half = Path::new("/run/lxcri-fs/lower-0-99999-1-0/mnt");
    // Another test may clear it away before anything is mounted there.
    eventually("mount", || {
        std::fs::create_dir_all(half).unwrap();
        Command::new("mount")
            .args(["-t", "tmpfs", "tmpfs"])
            .arg(half)
            .output()
            .unwrap()
            .status
            .success()
            .then_some(())
    });
    run(lxcri_fs().arg("ps"));
    assert!(!half.exists());
    assert!(!mounts().contains(fixture.path("merged").to_str().unwrap()));
    // What was written before is still there, and can be mounted again.
    let _mounted = fixture.mount(&["--upper", &fixture.upper("upper")], "merged");
}

#[test]
fn fstab_options_mount_an_upper() {
    let fixture = Fixture::new();
    let upper = fixture.upper("upper");
    {
        let _mounted = fixture.mount(
            &["-o", &format!("upper={upper},nosuid,nodev,noexec")],
            "merged",
        );
        let line = mounts()
            .lines()
            .find(|l| l.contains(fixture.path("merged").to_str().unwrap()))
            .unwrap()
            .to_owned();
        assert!(line.contains(" overlay rw,nosuid,nodev,noexec,"), "{line}");
        std::fs::write(fixture.path("merged/new"), "x").unwrap();
    }
    let _mounted = fixture.mount(&["-o", &format!("ro,upper={upper}")], "merged");
    assert!(fixture.path("merged/new").exists());
    let refused = std::fs::write(fixture.path("merged/new"), "y").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
}
