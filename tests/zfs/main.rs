//! Containers that write to ZFS: uppers on datasets, their snapshots and clones.
//!
//! Needs a pool, named by `LXCRI_FS_TEST_POOL`: `tests/zfs/run` makes one in a VM.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod snapshots;

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{PoisonError, RwLock};

use common::zfs::{Scratch, directory, pool, property, zfs};
use common::{
    Mounted, assert_same_tree, build_image, hard_links_part, lxcri_fs, run, stderr, tree, within,
};

/// An image of a small tree, with attributes that copy-up may lose.
fn image(dir: &Path) -> PathBuf {
    let source = dir.join("source");
    for path in ["etc", "usr/bin", "data/deep"] {
        std::fs::create_dir_all(source.join(path)).unwrap();
    }
    std::fs::write(source.join("etc/hostname"), "image\n").unwrap();
    std::fs::write(source.join("etc/removed"), "removed\n").unwrap();
    std::fs::write(source.join("data/one"), vec![b'1'; 300_000]).unwrap();
    std::fs::hard_link(source.join("data/one"), source.join("data/two")).unwrap();
    std::fs::write(source.join("data/deep/file"), "deep\n").unwrap();
    std::fs::write(source.join("usr/bin/ping"), "#!/bin/true\n").unwrap();
    std::fs::set_permissions(
        source.join("usr/bin/ping"),
        PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    run(Command::new("setcap")
        .args(["cap_net_raw+ep"])
        .arg(source.join("usr/bin/ping")));
    std::fs::write(source.join("usr/bin/su"), "su\n").unwrap();
    std::fs::set_permissions(source.join("usr/bin/su"), PermissionsExt::from_mode(0o4755)).unwrap();
    std::fs::write(source.join("etc/acl"), "acl\n").unwrap();
    run(Command::new("setfacl")
        .args(["-m", "u:1234:rw"])
        .arg(source.join("etc/acl")));
    let image = dir.join("image.bfc");
    build_image(&source, &image);
    image
}

/// A test's dataset, its directory with an image, and a place to mount on.
struct Setup {
    scratch: Scratch,
    image: PathBuf,
    dir: tempfile::TempDir,
    _turn: Box<dyn std::any::Any>,
}

/// A new mount namespace has the mounts of all tests in it, and keeps them busy: who makes one is
/// alone.
static TURN: RwLock<()> = RwLock::new(());

impl Setup {
    fn new() -> Option<Self> {
        Self::with(Box::new(
            TURN.read().unwrap_or_else(PoisonError::into_inner),
        ))
    }

    fn alone() -> Option<Self> {
        Self::with(Box::new(
            TURN.write().unwrap_or_else(PoisonError::into_inner),
        ))
    }

    fn with(turn: Box<dyn std::any::Any>) -> Option<Self> {
        let scratch = Scratch::new()?;
        let dir = tempfile::tempdir().unwrap();
        Some(Self {
            scratch,
            image: image(dir.path()),
            dir,
            _turn: turn,
        })
    }

    fn directory(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// The image mounted on the directory `name`, with an upper on the dataset `name`.
    #[track_caller]
    fn mount(&self, name: &str, options: &[&str]) -> Mounted {
        let upper = self.upper(name);
        let mut args = vec!["--upper", &upper];
        args.extend(options);
        args.push(self.image.to_str().unwrap());
        Mounted::new(&args, &self.directory(name))
    }

    fn upper(&self, name: &str) -> String {
        format!("zfs:{}", self.scratch.child(name))
    }
}

/// The output of a command that has to fail, with this exit code.
#[track_caller]
fn fails(code: i32, command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(code),
        "{command:?}: {}",
        stderr(&output)
    );
    output
}

/// Changes a tree in most of the ways that exist.
fn change(root: &Path) {
    std::fs::write(root.join("etc/hostname"), "container\n").unwrap();
    std::fs::remove_file(root.join("etc/removed")).unwrap();
    std::fs::create_dir(root.join("new")).unwrap();
    std::fs::write(root.join("new/file"), "new\n").unwrap();
    std::fs::rename(root.join("data/deep"), root.join("data/renamed")).unwrap();
    let mut two = std::fs::OpenOptions::new()
        .append(true)
        .open(root.join("data/two"))
        .unwrap();
    two.write_all(b"more").unwrap();
    chown(root.join("usr/bin/su"), Some(0), Some(50)).unwrap();
    std::fs::set_permissions(root.join("usr/bin/su"), PermissionsExt::from_mode(0o4755)).unwrap();
    std::fs::write(root.join("etc/acl"), "written\n").unwrap();
    filetime(&root.join("usr/bin/ping"));
}

/// Copies a file up by giving it another time.
fn filetime(path: &Path) {
    std::fs::File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH)
        .unwrap();
}

#[test]
fn zfs_an_upper_is_created_and_keeps_what_is_written() {
    let Some(setup) = Setup::new() else { return };
    let before = std::fs::read(&setup.image).unwrap();
    let mounted = setup.mount("web", &[]);
    let root = &mounted.0;
    let inode = root.join("data/one").metadata().unwrap().ino();
    change(root);
    // After copying up, hard links are still one file, unless the kernel parts them.
    let other = if hard_links_part() { 300_000 } else { 300_004 };
    assert_eq!(std::fs::read(root.join("data/one")).unwrap().len(), other);
    assert_eq!(root.join("data/one").metadata().unwrap().ino(), inode);
    assert!(run(Command::new("getcap").arg(root.join("usr/bin/ping"))).contains("cap_net_raw"));
    assert!(
        run(Command::new("getfacl").arg("-cp").arg(root.join("etc/acl"))).contains("user:1234:rw-")
    );
    assert_eq!(
        root.join("usr/bin/su").metadata().unwrap().mode() & 0o7777,
        0o4755
    );
    let written = tree(root);
    drop(mounted);

    let dataset = setup.scratch.child("web");
    for (name, value) in [("xattr", "sa"), ("acltype", "posix"), ("dnodesize", "auto")] {
        let found = property(&dataset, name);
        // `sa` is the default, and called `on`, from OpenZFS 2.3.
        assert!(
            found == value || (name == "xattr" && found == "on"),
            "{name}={found}"
        );
    }
    assert_eq!(
        directory(&dataset).metadata().unwrap().mode() & 0o777,
        0o700
    );
    let mounted = setup.mount("web", &[]);
    assert_same_tree(&written, &tree(&mounted.0));
    assert!(
        before == std::fs::read(&setup.image).unwrap(),
        "the image is not touched"
    );
}

#[test]
fn zfs_ids_are_shifted_on_disk_only() {
    let Some(setup) = Setup::new() else { return };
    let mounted = setup.mount("web", &["--idmap", "0:100000:65536"]);
    let hostname = mounted.0.join("etc/hostname");
    assert_eq!(hostname.metadata().unwrap().uid(), 100_000);
    std::fs::write(&hostname, "container\n").unwrap();
    chown(&hostname, Some(100_033), Some(100_033)).unwrap();
    assert_eq!(hostname.metadata().unwrap().uid(), 100_033);
    let upper = directory(&setup.scratch.child("web")).join("upper/etc/hostname");
    assert_eq!(upper.metadata().unwrap().uid(), 100_033);
}

#[test]
fn zfs_a_full_quota_loses_nothing() {
    let Some(setup) = Setup::new() else { return };
    let mounted = setup.mount("web", &["--quota", "4M", "--reservation", "1M"]);
    let dataset = setup.scratch.child("web");
    assert_eq!(
        (
            property(&dataset, "refquota").as_str(),
            property(&dataset, "refreservation").as_str()
        ),
        ("4194304", "1048576")
    );
    std::fs::write(mounted.0.join("kept"), "kept").unwrap();
    // Not compressible. What is not on disk yet is not counted.
    let mut random = vec![0; 1 << 20];
    std::fs::File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut random)
        .unwrap();
    let mut file = std::fs::File::create(mounted.0.join("large")).unwrap();
    let error = (0..64)
        .find_map(|_| file.write_all(&random).and_then(|()| file.sync_all()).err())
        .unwrap();
    assert!(
        matches!(error.raw_os_error(), Some(libc::EDQUOT | libc::ENOSPC)),
        "{error}"
    );
    drop(file);
    assert_eq!(
        std::fs::read_to_string(mounted.0.join("kept")).unwrap(),
        "kept"
    );
    assert_eq!(
        std::fs::read_to_string(mounted.0.join("etc/hostname")).unwrap(),
        "image\n"
    );
    std::fs::remove_file(mounted.0.join("large")).unwrap();
    zfs(&["set", "refquota=none", &dataset]);
    std::fs::write(mounted.0.join("etc/hostname"), "again\n").unwrap();
}

#[test]
fn zfs_umount_works_twice_and_without_the_dataset() {
    let Some(setup) = Setup::new() else { return };
    let mounted = setup.mount("web", &[]);
    std::fs::write(mounted.0.join("file"), "x").unwrap();
    let dataset = setup.scratch.child("web");
    // It is not destroyed, since the overlay has it, but out of sight from then on.
    fails(1, Command::new("zfs").args(["destroy", &dataset]));
    assert_eq!(property(&dataset, "mounted"), "no");
    assert_eq!(
        std::fs::read_to_string(mounted.0.join("file")).unwrap(),
        "x"
    );
    run(lxcri_fs().arg("umount").arg(&mounted.0));
    zfs(&["destroy", &dataset]);
    run(lxcri_fs().arg("umount").arg(&mounted.0));
    let again = setup.mount("web", &[]);
    assert!(!again.0.join("file").exists());
}

#[test]
fn zfs_a_dataset_that_cannot_be_an_upper_is_refused_with_the_reason() {
    let Some(setup) = Setup::new() else { return };
    let dir = setup.directory("mnt");
    let mount = |upper: &str| {
        let mut command = lxcri_fs();
        command
            .args(["mount", "--upper", upper])
            .arg(&setup.image)
            .arg(&dir);
        command
    };
    fails(2, &mut mount("zfs:-x"));
    fails(2, &mut mount("zfs:tank/../x"));
    fails(5, &mut mount("zfs:no-such-pool/web"));
    fails(5, &mut mount(&setup.upper("no/such/parent")));
    let plain = setup.scratch.child("plain");
    zfs(&["create", "-o", "acltype=off", &plain]);
    let output = fails(1, &mut mount(&setup.upper("plain")));
    assert!(
        stderr(&output).contains(&format!("zfs set acltype=posixacl {plain}")),
        "{}",
        stderr(&output)
    );
    zfs(&["set", "acltype=posixacl", "mountpoint=legacy", &plain]);
    assert!(stderr(&fails(1, &mut mount(&setup.upper("plain")))).contains("legacy"));
    assert!(
        stderr(&fails(
            2,
            lxcri_fs()
                .args(["mount", "--quota", "1G", "--upper", "/tmp/x"])
                .arg(&setup.image)
                .arg(&dir)
        ))
        .contains("dataset")
    );
    zfs(&[
        "create",
        "-o",
        "casesensitivity=insensitive",
        &setup.scratch.child("dos"),
    ]);
    assert!(stderr(&fails(1, &mut mount(&setup.upper("dos")))).contains("casesensitivity"));
    // An unmounted one is mounted.
    zfs(&["set", "mountpoint=/mnt/zfs-test", &plain]);
    zfs(&["unmount", &plain]);
    let _mounted = Mounted::new(
        &[
            "--upper",
            &setup.upper("plain"),
            setup.image.to_str().unwrap(),
        ],
        &dir,
    );
    assert_eq!(property(&plain, "mounted"), "yes");
}

#[test]
fn zfs_a_mounted_upper_is_committed_from_a_snapshot() {
    let Some(setup) = Setup::new() else { return };
    let mounted = setup.mount("web", &[]);
    change(&mounted.0);
    // A program that has a file open for writing does not hinder it.
    let mut file = std::fs::File::create(mounted.0.join("open")).unwrap();
    file.write_all(b"written").unwrap();
    let then = within(&mounted.0);
    let new = setup.dir.path().join("new.bfc");
    run(lxcri_fs()
        .args(["commit", &setup.upper("web")])
        .arg(&setup.image)
        .arg("-o")
        .arg(&new));
    drop(file);
    assert_eq!(
        run(lxcri_fs().args(["snapshots", "--json", &setup.upper("web")])),
        "",
        "its own snapshot is gone"
    );
    run(lxcri_fs().arg("verify").arg(&new));
    let dir = setup.directory("new");
    let committed = Mounted::new(&[new.to_str().unwrap()], &dir);
    assert_same_tree(&then, &within(&committed.0));
}

#[test]
fn zfs_send_and_receive_move_an_upper_to_another_pool() {
    let Some(setup) = Setup::new() else { return };
    let mounted = setup.mount("web", &[]);
    change(&mounted.0);
    let then = tree(&mounted.0);
    run(lxcri_fs().args(["snapshot", &format!("{}@sent", setup.upper("web"))]));
    drop(mounted);
    let stream = setup.dir.path().join("stream");
    let send = Command::new("zfs")
        .args(["send", "-p", &setup.scratch.child("web@sent")])
        .stdout(std::fs::File::create(&stream).unwrap())
        .status();
    assert!(send.unwrap().success());
    let receive = Command::new("zfs")
        .args(["receive", &setup.scratch.child("copy")])
        .stdin(std::fs::File::open(&stream).unwrap())
        .status();
    assert!(receive.unwrap().success());
    let mounted = setup.mount("copy", &[]);
    assert_same_tree(&then, &tree(&mounted.0));
}

#[test]
fn zfs_a_container_of_the_store_is_named_by_its_name() {
    let Some(setup) = Setup::new() else { return };
    let (store, bundle) = (setup.upper("store"), setup.dir.path().join("bundle"));
    let lxcri_fs = |args: &[&str]| {
        let mut command = lxcri_fs();
        command.args(args).env("LXCRI_FS_STORE", &store);
        command
    };
    run(lxcri_fs(&["create", "web1", "--image"])
        .arg(&setup.image)
        .arg("--bundle")
        .arg(&bundle)
        .args(["--", "/bin/true"]));
    let hostname = bundle.join("rootfs/etc/hostname");
    std::fs::write(&hostname, "before\n").unwrap();
    run(&mut lxcri_fs(&["snapshot", "web1@before"]));
    std::fs::write(&hostname, "after\n").unwrap();
    fails(6, &mut lxcri_fs(&["rollback", "web1@before"]));
    run(&mut lxcri_fs(&["rollback", "web1@before", "--force"]));
    assert_eq!(std::fs::read_to_string(&hostname).unwrap(), "before\n");
    assert!(run(&mut lxcri_fs(&["snapshots", "web1"])).contains("before"));
    fails(5, &mut lxcri_fs(&["snapshots", "web2"]));
    run(&mut lxcri_fs(&["snapshot", "--delete", "web1@before"]));
    let datasets = || {
        zfs(&[
            "list",
            "-r",
            "-H",
            "-o",
            "name",
            "-t",
            "all",
            &setup.scratch.child("store/containers"),
        ])
    };
    run(&mut lxcri_fs(&["snapshot", "web1@kept"]));
    run(&mut lxcri_fs(&["delete", "web1", "--keep"]));
    assert!(!bundle.join("rootfs").exists());
    assert!(datasets().contains("/web1@kept\n"), "{}", datasets());
    run(&mut lxcri_fs(&["delete", "web1"]));
    assert!(!datasets().contains("web1"), "{}", datasets());
}

#[test]
fn a_directory_is_not_cloned_into_a_dataset() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let (upper, mountpoint) = (dir.path().join("upper"), dir.path().join("mnt"));
    std::fs::create_dir(&mountpoint).unwrap();
    let mounted = Mounted::new(
        &["--upper", upper.to_str().unwrap(), image.to_str().unwrap()],
        &mountpoint,
    );
    for place in [&upper, &mounted.0] {
        let output = fails(1, lxcri_fs().arg("clone").arg(place).arg("zfs:tank/x"));
        assert!(
            stderr(&output).contains("is not a ZFS dataset"),
            "{}",
            stderr(&output)
        );
    }
    fails(2, lxcri_fs().arg("clone").arg(&upper).arg("/tmp/x"));
    fails(2, lxcri_fs().arg("snapshot").arg(&upper));
}

#[test]
fn zfs_is_at_hand() {
    // A run without any pool must not pass for one with it.
    if let Some(pool) = pool() {
        assert_eq!(property(&pool, "type"), "filesystem");
    }
}
