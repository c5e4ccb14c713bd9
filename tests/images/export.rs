//! An export equals what was built, byte for byte, or leaves nothing.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::common::{lxcri_fs, run, stderr};

fn sh(dir: &Path, script: &str) -> String {
    run(Command::new("bash").args(["-euc", script]).current_dir(dir))
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The layers' blobs of the only image of a layout.
fn layers(layout: &Path) -> Vec<Vec<u8>> {
    let blob = |descriptor: &Value| {
        layout
            .join("blobs")
            .join(descriptor["digest"].as_str().unwrap().replace(':', "/"))
    };
    let manifest = json(&blob(&json(&layout.join("index.json"))["manifests"][0]));
    manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| std::fs::read(blob(layer)).unwrap())
        .collect()
}

/// A tree with what makes tars differ: sparse files, long names, hard links; and enough content for
/// frames.
const TREE: &str = "mkdir tree; cd tree; seq 100000 > large; truncate -s 2M sparse; printf x | dd \
                    of=sparse bs=1 seek=1000000 conv=notrunc status=none
    truncate -s 1M hole; ln large link; ln -s large sym; mkdir $(head -c 200 /dev/zero | tr '\\0' \
                    d); mkfifo fifo; : > empty";

#[test]
fn exported_layers_equal_the_built_ones() {
    let dir = tempfile::tempdir().unwrap();
    sh(dir.path(), TREE);
    for options in [
        "--format=v7 --exclude=dddd* --exclude=fifo",
        "--format=oldgnu --sparse --hole-detection=raw",
        "--format=gnu",
        "--format=posix --sparse --hole-detection=raw",
        "--format=posix --sparse --sparse-version=0.0 --hole-detection=raw",
        "--format=ustar -b 100 --exclude=dddd*",
        "--format=posix -z",
    ] {
        sh(
            dir.path(),
            &format!("rm -rf image.bfc out; tar -C tree {options} -cf layer.tar $(ls tree)"),
        );
        run(lxcri_fs()
            .args(["build", "tar:layer.tar", "-o", "image.bfc"])
            .current_dir(dir.path()));
        run(lxcri_fs()
            .args(["export", "image.bfc", "--oci", "out", "--uncompressed"])
            .current_dir(dir.path()));
        let expected = sh(
            dir.path(),
            "(gzip -dc layer.tar 2>/dev/null || cat layer.tar) > plain.tar; sha256sum < plain.tar",
        );
        let found = layers(&dir.path().join("out"));
        assert!(
            found.len() == 1 && found[0] == std::fs::read(dir.path().join("plain.tar")).unwrap(),
            "{options} {expected}"
        );
    }
}

#[test]
fn the_same_image_gives_the_same_export() {
    let dir = tempfile::tempdir().unwrap();
    sh(dir.path(), TREE);
    run(lxcri_fs()
        .args(["build", "tree", "-o", "image.bfc"])
        .current_dir(dir.path()));
    for target in ["a", "b"] {
        run(lxcri_fs()
            .args(["export", "image.bfc", "--tar", &format!("{target}.tar")])
            .current_dir(dir.path()));
        run(lxcri_fs()
            .args(["export", "image.bfc", "--oci", target])
            .current_dir(dir.path()));
    }
    sh(dir.path(), "cmp a.tar b.tar; diff -r a b");
    // And an image of the exported is the same but for its manifest: the layers and the
    // configuration are.
    run(lxcri_fs()
        .args(["build", "a", "-o", "again.bfc"])
        .current_dir(dir.path()));
    let config = |image: &str| -> Value {
        serde_json::from_str(&run(lxcri_fs()
            .args(["info", "--json", image])
            .current_dir(dir.path())))
        .unwrap()
    };
    assert_eq!(config("image.bfc")["config"], config("again.bfc")["config"]);
}

#[test]
fn a_failed_export_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    sh(dir.path(), TREE);
    run(lxcri_fs()
        .args(["build", "tree", "-o", "image.bfc"])
        .current_dir(dir.path()));
    let mut bytes = std::fs::read(dir.path().join("image.bfc")).unwrap();
    bytes[20_000] ^= 1;
    std::fs::write(dir.path().join("damaged.bfc"), bytes).unwrap();
    let before = sh(dir.path(), "ls -A");
    for target in [["--tar", "out.tar"], ["--oci", "out"]] {
        let output = lxcri_fs()
            .args(["export", "damaged.bfc"])
            .args(target)
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
        assert_eq!(sh(dir.path(), "ls -A"), before);
    }
    // What exists is left alone.
    for target in [["--tar", "image.bfc"], ["--oci", "tree"]] {
        let output = lxcri_fs()
            .args(["export", "image.bfc"])
            .args(target)
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    }
    run(lxcri_fs()
        .args(["verify", "image.bfc"])
        .current_dir(dir.path()));
}

#[test]
fn export_into_a_closed_pipe_prints_no_error() {
    let dir = tempfile::tempdir().unwrap();
    sh(dir.path(), TREE);
    run(lxcri_fs()
        .args(["build", "tree", "-o", "image.bfc"])
        .current_dir(dir.path()));
    let mut export = lxcri_fs();
    export
        .args(["export", "image.bfc", "--tar", "-"])
        .current_dir(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = export.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), stderr(&output)),
        (Some(1), String::new())
    );
}
