//! Extended attributes under an upper: those of the image are visible, whether a layer of their own
//! holds them or the image's mount.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{
    Mounted, assert_same_tree, build_image, handles_are_stale, lxcri_fs, requests, run, tree,
    within,
};

fn sh(dir: &Path, script: &str) -> String {
    run(Command::new("bash").args(["-euc", script]).current_dir(dir))
}

struct Fixture {
    dir: tempfile::TempDir,
    root: PathBuf,
    image: PathBuf,
}

impl Fixture {
    /// An image of what `script` makes.
    fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (root, image) = (dir.path().join("root"), dir.path().join("image.bfc"));
        std::fs::create_dir(&root).unwrap();
        sh(&root, script);
        build_image(&root, &image);
        run(lxcri_fs().arg("verify").arg(&image));
        Self { dir, root, image }
    }

    fn mount(&self, image: &Path, args: &[&str], name: &str) -> (Mounted, PathBuf) {
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        (
            // EROFS needs no layer of its own.
            Mounted::new(
                &[&["--engine", "fuse", image.to_str().unwrap()], args].concat(),
                &dir,
            ),
            dir,
        )
    }
}

/// Of every type one, with all kinds of attributes; and much without any.
const FEW: &str = r"
    mkdir -p a/b/c plain/deep other
    for i in $(seq 300); do echo $i > plain/$i; done
    echo deep > plain/deep/file
    echo text > a/file
    setfattr -n user.one -v 1 a/file
    setfattr -n trusted.two -v 2 a/file
    chmod 6751 a/file
    cp /bin/true a/b/cap
    chown 7:8 a/b/cap
    setcap cap_net_raw+ep a/b/cap
    ln a/b/cap other/cap
    ln a/b/cap a/b/c/again
    head -c 300000 /dev/urandom > a/b/large
    truncate -s 5M a/b/large
    setfattr -n user.large -v yes a/b/large
    : > a/empty
    setfattr -n user.e a/empty
    ln -s nowhere a/b/link
    setfattr -h -n trusted.link -v x a/b/link
    mkfifo a/fifo
    setfattr -h -n trusted.fifo -v x a/fifo
    mknod a/device c 1 3
    setfattr -h -n trusted.device -v x a/device
    setfacl -m u:5:rw,g:6:r a/b/c
    setfacl -d -m u:9:rwx a/b
    setfattr -n user.dir -v d plain/deep
    chown 3:4 plain/deep
    touch -d '2001-02-03 04:05:06.5' a/b plain
    setfattr -n user.root -v r .
    chmod 750 .";

/// How often the image was asked for an attribute, as overlayfs does; users ask for lists.
fn asked(dir: &Path) -> u64 {
    requests(dir, "getxattr")
}

/// Linux 6.16 and later, where the attributes are in a layer of their own.
fn has_layer(dir: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.split(' ').nth(1) == dir.to_str())
        .unwrap();
    line.split_once("lowerdir=")
        .unwrap()
        .1
        .split(',')
        .next()
        .unwrap()
        .contains(':')
}

#[test]
fn few_attributes_are_visible_without_requests_to_the_image() {
    let fixture = Fixture::new(FEW);
    let (_mounted, dir) = fixture.mount(&fixture.image, &["--ephemeral"], "merged");
    assert_same_tree(&tree(&fixture.root), &tree(&dir));
    assert_eq!(has_layer(&dir), handles_are_stale());
    if handles_are_stale() {
        // Once to be told that there are none.
        assert!(asked(&dir) <= 2, "{}", asked(&dir));
    }
    // Beside it, the image alone shows them itself.
    let (_plain, dir) = fixture.mount(&fixture.image, &[], "plain");
    assert_same_tree(&tree(&fixture.root), &tree(&dir));
    assert!(asked(&dir) > 2, "{}", asked(&dir));
    // Rights are what the list says, and not only seen: `nobody` is not in it.
    let (_mounted, dir) = fixture.mount(&fixture.image, &["--ephemeral"], "second");
    sh(
        &dir,
        "chmod 755 .; setpriv --reuid 5 --regid 99 --clear-groups ls a/b/c; ! setpriv --reuid \
         65534 --regid 99 --clear-groups touch a/b/c/new 2>&1",
    );
}

/// Programs that keep attributes, such as tar, complain about each file whose list is an error.
#[test]
fn files_without_attributes_have_empty_lists() {
    for script in ["mkdir d; echo 1 > d/a; echo 2 > b", FEW] {
        let fixture = Fixture::new(script);
        for how in [&[][..], &["--ephemeral"]] {
            let (_mounted, dir) = fixture.mount(&fixture.image, how, "m");
            let said = "tar --xattrs --warning=no-file-ignored -cf /dev/null . 2>&1";
            assert_eq!(sh(&dir, said), "", "{script} {how:?}");
        }
    }
}

#[test]
fn attributes_are_visible_in_subdirectory_and_idmapped_mounts() {
    let fixture = Fixture::new(FEW);
    let (_mounted, dir) = fixture.mount(&fixture.image, &["--ephemeral", "--subdir", "a/b"], "sub");
    assert_same_tree(&within(&fixture.root.join("a/b")), &within(&dir));
    let map = ["--idmap", "0:100000:65536"];
    let (_plain, plain) = fixture.mount(&fixture.image, &map, "plain");
    let (_mounted, dir) = fixture.mount(
        &fixture.image,
        &[&map[..], &["--ephemeral"]].concat(),
        "merged",
    );
    assert_same_tree(&tree(&plain), &tree(&dir));
    assert_eq!(
        sh(&dir, "stat -c %u:%g a/b/cap plain/deep plain/1"),
        "100007:100008\n100003:100004\n100000:100000\n"
    );
}

#[test]
fn files_with_attributes_can_be_changed_and_committed() {
    let fixture = Fixture::new(FEW);
    let upper = fixture.dir.path().join("upper");
    let args = ["--upper", upper.to_str().unwrap()];
    let changed = {
        let (_mounted, dir) = fixture.mount(&fixture.image, &args, "merged");
        sh(
            &dir,
            "echo more >> a/file; chmod 700 a/b/large; mv a/b a/moved; rm other/cap; rm -r \
             plain/deep; mkdir plain/deep; setfattr -n user.new -v n a/empty
            setfattr -x trusted.device a/device; mv a/fifo plain/; cp -a a/moved/c plain/copy; rm \
             plain/7; touch -d 2002-02-02 .",
        );
        within(&dir)
    };
    {
        let (_mounted, dir) = fixture.mount(&fixture.image, &args, "merged");
        assert_same_tree(&changed, &within(&dir));
    }
    let new = fixture.dir.path().join("new.bfc");
    run(lxcri_fs()
        .arg("commit")
        .arg(&upper)
        .arg(&fixture.image)
        .arg("-o")
        .arg(&new));
    let (_mounted, dir) = fixture.mount(&new, &[], "committed");
    assert_same_tree(&changed, &within(&dir));
}

#[test]
fn many_attributes_are_visible() {
    let fixture = Fixture::new(
        "mkdir d; for i in $(seq 1100); do echo $i > d/$i; done; setfattr -n user.label -v l d/*; \
         setfattr -n user.d -v d d",
    );
    let (_mounted, dir) = fixture.mount(&fixture.image, &["--ephemeral"], "merged");
    assert_same_tree(&tree(&fixture.root), &tree(&dir));
    assert!(!has_layer(&dir));
}

#[test]
fn attributes_too_large_for_memory_are_visible() {
    let fixture = Fixture::new(
        "v=$(head -c 3500 /dev/zero | tr '\\0' v); for i in $(seq 320); do echo > $i; setfattr -n \
         user.v -v $i$v $i; done",
    );
    let (_mounted, dir) = fixture.mount(&fixture.image, &["--ephemeral"], "merged");
    assert_same_tree(&tree(&fixture.root), &tree(&dir));
    assert!(!has_layer(&dir));
}

/// Overlayfs ignores its own attributes on files of an image, whether the image's mount shows them
/// or a layer does.
#[test]
fn attributes_of_an_image_are_no_marks_for_overlayfs() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
import io, tarfile
with tarfile.open("x.tar", "w", format=tarfile.PAX_FORMAT) as t:
    meta = {
        "SCHILY.xattr.trusted.overlay.metacopy": "",
        "SCHILY.xattr.trusted.overlay.redirect": "/other",
        "SCHILY.xattr.user.note": "kept",
    }
    for name, pax in [("meta", meta), ("other", {}), ("dir/below", {})]:
        i = tarfile.TarInfo(name)
        i.size = 7
        i.pax_headers = pax
        t.addfile(i, io.BytesIO(b"content"))
    d = tarfile.TarInfo("dir")
    d.type = tarfile.DIRTYPE
    d.mode = 0o755
    d.pax_headers = {"SCHILY.xattr.trusted.overlay.opaque": "y"}
    t.addfile(d)
"#;
    std::fs::write(dir.path().join("make.py"), script).unwrap();
    sh(
        dir.path(),
        "python3 make.py; mkdir merged root; echo x > root/x",
    );
    let (image, other, merged) = (
        dir.path().join("image.bfc"),
        dir.path().join("other.bfc"),
        dir.path().join("merged"),
    );
    build_image(
        format!("tar:{}", dir.path().join("x.tar").display()),
        &image,
    );
    build_image(dir.path().join("root"), &other);
    let (image, other) = (image.to_str().unwrap(), other.to_str().unwrap());
    // Read-only, under an upper, and under one where several images have no layer of attributes.
    for args in [
        &[image][..],
        &[image, "--ephemeral"],
        &[image, other, "--ephemeral"],
    ] {
        let _mounted = Mounted::new(args, &merged);
        let found = sh(
            &merged,
            "cat meta dir/below; getfattr -d -m - --absolute-names meta dir",
        );
        assert_eq!(
            found, "contentcontent# file: meta\nuser.note=\"kept\"\n\n",
            "{args:?}"
        );
    }
}
