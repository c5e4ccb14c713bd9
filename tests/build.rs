//! Images are what their sources say, whoever made them, and come out again unchanged. The oracles
//! are GNU tar, umoci and skopeo.
//!
//! Needs root, and the tools that `tests/run.sh` installs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Entry, Mounted, assert_same_tree, lxcri_fs, member, run, stats, stderr, tree};

fn sh(dir: &Path, script: &str) -> String {
    run(Command::new("bash").args(["-euc", script]).current_dir(dir))
}

/// A tree with everything that a root file system may have.
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
fn paths_longer_than_the_kernel_takes() {
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

/// An OCI layout made by umoci with three layers: additions, deletions, changes of type.
fn umoci_layout(dir: &Path) -> PathBuf {
    let layout = dir.join("layout");
    sh(
        dir,
        r#"
        umoci init --layout layout
        umoci new --image layout:latest
        umoci unpack --image layout:latest bundle
        cd bundle/rootfs
        mkdir -p etc usr srv/old srv/dir
        echo a > etc/a
        echo b > srv/old/b
        echo f > srv/becomes-dir
        echo x > srv/dir/x
        ln etc/a usr/a-link
        ln -s ../etc/a usr/sym
        setfattr -n user.x -v y etc/a
        mknod srv/dev c 1 5
        seq 100000 > srv/large
        chown 1000:1000 srv/large
        cd ../..
        umoci repack --image layout:latest bundle
        rm -rf bundle
        umoci unpack --image layout:latest bundle
        cd bundle/rootfs
        rm -rf srv/old srv/becomes-dir
        mkdir srv/becomes-dir
        echo in > srv/becomes-dir/in
        rm -rf srv/dir
        echo now > srv/dir
        chmod 600 etc/a
        cd ../..
        umoci repack --image layout:latest bundle
        rm -rf bundle
        umoci unpack --image layout:latest bundle
        cd bundle/rootfs; echo new > etc/new; ln srv/large srv/large-link
        cd ../..
        umoci repack --image layout:latest bundle
        umoci config --image layout:latest --config.cmd /bin/sh
        rm -rf bundle
        umoci unpack --image layout:latest bundle"#,
    );
    layout
}

#[test]
fn images_of_other_makers_are_what_those_unpack() {
    let dir = tempfile::Builder::new().tempdir_in("/var/tmp").unwrap();
    let layout = umoci_layout(dir.path());
    let mut expected = tree(&dir.path().join("bundle/rootfs"));
    sh(
        dir.path(),
        "printf '{\"default\":[{\"type\":\"insecureAcceptAnything\"}]}' > policy.json
        skopeo --policy policy.json copy -q oci:layout:latest \
         docker-archive:docker.tar:some/image:1
        skopeo --policy policy.json copy -q oci:layout:latest oci-archive:oci.tar:latest
        skopeo --policy policy.json copy -q --dest-compress-format zstd oci:layout:latest \
         oci:zstd:latest",
    );
    let image = dir.path().join("image.bfc");
    let at = |prefix: &str, name: &str| format!("{prefix}{}", dir.path().join(name).display());
    let sources = [
        at("oci:", "layout:latest"),
        at("", "layout"),
        at("docker-archive:", "docker.tar:some/image:1"),
        at("", "docker.tar"),
        at("oci-archive:", "oci.tar:latest"),
        at("oci:", "zstd:latest"),
    ];
    // The root's time is whatever the unpacking left.
    expected.get_mut(&b""[..]).unwrap().mtime = (0, 0);
    for source in sources {
        build(&[
            "--force".as_ref(),
            source.as_ref(),
            "-o".as_ref(),
            image.as_os_str(),
        ]);
        let mut found = mounted(&image);
        found.get_mut(&b""[..]).unwrap().mtime = (0, 0);
        assert_same_tree(&expected, &found);
        let info: serde_json::Value =
            serde_json::from_str(&run(lxcri_fs().args(["info", "--json"]).arg(&image))).unwrap();
        assert_eq!(info["layers"].as_array().unwrap().len(), 3, "{source}");
        assert_eq!(info["config"]["config"]["Cmd"][0], "/bin/sh", "{source}");
    }

    // Out again: the same layers, the same configuration, and umoci unpacks the same tree.
    build(&[
        "--force".as_ref(),
        layout.as_os_str(),
        "-o".as_ref(),
        image.as_os_str(),
    ]);
    run(lxcri_fs()
        .arg("export")
        .arg(&image)
        .arg("--oci")
        .arg(dir.path().join("exported")));
    let config = |layout: &str| {
        let raw = sh(
            dir.path(),
            &format!("skopeo --policy policy.json inspect --config --raw oci:{layout}:latest"),
        );
        serde_json::from_str::<serde_json::Value>(&raw).unwrap()
    };
    assert_eq!(config("layout"), config("exported"));
    sh(dir.path(), "umoci unpack --image exported:latest again");
    let mut again = tree(&dir.path().join("again/rootfs"));
    again.get_mut(&b""[..]).unwrap().mtime = (0, 0);
    assert_same_tree(&expected, &again);
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
fn a_blob_that_lies_is_refused_and_nothing_is_left() {
    let dir = tempfile::Builder::new().tempdir_in("/var/tmp").unwrap();
    let layout = umoci_layout(dir.path());
    let image = dir.path().join("image.bfc");
    let refused = |what: &str, text: &str| {
        let output = lxcri_fs()
            .arg("build")
            .arg(&layout)
            .arg("-o")
            .arg(&image)
            .output()
            .unwrap();
        assert!(!output.status.success(), "{what}");
        assert!(
            stderr(&output).contains(text),
            "{what}: {}",
            stderr(&output)
        );
        assert!(!image.exists(), "{what}");
        let left: Vec<_> = dir
            .path()
            .read_dir()
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left.len(), 2, "{what}: {left:?}");
    };
    let blobs = layout.join("blobs/sha256");
    let largest = blobs
        .read_dir()
        .unwrap()
        .map(|e| e.unwrap().path())
        .max_by_key(|p| p.metadata().unwrap().len())
        .unwrap();
    let good = std::fs::read(&largest).unwrap();
    let mut bad = good.clone();
    let last = bad.len() - 30;
    bad[last] ^= 1;
    std::fs::write(&largest, &bad).unwrap();
    refused("a changed byte", "its digest is");
    std::fs::write(&largest, &good[..good.len() - 1]).unwrap();
    refused("a byte too few", "bytes");
    std::fs::write(&largest, [&good[..], b"x"].concat()).unwrap();
    refused("a byte too many", "bytes");
    std::fs::remove_file(&largest).unwrap();
    refused("no blob", "No such file");
    std::fs::write(&largest, &good).unwrap();
    build(&[layout.as_os_str(), "-o".as_ref(), image.as_os_str()]);
    // What exists is not replaced unasked.
    let output = lxcri_fs()
        .arg("build")
        .arg(&layout)
        .arg("-o")
        .arg(&image)
        .output()
        .unwrap();
    assert!(
        !output.status.success() && stderr(&output).contains("--force"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn hostile_layers_are_refused_or_confined() {
    let dir = tempfile::tempdir().unwrap();
    let (tar, image, out) = (
        dir.path().join("hostile.tar"),
        dir.path().join("image.bfc"),
        dir.path().join("out"),
    );
    let outside = dir.path().join("outside");
    let try_build = |members: &[Vec<u8>], args: &[&str]| {
        std::fs::write(&tar, [members.concat(), vec![0; 1024]].concat()).unwrap();
        let script = format!("ulimit -d {}; exec \"$@\"", 300 << 10);
        let mut command = Command::new("sh");
        command.args([
            "-c",
            &script,
            "sh",
            env!("CARGO_BIN_EXE_lxcri-fs"),
            "build",
            "--force",
        ]);
        let output = command
            .args(args)
            .arg(format!("tar:{}", tar.display()))
            .arg("-o")
            .arg(&image)
            .output()
            .unwrap();
        assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
        output
    };
    let refused = |members: &[Vec<u8>], text: &str| {
        let output = try_build(members, &[]);
        assert!(!output.status.success());
        assert!(
            stderr(&output).contains(text),
            "{text}: {}",
            stderr(&output)
        );
    };
    let listed = |members: &[Vec<u8>]| {
        let output = try_build(members, &[]);
        assert!(output.status.success(), "{}", stderr(&output));
        let _ = std::fs::remove_dir_all(&out);
        run(lxcri_fs().arg("extract").arg(&image).arg(&out));
        assert!(!outside.exists());
        run(lxcri_fs().args(["ls", "-R"]).arg(&image))
    };
    let pax = |record: &[u8]| {
        let mut len = record.len() + 4;
        while format!("{len} ").len() + record.len() + 1 != len {
            len += 1;
        }
        member(
            b"pax",
            b'x',
            b"",
            &[format!("{len} ").as_bytes(), record, b"\n"].concat(),
        )
    };
    let link_out = outside.as_os_str().as_bytes().to_vec();

    refused(&[member(b"../escape", b'0', b"", b"x")], "`..`");
    refused(&[member(b"a/../../escape", b'0', b"", b"x")], "`..`");
    refused(&[member(b"hard", b'1', b"../etc/passwd", b"")], "`..`");
    refused(&[member(b"hard", b'1', b"missing", b"")], "does not exist");
    refused(
        &[pax(b"path=nul\0name"), member(b"x", b'0', b"", b"x")],
        "NUL",
    );
    assert_eq!(
        listed(&[member(b"/absolute", b'0', b"", b"x")]),
        "absolute\n"
    );
    // A symlink as a parent is followed inside the tree only.
    let listing = listed(&[
        member(b"link", b'2', &link_out, b""),
        member(b"link/file", b'0', b"", b"x"),
    ]);
    assert!(listing.contains("link\n"), "{listing}");
    let listing = listed(&[
        member(b"up", b'2', b"../../../..", b""),
        member(b"up/file", b'0', b"", b"x"),
    ]);
    assert_eq!(listing, "file\nup\n");
    // A character device 0/0 in a tar is a device, not a whiteout.
    let device = member(b"wh", b'3', b"", b"");
    assert_eq!(listed(&[member(b"wh", b'0', b"", b"x"), device]), "wh\n");
    refused(
        &[
            member(b"a", b'2', b"b", b""),
            member(b"b", b'2', b"a", b""),
            member(b"a/x", b'0', b"", b""),
        ],
        "symlinks",
    );

    // Bombs: an extended header that claims a terabyte, one that is large, a name without end, a
    // stream that unpacks without end.
    let mut huge = member(b"pax", b'x', b"", b"");
    huge[124..136].copy_from_slice(b"\x80\0\0\0\0\0\x01\0\0\0\0\0");
    let sum: u32 = huge[..512]
        .iter()
        .enumerate()
        .map(|(i, &b)| {
            if (148..156).contains(&i) {
                32
            } else {
                u32::from(b)
            }
        })
        .sum();
    huge[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    refused(&[huge], "");
    refused(
        &[
            pax(&[b"comment=".to_vec(), vec![b'x'; 20 << 20]].concat()),
            member(b"x", b'0', b"", b""),
        ],
        "",
    );
    refused(
        &[
            member(b"name", b'L', b"", &vec![b'n'; 2 << 20]),
            member(b"x", b'0', b"", b""),
        ],
        "",
    );
    let bomb = dir.path().join("bomb.tar.gz");
    sh(
        dir.path(),
        "(head -c 512 hostile.tar >/dev/null; head -c 300000000 /dev/zero) > z; tar -czf \
         bomb.tar.gz z; rm z",
    );
    let output = lxcri_fs()
        .args(["build", "--max-size", "10000000"])
        .arg(&bomb)
        .arg("-o")
        .arg(dir.path().join("b.bfc"))
        .output()
        .unwrap();
    assert!(
        !output.status.success() && stderr(&output).contains("--max-size"),
        "{}",
        stderr(&output)
    );
    assert!(!dir.path().join("b.bfc").exists());
}

#[test]
fn encrypted_images_open_with_their_secret_only() {
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
fn of_an_index_the_image_of_the_platform_is_built() {
    let dir = tempfile::Builder::new().tempdir_in("/var/tmp").unwrap();
    sh(
        dir.path(),
        r#"
        umoci init --layout layout
        for arch in amd64 arm64 riscv64; do
            umoci new --image layout:$arch; umoci config --image layout:$arch --architecture $arch
            umoci unpack --image layout:$arch $arch
            echo $arch > $arch/rootfs/arch
            umoci repack --image layout:$arch $arch
        done"#,
    );
    let layout = dir.path().join("layout");
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    let mut manifests = index["manifests"].as_array().unwrap().clone();
    for manifest in &mut manifests {
        let arch = manifest["annotations"]["org.opencontainers.image.ref.name"].clone();
        manifest["platform"] = serde_json::json!({"os": "linux", "architecture": arch});
        manifest.as_object_mut().unwrap().remove("annotations");
    }
    // An index in an index, as multi-platform builds leave them.
    let kind = "application/vnd.oci.image.index.v1+json";
    let nested = serde_json::to_vec(
        &serde_json::json!({"schemaVersion": 2, "mediaType": kind, "manifests": manifests}),
    )
    .unwrap();
    let digest = sh(
        dir.path(),
        &format!(
            "printf '%s' '{}' | sha256sum | cut -c1-64",
            String::from_utf8_lossy(&nested)
        ),
    );
    let digest = digest.trim();
    std::fs::write(layout.join("blobs/sha256").join(digest), &nested).unwrap();
    let descriptor = serde_json::json!({
        "mediaType": kind,
        "digest": format!("sha256:{digest}"),
        "size": nested.len(),
        "annotations": {"org.opencontainers.image.ref.name": "latest"},
    });
    let top = serde_json::json!({"schemaVersion": 2, "manifests": [descriptor]});
    std::fs::write(layout.join("index.json"), serde_json::to_vec(&top).unwrap()).unwrap();
    let image = dir.path().join("image.bfc");
    for arch in ["arm64", "amd64"] {
        let platform = format!("linux/{arch}");
        build(&[
            "--force".as_ref(),
            "--platform".as_ref(),
            platform.as_ref(),
            layout.as_os_str(),
            "-o".as_ref(),
            image.as_os_str(),
        ]);
        assert_eq!(
            run(lxcri_fs().arg("cat").arg(&image).arg("arch")).trim(),
            arch
        );
    }
    let output = lxcri_fs()
        .args(["build", "--force", "--platform", "linux/s390x"])
        .arg(&layout)
        .arg("-o")
        .arg(&image)
        .output()
        .unwrap();
    assert!(
        !output.status.success() && stderr(&output).contains("s390x"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn from_takes_over_the_layers_that_are_the_same() {
    let dir = tempfile::Builder::new().tempdir_in("/var/tmp").unwrap();
    let layout = umoci_layout(dir.path());
    let (base, whole, taken) = (
        dir.path().join("base.bfc"),
        dir.path().join("whole.bfc"),
        dir.path().join("taken.bfc"),
    );
    build(&[layout.as_os_str(), "-o".as_ref(), base.as_os_str()]);
    sh(
        dir.path(),
        "cd bundle/rootfs; seq 50000 > srv/more; cd ../..; umoci repack --image layout:latest \
         bundle",
    );
    build(&[layout.as_os_str(), "-o".as_ref(), whole.as_os_str()]);
    build(&[
        "--from".as_ref(),
        base.as_os_str(),
        layout.as_os_str(),
        "-o".as_ref(),
        taken.as_os_str(),
    ]);
    assert!(std::fs::read(&whole).unwrap() == std::fs::read(&taken).unwrap());
}

/// A container's own file that is the end of an image, with section, index and footer, made for the
/// place where `append` puts it: behind the image of `base` and the header of an object.
fn tail(dir: &Path, base: &Path) -> Vec<u8> {
    let (forged, layer) = (dir.join("forged.bfc"), dir.join("forged"));
    build(&[base.as_os_str(), "-o".as_ref(), forged.as_os_str()]);
    let end = usize::try_from(forged.metadata().unwrap().len()).unwrap();
    std::fs::create_dir(&layer).unwrap();
    // Several frames that are stored as they are.
    sh(&layer, "head -c 200000 /dev/urandom > forged");
    run(lxcri_fs().arg("append").arg(&forged).arg(&layer));
    std::fs::read(forged).unwrap()[end + 48..].to_vec()
}

/// A layer to append, and what the image shows before and after.
fn append_fixture(dir: &Path) -> (PathBuf, PathBuf, String, String) {
    let (base, layer, image) = (dir.join("base"), dir.join("layer"), dir.join("image.bfc"));
    for path in [&base, &layer] {
        std::fs::create_dir(path).unwrap();
    }
    std::fs::write(base.join("kept"), "kept\n").unwrap();
    std::fs::write(base.join("removed"), "removed\n").unwrap();
    run(Command::new("mknod")
        .arg(layer.join("removed"))
        .args(["c", "0", "0"]));
    std::fs::write(
        layer.join("large"),
        (0..200_000_u32)
            .flat_map(u32::to_le_bytes)
            .collect::<Vec<_>>(),
    )
    .unwrap();
    std::fs::write(layer.join("a-tail"), tail(dir, &base)).unwrap();
    symlink("kept", layer.join("link")).unwrap();
    build(&[base.as_os_str(), "-o".as_ref(), image.as_os_str()]);
    let before = run(lxcri_fs().args(["ls", "-lR"]).arg(&image));
    let copy = dir.join("copy.bfc");
    std::fs::copy(&image, &copy).unwrap();
    run(lxcri_fs().arg("append").arg(&copy).arg(&layer));
    let after = run(lxcri_fs().args(["ls", "-lR"]).arg(&copy));
    assert_ne!(before, after);
    assert!(
        after.contains("link -> kept") && !after.contains("removed"),
        "{after}"
    );
    // The file stands where it was made for.
    let (start, bytes) = (
        image.metadata().unwrap().len() + 48,
        std::fs::read(&copy).unwrap(),
    );
    assert!(
        bytes[usize::try_from(start).unwrap()..]
            .starts_with(&std::fs::read(layer.join("a-tail")).unwrap())
    );
    (image, layer, before, after)
}

/// A file that is cut off behind the container's file, as a crash or an opener during the append
/// finds it, is still the image that it was.
#[test]
fn what_is_being_appended_is_never_taken_for_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let (image, layer, before, _) = append_fixture(dir.path());
    let (mut torn, tail) = (
        std::fs::read(&image).unwrap(),
        std::fs::read(layer.join("a-tail")).unwrap(),
    );
    torn.extend_from_slice(&[0; 48]);
    torn.extend_from_slice(&tail);
    let target = dir.path().join("target.bfc");
    std::fs::write(&target, &torn).unwrap();
    assert_eq!(run(lxcri_fs().args(["ls", "-lR"]).arg(&target)), before);
    let info: serde_json::Value =
        serde_json::from_str(&run(lxcri_fs().args(["info", "--json"]).arg(&target))).unwrap();
    assert_eq!(info["torn_after"], image.metadata().unwrap().len());
    // And shorter than the image says that it is, it is damaged.
    let len = usize::try_from(image.metadata().unwrap().len()).unwrap();
    std::fs::write(&target, &torn[..len - 1]).unwrap();
    let output = lxcri_fs().arg("ls").arg(&target).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(
        stderr(&output).contains("the image is cut off"),
        "{}",
        stderr(&output)
    );
}

/// While images are appended over and over, whoever opens the image by its path finds one that was
/// finished.
#[test]
fn an_image_opens_at_any_time_while_layers_are_appended() {
    let dir = tempfile::tempdir().unwrap();
    let (image, layer, before, after) = append_fixture(dir.path());
    let original = std::fs::read(&image).unwrap();
    let target = dir.path().join("target.bfc");
    for _ in 0..5 {
        std::fs::write(&target, &original).unwrap();
        let mut append = lxcri_fs()
            .arg("append")
            .arg(&target)
            .arg(&layer)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while append.try_wait().unwrap().is_none() {
            let found = run(lxcri_fs().args(["ls", "-lR"]).arg(&target));
            assert!(found == before || found == after, "{found}");
        }
        assert!(append.wait().unwrap().success());
        assert_eq!(run(lxcri_fs().args(["ls", "-lR"]).arg(&target)), after);
    }
}

/// strace(1) kills the process, or fails its call, at the n-th system call that changes the file.
#[test]
fn an_append_that_ends_at_any_write_leaves_the_old_image_or_the_new() {
    let dir = tempfile::tempdir().unwrap();
    let (image, layer, before, after) = append_fixture(dir.path());
    let original = std::fs::read(&image).unwrap();
    let target = dir.path().join("target.bfc");
    for (call, fault) in [
        ("pwrite64", "signal=SIGKILL"),
        ("pwrite64", "error=ENOSPC"),
        ("fsync,fdatasync", "error=EIO"),
        ("fsync,fdatasync", "signal=SIGKILL"),
        ("ftruncate", "signal=SIGKILL"),
    ] {
        let mut outcomes = Vec::new();
        for n in 1.. {
            std::fs::write(&target, &original).unwrap();
            let inject = format!("inject={call}:{fault}:when={n}");
            let mut command = Command::new("strace");
            command.args([
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                &format!("trace={call}"),
                "-e",
                &inject,
            ]);
            let output = command
                .arg(env!("CARGO_BIN_EXE_lxcri-fs"))
                .arg("append")
                .arg(&target)
                .arg(&layer)
                .output()
                .unwrap();
            let found = run(lxcri_fs().args(["ls", "-lR"]).arg(&target));
            run(lxcri_fs().arg("verify").arg(&target));
            assert!(
                found == before || found == after,
                "{call} {fault} {n}: {found}"
            );
            if fault.starts_with("error") && !output.status.success() {
                assert_eq!(
                    std::fs::read(&target).unwrap(),
                    original,
                    "a failed append is undone"
                );
            }
            outcomes.push(found == after);
            if output.status.success() {
                break;
            }
            // What was torn does not stand in the way of the next.
            run(lxcri_fs().arg("append").arg(&target).arg(&layer));
            assert_eq!(
                run(lxcri_fs().args(["ls", "-lR"]).arg(&target)),
                after,
                "{call} {fault} {n}"
            );
            assert!(n < 100);
        }
        assert!(
            outcomes.len() > 1 && outcomes.last() == Some(&true),
            "{call} {fault}: {outcomes:?}"
        );
    }
}

#[test]
fn a_full_disk_leaves_the_old_image() {
    let dir = tempfile::tempdir().unwrap();
    let small = dir.path().join("small");
    std::fs::create_dir(&small).unwrap();
    run(Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2M", "tmpfs"])
        .arg(&small));
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("small"), "small\n").unwrap();
    let image = small.join("image.bfc");
    build(&[source.as_os_str(), "-o".as_ref(), image.as_os_str()]);
    let before = std::fs::read(&image).unwrap();
    sh(&source, "head -c 3000000 /dev/urandom > noise");
    let output = lxcri_fs()
        .arg("build")
        .arg("--force")
        .arg(&source)
        .arg("-o")
        .arg(&image)
        .output()
        .unwrap();
    let (text, after, left) = (
        stderr(&output),
        std::fs::read(&image).unwrap(),
        small.read_dir().unwrap().count(),
    );
    run(Command::new("umount").arg(&small));
    assert!(!output.status.success() && !text.is_empty());
    assert!(after == before && left == 1, "{text}");
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
