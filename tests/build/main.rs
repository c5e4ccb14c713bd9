//! Images equal their sources, whichever tool made these, and are exported unchanged. The oracles
//! are GNU tar, umoci and skopeo.
//!
//! Needs root, and the tools that `tests/run.sh` installs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod append;
#[path = "../common/mod.rs"]
mod common;
mod sources;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Entry, Mounted, assert_same_tree, lxcri_fs, run, stats, stderr, tree};

fn sh(dir: &Path, script: &str) -> String {
    run(Command::new("bash").args(["-euc", script]).current_dir(dir))
}

/// A tree with every kind of file that a root file system may have.
fn make_tree(root: &Path) {
    std::fs::create_dir(root).unwrap();
    sh(
        root,
        r#"
        mkdir -p etc usr/bin empty-dir sticky many; chmod 1777 sticky; chmod 0700 empty-dir
        echo root:x:0:0 > etc/passwd
        echo data > usr/bin/tool
        chmod 4755 usr/bin/tool
        echo g > usr/bin/sgid
        chmod 2755 usr/bin/sgid
        cp /bin/true usr/bin/cap; setcap cap_net_raw+ep usr/bin/cap
        setfacl -m u:1234:r etc/passwd
        setfattr -n user.note -v 'a value' etc/passwd
        setfattr -n user.bin -v 0x00ff10 etc
        mknod null c 1 3; mknod disk b 300 70000; mkfifo fifo
        ln etc/passwd hard
        ln etc/passwd usr/hard2
        ln -s etc/passwd sym
        ln fifo fifo-link
        ln -s /nowhere dangling
        ln -P sym sym-link
        ln -s "$(head -c 4000 /dev/zero | tr '\0' x)" long-symlink
        echo n > "$(head -c 255 /dev/zero | tr '\0' n)"
        echo b > $'latin-\xe9\xff.txt'
        echo t > $'tab\t and\nline'
        for i in $(seq 200); do echo $i > many/f$i; done; cp many/f7 many/same-as-f7
        truncate -s 3M sparse; printf data | dd of=sparse bs=1 seek=1500000 conv=notrunc status=none
        seq 200000 > large; head -c 300000 /dev/urandom > noise; touch empty
        chown 4294967294:4294967294 etc/passwd; chown -h 1000:1001 sym; chown 65534:65534 usr
        (
            mkdir -p deep
            cd deep
            for i in $(seq 12); do n=$(head -c 230 /dev/zero | tr '\0' d)$i; mkdir $n; cd $n; done
            echo leaf > leaf
        )
        touch -d '1965-03-04 05:06:07.123456789' many/f1
        touch -d '2026-01-02 03:04:05.000000001' many/f2
        touch -h -d '1999-01-01' dangling
        touch -d '2001-01-01 00:00:00.5' etc many . "#,
    );
}

fn build(args: &[&OsStr]) -> String {
    run(lxcri_fs().arg("build").args(args))
}

/// The tree that a mount of the image shows.
fn mounted(image: &Path) -> BTreeMap<Vec<u8>, Entry> {
    let dir = tempfile::tempdir().unwrap();
    let _mounted = Mounted::new(&[image.to_str().unwrap()], dir.path());
    tree(dir.path())
}

struct Fixture {
    dir: tempfile::TempDir,
    source: PathBuf,
}

fn fixture() -> Fixture {
    let dir = tempfile::Builder::new()
        .prefix("lxcri-fs-build")
        .tempdir_in("/var/tmp")
        .unwrap();
    let source = dir.path().join("source");
    make_tree(&source);
    Fixture { dir, source }
}

#[test]
fn a_directory_and_its_tars_are_what_the_mount_shows() {
    let Fixture { dir, source } = fixture();
    // Sockets are not archived by tar.
    let _socket = std::os::unix::net::UnixListener::bind(source.join("socket")).unwrap();
    let expected = tree(&source);
    let image = dir.path().join("image.bfc");
    build(&[source.as_os_str(), "-o".as_ref(), image.as_os_str()]);
    assert_same_tree(&expected, &mounted(&image));

    let mut expected = expected;
    expected.remove(&b"socket"[..]);
    // Nor are links of fifos, as links.
    for name in [&b"fifo"[..], b"fifo-link"] {
        let entry = expected.get_mut(name).unwrap();
        (entry.nlink, entry.linked_to) = (Some(1), None);
    }
    let tars = [
        ("--format=posix --xattrs --xattrs-include=*", true),
        ("--format=posix --xattrs --xattrs-include=* --sparse", true),
        ("--format=posix --xattrs --xattrs-include=* -z", true),
        ("--format=posix --xattrs --xattrs-include=* --zstd", true),
        ("--format=gnu", false),
        ("--format=gnu --sparse", false),
    ];
    for (options, full) in tars {
        let tar = dir.path().join("source.tar");
        sh(
            &source,
            &format!(
                "tar --numeric-owner --exclude=./socket {options} -cf {} .",
                tar.display()
            ),
        );
        build(&[
            "--force".as_ref(),
            tar.as_os_str(),
            "-o".as_ref(),
            image.as_os_str(),
        ]);
        let mut expected = expected.clone();
        if !full {
            // GNU's form has whole seconds and no attributes.
            for entry in expected.values_mut() {
                entry.mtime.1 = 0;
                entry.xattrs.clear();
            }
        }
        let mut found = mounted(&image);
        // The directory's own time changed with the socket.
        for tree in [&mut expected, &mut found] {
            tree.get_mut(&b""[..]).unwrap().mtime = (0, 0);
        }
        assert_same_tree(&expected, &found);
    }
}

/// A path of more than 4,096 bytes can only be reached step by step, as find and cd do it.
#[test]
fn paths_longer_than_path_max_are_built_and_mounted() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image, mount, out) = (
        dir.path().join("source"),
        dir.path().join("image.bfc"),
        dir.path().join("mount"),
        dir.path().join("out"),
    );
    for path in [&source, &mount] {
        std::fs::create_dir(path).unwrap();
    }
    let descend = "for i in $(seq 30); do n=$(head -c 240 /dev/zero | tr '\\0' d)$i";
    sh(
        &source,
        &format!("{descend}; mkdir $n; cd $n; done; echo leaf > leaf"),
    );
    build(&[source.as_os_str(), "-o".as_ref(), image.as_os_str()]);
    run(lxcri_fs().arg("extract").arg(&image).arg(&out));
    let _mounted = Mounted::new(&[image.to_str().unwrap()], &mount);
    let list = |root: &Path| sh(root, "find . -printf '%p %y %m %l\\n'");
    assert_eq!(list(&source).lines().count(), 32);
    for root in [&mount, &out] {
        assert_eq!(list(root), list(&source));
        assert_eq!(
            sh(root, &format!("{descend}; cd $n; done; cat leaf")),
            "leaf\n"
        );
    }
}

#[test]
fn the_same_source_gives_the_same_image_and_content_is_stored_once() {
    let Fixture { dir, source } = fixture();
    let (a, b) = (dir.path().join("a.bfc"), dir.path().join("b.bfc"));
    build(&[source.as_os_str(), "-o".as_ref(), a.as_os_str()]);
    build(&[source.as_os_str(), "-o".as_ref(), b.as_os_str()]);
    assert!(std::fs::read(&a).unwrap() == std::fs::read(&b).unwrap());
    sh(
        &source,
        "cp -p noise noise2; cp -p large large2; touch -d '2001-01-01 00:00:00.5' .",
    );
    build(&[
        "-f".as_ref(),
        source.as_os_str(),
        "-o".as_ref(),
        b.as_os_str(),
    ]);
    let (a, b) = (
        std::fs::metadata(&a).unwrap().len(),
        std::fs::metadata(&b).unwrap().len(),
    );
    assert!(b - a < 10_000, "{a} {b}");
}

#[test]
fn an_exported_tar_restores_everything() {
    let Fixture { dir, source } = fixture();
    let (image, tar, out) = (
        dir.path().join("image.bfc"),
        dir.path().join("out.tar"),
        dir.path().join("out"),
    );
    build(&[source.as_os_str(), "-o".as_ref(), image.as_os_str()]);
    run(lxcri_fs().arg("export").arg(&image).arg("--tar").arg(&tar));
    std::fs::create_dir(&out).unwrap();
    sh(
        &out,
        &format!(
            "tar --xattrs --xattrs-include='*' --numeric-owner -xpf {}",
            tar.display()
        ),
    );
    assert_same_tree(&tree(&source), &tree(&out));
    // And so does extract.
    let extracted = dir.path().join("extracted");
    run(lxcri_fs().arg("extract").arg(&image).arg(&extracted));
    assert_same_tree(&tree(&source), &tree(&extracted));
}

#[test]
fn encrypted_images_open_only_with_their_secret() {
    let Fixture { dir, source } = fixture();
    let (image, mount) = (dir.path().join("image.bfc"), dir.path().join("mount"));
    std::fs::create_dir(&mount).unwrap();
    let password = dir.path().join("password");
    std::fs::write(&password, "correct horse\n").unwrap();
    build(&[
        "--password-file".as_ref(),
        password.as_os_str(),
        source.as_os_str(),
        "-o".as_ref(),
        image.as_os_str(),
    ]);
    let args = [
        "--password-file",
        password.to_str().unwrap(),
        image.to_str().unwrap(),
    ];
    {
        let _mounted = Mounted::new(&args, &mount);
        assert_same_tree(&tree(&source), &tree(&mount));
        // Anywhere in a file of many frames.
        let file = std::fs::File::open(mount.join("large")).unwrap();
        let expected = std::fs::read(source.join("large")).unwrap();
        let mut buf = [0; 100];
        let decoded = || stats(&mount)["decoded_bytes"].as_u64().unwrap();
        run(&mut Command::new("sync"));
        std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        let before = decoded();
        file.read_exact_at(&mut buf, 700_000).unwrap();
        assert_eq!(buf, expected[700_000..700_100]);
        // The kernel asks for what follows as well; the file has 1.2 MB.
        assert!(decoded() - before <= 256 << 10, "{}", decoded() - before);
        for at in (0..1_200_000_usize).step_by(99_991) {
            file.read_exact_at(&mut buf, at as u64).unwrap();
            assert_eq!(buf, expected[at..at + 100]);
        }
    }
    run(lxcri_fs().args(["verify", args[0], args[1], args[2]]));
    let output = lxcri_fs().args(["ls"]).arg(&image).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    let output = lxcri_fs()
        .args(["ls"])
        .arg(&image)
        .env("LXCRI_FS_PASSWORD", "wrong")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    let bytes = std::fs::read(&image).unwrap();
    assert!(
        !bytes
            .windows(24)
            .any(|w| w == b"100000\n100001\n100002\n100"),
        "plain content in the image"
    );
}

#[test]
fn a_build_that_is_killed_leaves_nothing() {
    let Fixture { dir, source } = fixture();
    sh(&source, "head -c 30000000 /dev/urandom > big");
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    for delay in [5, 30, 80, 150] {
        let mut child = lxcri_fs()
            .arg("build")
            .arg(&source)
            .arg("-o")
            .arg(out.join("image.bfc"))
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay));
        let _ = child.kill();
        let done = child.wait().unwrap().success();
        assert_eq!(
            out.read_dir().unwrap().count(),
            usize::from(done),
            "after {delay} ms"
        );
        let _ = std::fs::remove_file(out.join("image.bfc"));
    }
}
