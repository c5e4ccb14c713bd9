//! Several images in one mount: merged, lowest first, whiteouts honoured. The oracle is the
//! kernel's overlayfs over the same layers.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::common::{Mounted, assert_same_tree, build_image, golden, lxcri_fs, run, tree};

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn whiteout(root: &Path, path: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    run(Command::new("mknod").arg(path).args(["c", "0", "0"]));
}

fn opaque(root: &Path, path: &str) {
    std::fs::create_dir_all(root.join(path)).unwrap();
    run(Command::new("setfattr")
        .args(["-n", "trusted.overlay.opaque", "-v", "y"])
        .arg(root.join(path)));
}

/// Three layers in overlayfs's form.
fn layers(dir: &Path) -> [std::path::PathBuf; 3] {
    let [a, b, c] = ["a", "b", "c"].map(|name| dir.join(name));
    for layer in [&a, &b, &c] {
        std::fs::create_dir(layer).unwrap();
    }
    write(&a, "etc/passwd", "root\n");
    write(&a, "etc/removed", "gone\n");
    write(&a, "opaque/old", "hidden\n");
    write(&a, "opaque/deep/old", "hidden\n");
    write(&a, "file-then-dir", "file\n");
    write(&a, "dir-then-file/x", "x\n");
    write(&a, "big", &"0123456789abcdef".repeat(20_000));
    std::fs::hard_link(a.join("big"), a.join("big-link")).unwrap();
    symlink("etc/passwd", a.join("link")).unwrap();
    write(&b, "etc/hosts", "localhost\n");
    whiteout(&b, "etc/removed");
    opaque(&b, "opaque");
    write(&b, "opaque/new", "seen\n");
    whiteout(&b, "big-link");
    run(Command::new("rm").arg("-f").arg(b.join("file-then-dir")));
    write(&b, "file-then-dir/inside", "dir\n");
    opaque(&b, "file-then-dir");
    write(&b, "dir-then-file", "file\n");
    write(&c, "etc/passwd", "root\nuser\n");
    write(&c, "big2", &"fedcba9876543210".repeat(20_000));
    std::fs::set_permissions(c.join("etc"), std::fs::Permissions::from_mode(0o750)).unwrap();
    whiteout(&c, "link");
    [a, b, c]
}

#[test]
fn images_merge_as_overlayfs_merges_their_layers() {
    let dir = tempfile::tempdir().unwrap();
    let layers = layers(dir.path());
    let images: Vec<_> = layers
        .iter()
        .map(|l| l.with_extension("bfc").display().to_string())
        .collect();
    for (layer, image) in layers.iter().zip(&images) {
        run(lxcri_fs()
            .arg("build")
            .arg(format!("dir:{}", layer.display()))
            .args(["-o", image]));
    }
    let (overlay, mount) = (dir.path().join("overlay"), dir.path().join("mount"));
    std::fs::create_dir(&overlay).unwrap();
    std::fs::create_dir(&mount).unwrap();
    let [a, b, c] = layers.map(|l| l.display().to_string());
    run(Command::new("mount")
        .args(["-t", "overlay", "o", "-o", &format!("lowerdir={c}:{b}:{a}")])
        .arg(&overlay));
    let mut expected = tree(&overlay);
    run(Command::new("umount").arg(&overlay));
    // A lower hard link counts the names that its own layer has, whatever hides them.
    for entry in expected.values_mut() {
        entry.nlink = entry.nlink.map(|_| 1);
        entry.linked_to = None;
    }
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    {
        let _mounted = Mounted::new(&images, &mount);
        assert_same_tree(&expected, &tree(&mount));
    }
    // The same layers in one image.
    let one = dir.path().join("one.bfc");
    run(lxcri_fs()
        .args(["build", &a, "--layer", &b, "--layer", &c, "-o"])
        .arg(&one));
    let _mounted = Mounted::new(&[one.to_str().unwrap()], &mount);
    assert_same_tree(&expected, &tree(&mount));
}

#[test]
fn any_v1_image_can_be_a_lower_layer() {
    let dir = tempfile::tempdir().unwrap();
    let (layer, image, mount) = (
        dir.path().join("top"),
        dir.path().join("top.bfc"),
        dir.path().join("mount"),
    );
    std::fs::create_dir(&mount).unwrap();
    write(&layer, "tree/one", "replaced\n");
    whiteout(&layer, "tree/many");
    build_image(&layer, &image);
    let below = golden("zstd.bfc").display().to_string();
    let _mounted = Mounted::new(&[&below, image.to_str().unwrap()], &mount);
    assert_eq!(
        std::fs::read_to_string(mount.join("tree/one")).unwrap(),
        "replaced\n"
    );
    assert!(!mount.join("tree/many").exists());
    assert_eq!(
        std::fs::read(mount.join("tree/blob/mixed")).unwrap().len(),
        288_000
    );
}
