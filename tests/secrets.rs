//! The processes of a mount keep no secret where another process could find it. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::mounts::{LEAVE_OTHERS, Process, is_mounted, kill, pid, row_of, setup, wait_until};
use common::{Mounted, lxcri_fs, run};

const PASSWORD: &str = "correct horse battery staple";

/// An encrypted image of one file.
fn encrypted(dir: &Path) -> std::path::PathBuf {
    let (source, image, password) = (
        dir.join("source"),
        dir.join("secret.bfc"),
        dir.join("password"),
    );
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), "hidden").unwrap();
    std::fs::write(&password, PASSWORD).unwrap();
    let mut build = lxcri_fs();
    run(build
        .arg("build")
        .arg(format!("dir:{}", source.display()))
        .arg("-o")
        .arg(&image)
        .arg("--password-file")
        .arg(&password));
    image
}

/// Keeper and worker of an image.
fn daemons(image: &Path) -> [u64; 2] {
    let row = row_of(image);
    ["keeper", "worker"].map(|name| pid(&row, name))
}

#[track_caller]
fn check(pid: u64) {
    let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap();
    let text = |name: &str| String::from_utf8_lossy(&read(name)).into_owned();
    // What it was started with.
    let environment = text("environ");
    let names: Vec<&str> = environment
        .split('\0')
        .filter_map(|v| v.split('=').next())
        .filter(|n| !n.is_empty())
        .collect();
    let allowed = ["PATH", "TMPDIR", "XDG_RUNTIME_DIR", "LXCRI_FS_LOG"];
    assert!(names.iter().all(|name| allowed.contains(name)), "{names:?}");
    assert!(!text("cmdline").contains(PASSWORD));
    // No dump of it is made, and who made one would not find the key's page in it, nor in the swap.
    assert!(
        text("limits").lines().any(
            |l| l.starts_with("Max core file size") && l.split_whitespace().nth(4) == Some("0")
        ),
        "{}",
        text("limits")
    );
    let smaps = text("smaps");
    let flags = smaps.lines().filter_map(|l| l.strip_prefix("VmFlags: "));
    assert!(
        flags
            .into_iter()
            .any(|flags| flags.contains(" lo ") && flags.contains(" dd ")),
        "{smaps}"
    );
}

#[test]
fn keeper_and_worker_keep_no_environment_and_lock_the_key() {
    let (temp, _, [dir]) = setup();
    let image = encrypted(temp.path());
    run(lxcri_fs()
        .env("LXCRI_FS_PASSWORD", PASSWORD)
        .env("AWS_SECRET_ACCESS_KEY", "x")
        .arg("mount")
        .arg(&image)
        .arg(&dir));
    let mounted = Mounted(dir.clone());
    let both = daemons(&image);
    both.into_iter().for_each(check);
    // The next worker is as the first.
    kill("KILL", both[1]);
    assert_eq!(std::fs::read_to_string(dir.join("file")).unwrap(), "hidden");
    daemons(&image).into_iter().for_each(check);
    drop(mounted);
}

#[test]
fn a_foreground_mount_keeps_no_environment_and_no_descriptor() {
    let (temp, _, [dir]) = setup();
    let image = encrypted(temp.path());
    let script = r#"exec 9</etc/shadow; exec "$0" mount --foreground "$1" "$2""#;
    let mut command = Command::new("sh");
    command
        .args(["-c", script, env!("CARGO_BIN_EXE_lxcri-fs")])
        .arg(&image)
        .arg(&dir);
    command
        .env("LXCRI_FS_PASSWORD", PASSWORD)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let mut process = Process(command.spawn().unwrap());
    wait_until("the mount", || is_mounted(&dir));
    assert_eq!(std::fs::read_to_string(dir.join("file")).unwrap(), "hidden");
    let [keeper, worker] = daemons(&image);
    // It is the process that was started.
    assert_eq!(keeper, u64::from(process.0.id()));
    for pid in [keeper, worker] {
        check(pid);
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .flatten();
        let links: Vec<_> = fds
            .filter_map(|fd| std::fs::read_link(fd.path()).ok())
            .collect();
        assert!(
            !links.iter().any(|link| link == Path::new("/etc/shadow")),
            "{links:?}"
        );
    }
    run(lxcri_fs().arg("umount").arg(&dir));
    assert!(process.0.wait().unwrap().success());
}

#[test]
fn a_failing_foreground_mount_says_why() {
    let (temp, _, [dir]) = setup();
    let image = encrypted(temp.path());
    let output = lxcri_fs()
        .args(["mount", "--foreground"])
        .arg(&image)
        .arg(&dir)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", common::stderr(&output));
    let plain = lxcri_fs()
        .arg("mount")
        .arg(&image)
        .arg(&dir)
        .output()
        .unwrap();
    assert_eq!(common::stderr(&output), common::stderr(&plain));
}

#[test]
fn the_same_user_cannot_look_into_keeper_and_worker() {
    let (temp, image, _) = setup::<1>();
    std::fs::set_permissions(temp.path(), PermissionsExt::from_mode(0o755)).unwrap();
    assert!(image.exists());
    std::fs::copy(env!("CARGO_BIN_EXE_lxcri-fs"), temp.path().join("lxcri-fs")).unwrap();
    // Their files in /proc are root's, so their user can neither read their memory nor trace them.
    let script = r#"
        cd "$1"
        mknod fuse c 10 229 && chmod 666 fuse && mount --bind fuse /dev/fuse
        chown nobody mnt0 .
        as() {
            setpriv --reuid=nobody --regid=nogroup --clear-groups \
                env -i PATH="$PATH" TMPDIR=/tmp "$@"
        }
        as ./lxcri-fs mount --log-file log image.bfc mnt0
        # On a busy machine neither may have answered yet.
        both() {
            for i in $(seq 100); do
                processes=$(as ./lxcri-fs ps --json | grep -oE '"(keeper|worker)":[0-9]+' | sort)
                pids=$(echo $(echo "$processes" | cut -d: -f2))
                [ "$(echo $pids | wc -w)" != 2 ] || return 0
                sleep 0.1
            done
            return 1
        }
        both
        for pid in $pids; do
            stat -c '%U' /proc/$pid/mem
            ! as cat /proc/$pid/environ
        done > owners 2> refused
        as ./lxcri-fs upgrade
        both
        kill -9 ${pids##* }
        as cat mnt0/tree/text.txt > text
        as ./lxcri-fs umount mnt0
    "#;
    run(Command::new("unshare")
        .args(["--mount", "sh", "-ec"])
        .args([&format!("{LEAVE_OTHERS}{script}"), "sh"])
        .arg(temp.path()));
    let read = |name: &str| std::fs::read_to_string(temp.path().join(name)).unwrap();
    assert_eq!(read("owners"), "root\nroot\n", "{}", read("refused"));
    assert_eq!(read("refused").matches("Permission denied").count(), 2);
    assert!(!read("text").is_empty());
}
