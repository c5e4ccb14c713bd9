//! Images of OCI layouts that other tools wrote, and hostile layers.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{assert_same_tree, fails_with, lxcri_fs, member, run, stderr, tree};

use super::{build, mounted, sh};

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
fn images_of_other_tools_equal_what_those_tools_unpack() {
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
fn a_blob_that_does_not_match_its_digest_is_refused() {
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
    fails_with(
        lxcri_fs().arg("build").arg(&layout).arg("-o").arg(&image),
        "--force",
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
    fails_with(
        lxcri_fs()
            .args(["build", "--max-size", "10000000"])
            .arg(&bomb)
            .arg("-o")
            .arg(dir.path().join("b.bfc")),
        "--max-size",
    );
    assert!(!dir.path().join("b.bfc").exists());
}

#[test]
fn build_takes_the_image_of_the_platform_from_an_index() {
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
    fails_with(
        lxcri_fs()
            .args(["build", "--force", "--platform", "linux/s390x"])
            .arg(&layout)
            .arg("-o")
            .arg(&image),
        "s390x",
    );
}

#[test]
fn from_reuses_identical_layers() {
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
