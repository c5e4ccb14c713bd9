//! Mounts as their users see them: shared, and unmounted only when idle.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::mounts::{
    LEAVE_OTHERS, Process, is_alive, is_mounted, kill, pid, ps, row_of, setup, wait_until,
    within_a_minute,
};
use crate::common::{Mounted, golden, lxcri_fs, run, stats, stderr, tree};

#[test]
fn a_second_mount_of_an_image_shares_the_first() {
    let (temp, image, [a, b]) = setup();
    let link = temp.path().join("other name.bfc");
    std::os::unix::fs::symlink(&image, &link).unwrap();
    let first = Mounted::new(&[image.to_str().unwrap()], &a);
    let second = Mounted::new(&[link.to_str().unwrap()], &b);
    assert_eq!(a.metadata().unwrap().dev(), b.metadata().unwrap().dev());
    let row = row_of(&image);
    assert_eq!(row["mountpoints"].as_array().unwrap().len(), 2);
    // What was read through one is in the page cache for the other.
    let reads = || stats(&a)["served_bytes"].as_u64().unwrap();
    // Other tests drop the caches now and then: once in a few times nobody does.
    let mut served = Vec::new();
    let shared = (0..10).any(|_| {
        let through_first = tree(&a);
        let before = reads();
        assert_eq!(tree(&b), through_first);
        served.push((before, reads()));
        before > 100_000 && reads() < before + 40_000
    });
    assert!(shared, "{served:?}");
    drop(first);
    assert!(b.join("tree/text.txt").exists());
    assert_eq!(pid(&row_of(&image), "keeper"), pid(&row, "keeper"));
    drop(second);
    // The unmounting command has waited for them.
    assert!(!is_alive(pid(&row, "keeper")) && !is_alive(pid(&row, "worker")));
    assert_eq!(ps(&image), None);
}

#[test]
fn other_options_or_other_content_make_another_mount() {
    let (_temp, image, [a, b, c]) = setup();
    let _a = Mounted::new(&[image.to_str().unwrap()], &a);
    let _b = Mounted::new(&["--subdir", "tree", image.to_str().unwrap()], &b);
    assert!(b.join("text.txt").exists());
    std::fs::copy(golden("plain.bfc"), &image).unwrap();
    let _c = Mounted::new(&[image.to_str().unwrap()], &c);
    let devices: std::collections::HashSet<u64> =
        [&a, &b, &c].map(|d| d.metadata().unwrap().dev()).into();
    assert_eq!(devices.len(), 3);
}

#[test]
fn a_hundred_mounts_and_unmounts_at_once_leave_a_consistent_state() {
    let (temp, image, []) = setup();
    let dirs: Vec<PathBuf> = (0..100)
        .map(|i| temp.path().join(format!("dir{i}")))
        .collect();
    std::thread::scope(|scope| {
        for dir in &dirs {
            let image = &image;
            scope.spawn(move || {
                std::fs::create_dir(dir).unwrap();
                let _mounted = Mounted::new(&[image.to_str().unwrap()], dir);
                assert!(dir.join("tree/bin/tool").exists(), "{}", dir.display());
            });
        }
    });
    assert!(!dirs.iter().any(|d| is_mounted(d)));
    wait_until("the end of the keeper", || ps(&image).is_none());
}

#[test]
fn one_of_many_mounts_on_one_directory_succeeds() {
    let (_temp, image, [dir]) = setup();
    let done: Vec<bool> = std::thread::scope(|scope| {
        let mounting: Vec<_> = (0..16)
            .map(|_| {
                scope.spawn(|| {
                    lxcri_fs()
                        .arg("mount")
                        .arg(&image)
                        .arg(&dir)
                        .output()
                        .unwrap()
                        .status
                        .success()
                })
            })
            .collect();
        mounting.into_iter().map(|m| m.join().unwrap()).collect()
    });
    assert_eq!(done.iter().filter(|d| **d).count(), 1);
    drop(Mounted(dir.clone()));
    assert!(!is_mounted(&dir));
}

#[test]
fn umount_of_a_busy_mount_names_its_users() {
    let (_temp, image, [dir]) = setup();
    let _mounted = Mounted::new(&[image.to_str().unwrap()], &dir);
    let user = Process(
        Command::new("sleep")
            .arg("60")
            .current_dir(dir.join("tree"))
            .spawn()
            .unwrap(),
    );
    let output = lxcri_fs().arg("umount").arg(&dir).output().unwrap();
    assert_eq!(output.status.code(), Some(6));
    let message = stderr(&output);
    assert!(
        message.contains(&format!("sleep ({}: working directory)", user.0.id())),
        "{message}"
    );
    assert!(dir.join("tree").exists());
    run(lxcri_fs().args(["umount", "--lazy"]).arg(&dir));
    assert!(!is_mounted(&dir));
    // Its user still has it.
    assert!(Path::new(&format!("/proc/{}/cwd/text.txt", user.0.id())).exists());
}

#[test]
fn umount_of_nothing_succeeds() {
    let (_temp, image, [dir]) = setup();
    drop(Mounted::new(&[image.to_str().unwrap()], &dir));
    run(lxcri_fs().arg("umount").arg(&dir));
    run(lxcri_fs().args(["umount", "/nowhere/at/all"]));
}

#[test]
fn umount_leaves_foreign_mounts_alone() {
    let (_temp, _image, [dir]) = setup();
    run(Command::new("mount")
        .args(["-t", "tmpfs", "none"])
        .arg(&dir));
    let output = lxcri_fs().arg("umount").arg(&dir).output().unwrap();
    let mounted = is_mounted(&dir);
    run(Command::new("umount").arg(&dir));
    assert!(!output.status.success() && mounted);
    assert!(stderr(&output).contains("tmpfs"));
}

#[test]
fn a_keeper_asked_to_end_unmounts_only_when_idle() {
    let (_temp, image, [a, b]) = setup();
    let _a = Mounted::new(&[image.to_str().unwrap()], &a);
    let _b = Mounted::new(&[image.to_str().unwrap()], &b);
    let keeper = pid(&row_of(&image), "keeper");
    let user = Process(
        Command::new("sleep")
            .arg("60")
            .current_dir(&a)
            .spawn()
            .unwrap(),
    );
    kill("TERM", keeper);
    std::thread::sleep(Duration::from_millis(300));
    assert!(is_mounted(&a) && is_mounted(&b) && is_alive(keeper));
    drop(user);
    kill("TERM", keeper);
    wait_until("the end of the keeper", || !is_alive(keeper));
    assert!(!is_mounted(&a) && !is_mounted(&b));
}

#[test]
fn a_check_of_mounts_keeps_none_of_them_busy() {
    let (_temp, image, [dir]) = setup();
    let done = AtomicBool::new(false);
    let stayed = std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    run(lxcri_fs().arg("ps"));
                }
            });
        }
        let stayed = (0..15).find(|_| {
            let _mounted = Mounted::new(&[image.to_str().unwrap()], &dir);
            let keeper = pid(&row_of(&image), "keeper");
            kill("TERM", keeper);
            !within_a_minute(|| !is_alive(keeper))
        });
        done.store(true, Ordering::Relaxed);
        stayed
    });
    assert_eq!(stayed, None);
}

#[test]
fn a_plain_umount_ends_keeper_and_worker() {
    let (_temp, image, [dir]) = setup();
    let mounted = Mounted::new(&[image.to_str().unwrap()], &dir);
    let row = row_of(&image);
    // Others may look at it just now.
    wait_until("unmounting", || {
        let umount = Command::new("umount").arg(&dir).output();
        umount.unwrap().status.success()
    });
    wait_until("the end of the keeper", || {
        !is_alive(pid(&row, "keeper")) && !is_alive(pid(&row, "worker"))
    });
    drop(mounted);
}

#[test]
fn mount_options_are_honoured() {
    let (_temp, image, [a, b, c]) = setup();
    let _a = Mounted::new(&[image.to_str().unwrap()], &a);
    let _b = Mounted::new(
        &[
            "-o",
            "suid,dev,noexec,rw,noauto,x-whatever",
            image.to_str().unwrap(),
        ],
        &b,
    );
    let _c = Mounted::new(
        &["-o", "suid,dev", "--ephemeral", image.to_str().unwrap()],
        &c,
    );
    let options = |dir: &Path| {
        run(Command::new("findmnt")
            .args(["-no", "VFS-OPTIONS"])
            .arg(dir))
        .trim()
        .to_owned()
    };
    assert_eq!(options(&a), "ro,nosuid,nodev,relatime");
    assert_eq!(options(&b), "ro,noexec,relatime");
    assert_eq!(options(&c), "rw,relatime");
    let output = lxcri_fs()
        .args(["mount", "-o", "subdri=x"])
        .arg(&image)
        .arg(&a)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn an_image_mount_refuses_every_write() {
    let (_temp, image, [dir]) = setup();
    let _mounted = Mounted::new(&[image.to_str().unwrap()], &dir);
    let file = dir.join("tree/text.txt");
    let results = [
        std::fs::write(dir.join("new"), "x"),
        std::fs::write(&file, "x"),
        std::fs::remove_file(&file),
        std::fs::create_dir(dir.join("new")),
        std::fs::remove_dir(dir.join("tree/emptydir")),
        std::fs::rename(&file, dir.join("tree/other")),
        std::fs::hard_link(&file, dir.join("tree/other")),
        std::os::unix::fs::symlink("x", dir.join("new")),
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o777)),
    ];
    for result in results {
        assert_eq!(
            result.unwrap_err().kind(),
            std::io::ErrorKind::ReadOnlyFilesystem
        );
    }
}

#[test]
fn mount_8_and_fstab_mount_images() {
    let (_temp, image, [dir]) = setup();
    let mut helper = lxcri_fs();
    run(helper
        .arg0("/sbin/mount.fuse.lxcri-fs")
        .arg(&image)
        .arg(&dir)
        .args(["-s", "-o", "rw,subdir=tree,_netdev"]));
    let mounted = Mounted(dir.clone());
    assert!(dir.join("text.txt").exists());
    drop(mounted);
    // As mount.fuse calls it.
    run(lxcri_fs().arg(&image).arg(&dir).args(["-o", "ro,nodev"]));
    drop(Mounted(dir));
}

/// mount(8) starts its helper, which it finds in /sbin.
#[test]
fn mount_8_remounts_pretends_and_passes_sizes() {
    let (temp, image, [dir]) = setup();
    let script = r#"
        mkdir "$1/t"; mount -t tmpfs t "$1/t"; mkdir "$1/t/u" "$1/t/w"; sbin=$(realpath /sbin)
        mount -t overlay o -o "lowerdir=$sbin,upperdir=$1/t/u,workdir=$1/t/w" "$sbin"
        ln -s "$0" "$sbin/mount.fuse.lxcri-fs"
        options() { findmnt -no VFS-OPTIONS "$3"; }
        mount -f -t fuse.lxcri-fs "$2" "$3"; ! mountpoint -q "$3"
        ! mount -o remount,noexec "$3" 2>/dev/null
        mount -t fuse.lxcri-fs "$2" "$3"
        mount -o remount,ro "$3"; options "$@" | grep -q ro,nosuid,nodev
        mount -o remount,suid,noexec "$3"; options "$@" | grep -q ro,nodev,noexec
        ! touch "$3/new" 2>/dev/null; mount -f -o remount,exec "$3"
        options "$@" | grep -q noexec; umount "$3"
        mount -t fuse.lxcri-fs -o ephemeral=1048576 "$2" "$3"; touch "$3/new"
        ! head -c 2M /dev/zero > "$3/large" 2>/dev/null; umount "$3"
    "#;
    run(Command::new("unshare")
        .args(["--mount", "sh", "-ec"])
        .args([
            &format!("{LEAVE_OTHERS}{script}"),
            env!("CARGO_BIN_EXE_lxcri-fs"),
        ])
        .args([temp.path(), &image, &dir]));
}

#[test]
fn a_foreground_mount_serves_until_it_is_interrupted() {
    let (_temp, image, [dir]) = setup();
    let mut command = lxcri_fs();
    command
        .args(["mount", "--foreground"])
        .arg(&image)
        .arg(&dir)
        .stderr(Stdio::null());
    let mut process = Process(command.spawn().unwrap());
    wait_until("the mount", || is_mounted(&dir));
    assert!(dir.join("tree/text.txt").exists());
    assert!(ps(&image).is_some());
    kill("INT", process.0.id().into());
    assert!(process.0.wait().unwrap().success());
    assert!(!is_mounted(&dir));
}

#[test]
fn a_user_who_is_not_root_mounts_and_unmounts() {
    let (temp, image, [dir]) = setup();
    std::fs::set_permissions(temp.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let program = temp.path().join("lxcri-fs");
    std::fs::copy(env!("CARGO_BIN_EXE_lxcri-fs"), &program).unwrap();
    // In a namespace of its own, because /dev/fuse is not open to everybody everywhere.
    let script = r#"
        set -e
        cd "$1"
        mknod fuse c 10 229 && chmod 666 fuse && mount --bind fuse /dev/fuse
        chown nobody mnt0 .
        as() {
            setpriv --reuid=nobody --regid=nogroup --clear-groups \
                env -i PATH="$PATH" TMPDIR=/tmp "$@"
        }
        as ./lxcri-fs mount --log-file log image.bfc mnt0
        # Nobody has another process, and its keeper may not look at those of others.
        sleep 2.5
        findmnt mnt0 > there
        as cat mnt0/tree/text.txt > text
        findmnt -no VFS-OPTIONS mnt0 > options
        as ./lxcri-fs ps > ps
        kill -9 "$(as ./lxcri-fs ps --json | sed 's/.*"worker":\([0-9]*\).*/\1/')"
        as cat mnt0/tree/a/b.txt > /dev/null
        as ./lxcri-fs umount mnt0
        ! findmnt mnt0
    "#;
    run(Command::new("unshare")
        .args(["--mount", "sh", "-c"])
        .args([&format!("{LEAVE_OTHERS}{script}"), "sh"])
        .arg(temp.path()));
    let read = |name: &str| std::fs::read_to_string(temp.path().join(name)).unwrap();
    assert!(read("options").contains("ro,nosuid,nodev"));
    assert!(read("ps").contains("mnt0"), "{}", read("ps"));
    assert!(!read("text").is_empty() && image.exists() && dir.exists());
}

#[test]
fn a_failed_mount_leaves_nothing_behind() {
    let (temp, image, [dir]) = setup();
    let bytes = std::fs::read(&image).unwrap();
    std::fs::write(&image, &bytes[..bytes.len() - 60]).unwrap();
    let output = lxcri_fs()
        .arg("mount")
        .arg(&image)
        .arg(&dir)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("cut off"), "{}", stderr(&output));
    assert!(!is_mounted(&dir) && ps(&image).is_none());
    let output = lxcri_fs()
        .arg("mount")
        .arg(golden("password.bfc"))
        .arg(&dir)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    let output = lxcri_fs()
        .arg("mount")
        .arg(&image)
        .arg(temp.path().join("nowhere"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
}

#[test]
fn stats_count_the_requests() {
    // EROFS asks for bytes only, and for those of several files at once.
    for (engine, least, op) in [("fuse", 10, "readdirplus"), ("split", 1, "read")] {
        stats_count_with(engine, least, op);
    }
}

fn stats_count_with(engine: &str, least: u64, op: &str) {
    let (_temp, image, [dir]) = setup();
    let _mounted = Mounted::new(&["--engine", engine, image.to_str().unwrap()], &dir);
    let bytes: u64 = tree(&dir)
        .values()
        .filter_map(|e| e.size.filter(|_| e.mode & 0o170_000 == 0o100_000))
        .sum();
    let stats = stats(&dir);
    assert!(stats["served_bytes"].as_u64().unwrap() >= bytes, "{stats}");
    assert_eq!(stats["damaged"], 0);
    let read = stats["requests"]
        .as_array()
        .unwrap()
        .iter()
        .find(|r| r["op"] == "read")
        .unwrap();
    assert!(
        read["count"].as_u64().unwrap() > least && read["p50"].as_u64() <= read["p99"].as_u64(),
        "{read}"
    );
    let text = run(lxcri_fs().args(["stats", "--prometheus"]));
    let label = format!(
        "lxcri_fs_worker_restarts_total{{image=\"{}\"",
        image.display()
    );
    assert!(text.lines().any(|l| l.starts_with(&label)), "{text}");
    assert!(run(lxcri_fs().arg("stats").arg(&dir)).contains(op));
}

#[test]
fn two_hundred_images_are_mounted_at_once() {
    let temp = tempfile::tempdir().unwrap();
    let numbers: Vec<usize> = (0..200).collect();
    let dirs: Vec<PathBuf> = numbers
        .iter()
        .map(|n| temp.path().join(format!("mnt{n}")))
        .collect();
    std::thread::scope(|scope| {
        for (part, dirs) in numbers.chunks(25).zip(dirs.chunks(25)) {
            let temp = temp.path();
            scope.spawn(move || {
                for (n, dir) in part.iter().zip(dirs) {
                    let image = temp.join(format!("image{n}.bfc"));
                    std::fs::copy(golden("block8192.bfc"), &image).unwrap();
                    std::fs::create_dir(dir).unwrap();
                    run(lxcri_fs().arg("mount").arg(&image).arg(dir));
                }
            });
        }
    });
    let mounted: Vec<Mounted> = dirs.iter().cloned().map(Mounted).collect();
    assert!(dirs.iter().all(|d| d.join("bin/tool").exists()));
    drop(mounted);
    assert!(!dirs.iter().any(|d| is_mounted(d)));
}

#[test]
fn mount_namespaces_share_a_mount_and_none_holds_the_keeper() {
    let (temp, image, [a, b]) = setup();
    let first = Mounted::new(&[image.to_str().unwrap()], &a);
    let row = row_of(&image);
    let namespace = |pid: u64| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    // A namespace in which the image is mounted, and which lives on without the command that
    // mounted it.
    let script = r#"
        "$0" mount "$1" "$2" && stat -c %d "$2" && touch "$3/ready" &&
            while [ ! -e "$3/done" ]; do sleep 0.05; done
        "$0" umount "$2""#;
    let script = format!("{LEAVE_OTHERS}{script}");
    let elsewhere = |temp: &Path, dir: &Path| {
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "sh",
                "-c",
                &script,
                env!("CARGO_BIN_EXE_lxcri-fs"),
            ])
            .arg(&image)
            .arg(dir)
            .arg(temp);
        Process(command.stdout(Stdio::piped()).spawn().unwrap())
    };
    let mut other = elsewhere(temp.path(), &b);
    wait_until("mounting elsewhere", || temp.path().join("ready").exists());
    assert!(!is_mounted(&b));
    assert_eq!(pid(&row_of(&image), "keeper"), pid(&row, "keeper"));
    // It stays for the other namespace, and can be shared again.
    drop(first);
    std::thread::sleep(Duration::from_millis(1500));
    let second = Mounted::new(&[image.to_str().unwrap()], &a);
    assert_eq!(pid(&row_of(&image), "keeper"), pid(&row, "keeper"));
    drop(second);
    File::create(temp.path().join("done")).unwrap();
    assert!(other.0.wait().unwrap().success());
    wait_until("the end of the keeper", || !is_alive(pid(&row, "keeper")));
    // One that is first mounted in another namespace does not keep that alive.
    for name in ["ready", "done"] {
        std::fs::remove_file(temp.path().join(name)).unwrap();
    }
    let mut other = elsewhere(temp.path(), &b);
    wait_until("mounting elsewhere", || temp.path().join("ready").exists());
    let keeper = pid(&row_of(&image), "keeper");
    // Where we may not enter the first process's namespace, the keeper has to stay.
    if namespace(1).is_some() {
        assert_eq!(namespace(keeper), namespace(1));
        assert_ne!(namespace(keeper), namespace(other.0.id().into()));
    }
    File::create(temp.path().join("done")).unwrap();
    assert!(other.0.wait().unwrap().success());
    wait_until("the end of the keeper", || !is_alive(keeper));
}
