//! `diff` lists and `commit` stores whatever was written over an image. The oracle is the kernel's
//! overlayfs: the committed image looks as the mount did.
//!
//! Needs root, and the tools that `tests/run.sh` installs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod changes;
#[path = "../common/mod.rs"]
mod common;
mod holes;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Entry, Mounted, assert_same_tree, lxcri_fs, run, stderr, tree};
use proptest::prelude::*;
use serde_json::Value;

use changes::{Op, apply, op};

fn sh(dir: &Path, script: &str) -> String {
    run(Command::new("bash").args(["-euc", script]).current_dir(dir))
}

/// An image of two layers with all that an upper may touch: files with several names in several
/// directories, attributes, devices.
fn image(dir: &Path) -> PathBuf {
    sh(
        dir,
        r"
        mkdir -p one/a/b/c one/d/e one/f two/d/e
        for p in x a/x a/y a/b/x a/b/c/x d/x d/e/x f/x f/y; do echo $p > one/$p; done
        ln one/a/b/x one/d/linked; ln one/a/b/x one/f/linked; ln one/x one/a/linked
        head -c 200000 /dev/urandom > one/f/large
        ln -s ../x one/a/sym
        mknod one/d/null c 1 3
        mkfifo one/f/fifo
        ln one/f/fifo one/f/fifo2
        setfattr -n user.k -v v one/a one/a/x
        chown 1000:1001 one/d/x
        chmod 4755 one/a/y
        cp /bin/true one/f/cap
        setcap cap_net_raw+ep one/f/cap
        echo two > two/d/e/two
        ln two/d/e/two two/d/two
        touch -d '2001-02-03 04:05:06.789' one/a/b two/d/e",
    );
    let image = dir.join("image.bfc");
    run(lxcri_fs()
        .arg("build")
        .arg(dir.join("one"))
        .arg("--layer")
        .arg(dir.join("two"))
        .arg("-o")
        .arg(&image));
    image
}

struct Fixture {
    dir: tempfile::TempDir,
    image: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = image(dir.path());
        Self { dir, image }
    }

    fn path(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    fn mount(&self, image: &Path, args: &[&str], name: &str) -> Mounted {
        let mut all = vec![image.to_str().unwrap()];
        all.extend(args);
        Mounted::new(&all, &self.path(name))
    }
}

/// A tree whose link counts are those of the names that are in it. Where the kernel copies up one
/// name of a file alone, overlayfs goes on counting it among the others.
fn counted(mut tree: BTreeMap<Vec<u8>, Entry>) -> BTreeMap<Vec<u8>, Entry> {
    let mut names: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    for first in tree.values().filter_map(|e| e.linked_to.clone()) {
        *names.entry(first).or_default() += 1;
    }
    for entry in tree.values_mut().filter(|e| e.nlink.is_some()) {
        let count = entry.linked_to.as_ref().map_or(1, |first| names[first]);
        entry.nlink = Some(count);
        entry.linked_to = entry.linked_to.take().filter(|_| count > 1);
    }
    tree
}

/// What a mount with an upper shows. Names that are one file in the upper are one file: where the
/// kernel does not find lower files by handle, overlayfs gives them different numbers.
fn merged_tree(merged: &Path, upper: &Path) -> BTreeMap<Vec<u8>, Entry> {
    let mut tree = tree(merged);
    let mut first: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let paths: Vec<Vec<u8>> = tree.keys().cloned().collect();
    for path in paths {
        let Ok(meta) = upper
            .join("upper")
            .join(OsStr::from_bytes(&path))
            .symlink_metadata()
        else {
            continue;
        };
        if meta.is_dir() || meta.nlink() < 2 {
            continue;
        }
        let first = first.entry(meta.ino()).or_insert_with(|| {
            tree[&path]
                .linked_to
                .clone()
                .unwrap_or_else(|| path.clone())
        });
        tree.get_mut(&path).unwrap().linked_to = Some(first.clone());
    }
    counted(tree)
}

fn diff(upper: &Path) -> BTreeMap<Vec<u8>, char> {
    let output = run(lxcri_fs().arg("diff").arg(upper).arg("--json"));
    let rows = output
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.map(|row| {
        let path = row["path"]
            .as_str()
            .unwrap()
            .strip_prefix('/')
            .unwrap()
            .as_bytes()
            .to_vec();
        (path, row["kind"].as_str().unwrap().chars().next().unwrap())
    })
    .collect()
}

/// What `diff` must print, by comparison of the trees: every difference, and no addition or removal
/// that did not happen.
fn check_diff(
    lower: &BTreeMap<Vec<u8>, Entry>,
    merged: &BTreeMap<Vec<u8>, Entry>,
    found: &BTreeMap<Vec<u8>, char>,
) {
    let parent = |path: &[u8]| {
        path.iter()
            .rposition(|&b| b == b'/')
            .map_or(Vec::new(), |at| path[..at].to_vec())
    };
    let added: BTreeSet<_> = merged.keys().filter(|p| !lower.contains_key(*p)).collect();
    let of = |kind| {
        found
            .iter()
            .filter(move |(_, k)| **k == kind)
            .map(|(p, _)| p)
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(of('A'), added);
    // What was in a directory that is gone goes without saying.
    let is_dir = |path: &[u8]| {
        merged
            .get(path)
            .is_some_and(|e| e.mode & 0o170_000 == 0o040_000)
    };
    let deleted: BTreeSet<_> = lower
        .keys()
        .filter(|p| !merged.contains_key(*p) && is_dir(&parent(p)))
        .collect();
    assert_eq!(of('D'), deleted);
    let changed = of('C');
    for (path, entry) in merged.iter().filter(|(path, _)| !path.is_empty()) {
        let same = |old: &Entry| {
            // A name less is no change of the file under its other names.
            let (mut old, mut new) = (old.clone(), entry.clone());
            (old.nlink, old.linked_to, new.nlink, new.linked_to) = (None, None, None, None);
            old == new
        };
        if lower.get(path).is_some_and(|old| !same(old)) {
            assert!(
                changed.contains(path),
                "{} has changed",
                path.escape_ascii()
            );
        }
    }
    assert!(
        changed
            .iter()
            .all(|p| lower.contains_key(*p) && merged.contains_key(*p))
    );
}

fn check_commit(fixture: &Fixture, ops: &[Op]) {
    let upper = fixture.path("upper");
    let args = ["--upper", upper.to_str().unwrap()];
    let lower = {
        let _mounted = fixture.mount(&fixture.image, &[], "lower");
        tree(&fixture.dir.path().join("lower"))
    };
    let mut mounted = Some(fixture.mount(&fixture.image, &args, "merged"));
    let merged = fixture.dir.path().join("merged");
    for op in ops {
        if matches!(op, Op::Remount) {
            drop(mounted.take());
            mounted = Some(fixture.mount(&fixture.image, &args, "merged"));
        } else {
            apply(&merged, op);
        }
    }
    let expected = merged_tree(&merged, &upper);
    check_diff(&lower, &expected, &diff(&merged));
    let new = fixture.dir.path().join("new.bfc");
    run(lxcri_fs()
        .arg("commit")
        .arg(&merged)
        .arg("--force")
        .arg("-o")
        .arg(&new));
    drop(mounted);
    run(lxcri_fs().arg("verify").arg(&new));
    {
        let _mounted = fixture.mount(&new, &[], "committed");
        assert_same_tree(
            &expected,
            &counted(tree(&fixture.dir.path().join("committed"))),
        );
    }
    std::fs::remove_dir_all(&upper).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_committed_image_looks_as_the_mount_did(ops in prop::collection::vec(op(), 1..40)) {
        check_commit(&Fixture::new(), &ops);
    }
}

/// A file with attributes gets a name in a directory that has a later number.
#[test]
fn a_linked_file_keeps_its_attributes_under_all_names() {
    let linked = || "f/linked".to_owned();
    let ops = [
        Op::Remove(linked()),
        Op::Link("a/x".to_owned(), linked()),
        Op::Rename("a/x".to_owned(), "a/b/c/x".to_owned()),
    ];
    check_commit(&Fixture::new(), &ops);
}

#[test]
fn changes_that_overlayfs_marks_are_committed() {
    use Op::*;
    let s = str::to_owned;
    let cases: [&[Op]; 10] = [
        &[],
        // A file is copied up under all its names, of which one is removed again.
        &[Append(s("a/b/x")), Remove(s("a/b/x"))],
        &[
            Append(s("d/linked")),
            Remount,
            Rename(s("f"), s("new")),
            Append(s("new/large")),
        ],
        // Directories of the image are elsewhere, one in the other, and others take their names.
        &[
            Rename(s("a/b"), s("new")),
            Rename(s("d"), s("new/c/d")),
            Remount,
            Mkdir(s("d")),
            Write(s("d/x"), 5),
        ],
        &[
            Rename(s("a"), s("new")),
            Rename(s("f"), s("a")),
            Rename(s("new"), s("f")),
            Remove(s("f/x")),
        ],
        // A directory takes the place of another, and shows nothing of it.
        &[
            RemoveTree(s("a/b")),
            Mkdir(s("a/b")),
            Write(s("a/b/x"), 1),
            Rename(s("d"), s("a/b/c")),
        ],
        &[
            RemoveTree(s("a")),
            Rename(s("d"), s("a")),
            Rename(s("f"), s("a/new")),
        ],
        // Owners and modes change, and no content.
        &[
            Chown(s("f/large"), 7),
            Chmod(s("f/linked"), 0o600),
            Rename(s("f/large"), s("a/y")),
            Link(s("a/y"), s("d/new")),
        ],
        &[
            Link(s("a/sym"), s("new")),
            Link(s("f/fifo"), s("b")),
            Chown(s("d/null"), 4),
        ],
        &[
            Write(s("f"), 3),
            RemoveTree(s("d")),
            Write(s("d"), 3),
            Remove(s("x")),
            Mkdir(s("x")),
        ],
    ];
    for ops in cases {
        println!("{ops:?}");
        check_commit(&Fixture::new(), ops);
    }
}

/// In the mounts of the host's root, `user.overlay.*` are attributes like any others: what a
/// container's user sets there has no meaning for `commit`.
#[test]
fn attributes_set_by_container_users_are_not_marks() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
        chmod 755 .
        mkdir -p root/etc root/home/dir merged
        echo SECRET > root/etc/shadow
        chmod 600 root/etc/shadow
        echo 1 > root/home/dir/kept
        chown -R 1000:1000 root/home
        "$PROGRAM" build root -o image.bfc; "$PROGRAM" mount image.bfc merged --upper up
        cd merged/home; setpriv --reuid=1000 --regid=1000 --clear-groups sh -ec '
            truncate -s 7 steal
            setfattr -n user.overlay.metacopy steal
            setfattr -n user.overlay.redirect -v /etc/shadow steal
            touch dir/new gone
            setfattr -n user.overlay.opaque -v y dir
            setfattr -n user.overlay.whiteout gone
            mkdir more
            setfattr -n user.overlay.redirect -v /etc more
            setfattr -n user.overlay.overlay.opaque -v y more'
        cd ../..
        look() {
            find home -printf '%P %y %u %s\n' | sort | grep -v ' d '
            cat home/steal | tr -d '\0'
            find home | sort | xargs getfattr -d -m user --absolute-names 2>/dev/null || :
        }
        (cd merged; look) > before
        "$PROGRAM" diff up > diff
        "$PROGRAM" umount merged
        "$PROGRAM" commit up -o new.bfc >/dev/null
        "$PROGRAM" mount new.bfc merged
        (cd merged; look) > after
        "$PROGRAM" umount merged
        diff before after
        ! grep SECRET after
        cat diff"#;
    let script = script.replace("$PROGRAM", env!("CARGO_BIN_EXE_lxcri-fs"));
    let found = sh(dir.path(), &script);
    let expected =
        "C /home\nC /home/dir\nA /home/dir/new\nA /home/gone\nA /home/more\nA /home/steal\n";
    assert!(found.ends_with(expected), "{found}");
}

#[test]
fn an_upper_is_not_read_while_it_is_written_to() {
    let fixture = Fixture::new();
    let upper = fixture.path("upper");
    let _mounted = fixture.mount(
        &fixture.image,
        &["--upper", upper.to_str().unwrap()],
        "merged",
    );
    let merged = fixture.dir.path().join("merged");
    let new = fixture.dir.path().join("new.bfc");
    {
        let _open = std::fs::File::create(merged.join("open")).unwrap();
        let output = lxcri_fs()
            .arg("commit")
            .arg(&upper)
            .arg("-o")
            .arg(&new)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(6), "{}", stderr(&output));
        assert!(
            stderr(&output).contains("is being written to"),
            "{}",
            stderr(&output)
        );
        assert!(!new.exists());
    }
    run(lxcri_fs().arg("commit").arg(&upper).arg("-o").arg(&new));
    std::fs::write(merged.join("open"), "it can be written to again").unwrap();
}

#[test]
fn commit_in_place_adds_a_layer_and_a_new_upper_shows_the_same() {
    let fixture = Fixture::new();
    let upper = fixture.path("upper");
    let expected = {
        let _mounted = fixture.mount(
            &fixture.image,
            &["--upper", upper.to_str().unwrap()],
            "merged",
        );
        let merged = fixture.dir.path().join("merged");
        sh(&merged, "echo more >> d/linked; rm -r f; mv a/b b");
        merged_tree(&merged, &upper)
    };
    run(lxcri_fs()
        .arg("commit")
        .arg(&upper)
        .args(["--in-place", "-m", "what was done"]));
    let info: Value = serde_json::from_str(&run(lxcri_fs()
        .args(["info", "--json"])
        .arg(&fixture.image)))
    .unwrap();
    assert_eq!(info["layers"].as_array().unwrap().len(), 3);
    assert_eq!(info["layers"][2]["created_by"], "what was done");
    // What layers share counts once.
    assert!(info["stored_bytes"].as_u64() < info["bytes"].as_u64());
    {
        let other = fixture.path("other");
        let _mounted = fixture.mount(
            &fixture.image,
            &["--upper", other.to_str().unwrap()],
            "merged",
        );
        assert_same_tree(
            &expected,
            &counted(tree(&fixture.dir.path().join("merged"))),
        );
    }
    // The old upper does not belong to what the image is now.
    let output = lxcri_fs()
        .arg("mount")
        .arg(&fixture.image)
        .arg(fixture.path("merged"))
        .arg("--upper")
        .arg(&upper)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("belongs to"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn commit_shifts_ids_back_to_those_of_the_image() {
    let fixture = Fixture::new();
    let upper = fixture.path("upper");
    let shifted = {
        let _mounted = fixture.mount(
            &fixture.image,
            &[
                "--upper",
                upper.to_str().unwrap(),
                "--idmap",
                "0:100000:65536",
            ],
            "merged",
        );
        let merged = fixture.dir.path().join("merged");
        sh(
            &merged,
            "echo new > new; chown 100005:100006 new; echo more >> d/x; chown -h 100007 a/sym; \
             mkdir dir; chown 100000:100000 dir; setfacl -m u:100009:r new",
        );
        counted(tree(&merged))
    };
    let new = fixture.dir.path().join("new.bfc");
    run(lxcri_fs().arg("commit").arg(&upper).arg("-o").arg(&new));
    let _mounted = fixture.mount(&new, &[], "committed");
    let committed = fixture.dir.path().join("committed");
    let acl = sh(&committed, "getfacl -n new");
    assert!(acl.contains("user:9:r--"), "{acl}");
    let mut found = counted(tree(&committed));
    for entry in found.values_mut() {
        entry.uid += 100_000;
        entry.gid += 100_000;
    }
    let without_ids = |tree: BTreeMap<Vec<u8>, Entry>| -> BTreeMap<_, _> {
        let ids = [
            b"system.posix_acl_access".to_vec(),
            b"security.capability".to_vec(),
        ];
        tree.into_iter()
            .map(|(p, e)| {
                (
                    p,
                    Entry {
                        xattrs: e
                            .xattrs
                            .into_iter()
                            .filter(|(n, _)| !ids.contains(n))
                            .collect(),
                        ..e
                    },
                )
            })
            .collect()
    };
    assert_same_tree(&without_ids(shifted), &without_ids(found));
}

#[test]
fn the_directory_of_an_upper_is_not_taken_for_a_layer() {
    let fixture = Fixture::new();
    let upper = fixture.path("upper");
    drop(fixture.mount(
        &fixture.image,
        &["--upper", upper.to_str().unwrap()],
        "merged",
    ));
    let new = fixture.dir.path().join("new.bfc");
    let args = |layer: &Path| [layer.into(), "-o".into(), new.clone().into_os_string()];
    let output = lxcri_fs().arg("build").args(args(&upper)).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(
        said.contains("is the directory of an upper") && said.contains("lxcri-fs commit"),
        "{said}"
    );
    run(lxcri_fs().arg("build").args(args(&upper.join("upper"))));
}

/// A layer has no way to say these names: they delete others.
#[test]
fn names_that_layers_use_for_deletions_are_refused() {
    let fixture = Fixture::new();
    let upper = fixture.path("upper");
    let new = fixture.dir.path().join("new.bfc");
    let commit = || {
        lxcri_fs()
            .arg("commit")
            .arg(&upper)
            .arg("-o")
            .arg(&new)
            .output()
            .unwrap()
    };
    for name in [".wh.keep", ".wh..wh..opq"] {
        let mounted = fixture.mount(
            &fixture.image,
            &["--upper", upper.to_str().unwrap()],
            "merged",
        );
        std::fs::write(mounted.0.join(name), "").unwrap();
        drop(mounted);
        let output = commit();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        let said = stderr(&output);
        assert!(
            said.contains(name) && said.contains("begins with `.wh.`"),
            "{said}"
        );
        assert!(!new.exists());
        std::fs::remove_file(upper.join("upper").join(name)).unwrap();
    }
    assert!(commit().status.success());
}

/// Build, append and commit change the configuration as `--change` says, and keep the rest of it.
#[test]
fn the_configuration_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let config = |image: &str| -> Value {
        let info = run(lxcri_fs().args(["info", "--json", image]).current_dir(dir));
        serde_json::from_str::<Value>(&info).unwrap()["config"]["config"].take()
    };
    let lxcri_fs = |args: &[&str]| drop(run(lxcri_fs().args(args).current_dir(dir)));
    sh(
        dir,
        "mkdir root layer mnt; echo 1 > root/one; echo 2 > layer/two",
    );
    let (cmd, env) = (r#"CMD ["sleep","9"]"#, "ENV A=1");
    lxcri_fs(&["build", "root", "-o", "a.bfc", "--change", cmd, "-c", env]);
    assert_eq!(
        config("a.bfc"),
        serde_json::json!({ "Cmd": ["sleep", "9"], "Env": ["A=1"] })
    );
    // Without layers of its own, an image is built that differs in its configuration only.
    lxcri_fs(&["build", "a.bfc", "-o", "b.bfc", "--change", "USER 5"]);
    assert_eq!(
        config("b.bfc"),
        serde_json::json!({ "Cmd": ["sleep", "9"], "Env": ["A=1"], "User": "5" })
    );
    lxcri_fs(&["append", "b.bfc", "layer", "--change", "LABEL x=y"]);
    assert_eq!(
        config("b.bfc"),
        serde_json::json!({
            "Cmd": ["sleep", "9"], "Env": ["A=1"], "User": "5", "Labels": { "x": "y" },
        })
    );
    lxcri_fs(&["mount", "b.bfc", "mnt", "--upper", "upper"]);
    sh(dir, "echo 3 > mnt/three; umount mnt");
    lxcri_fs(&[
        "commit",
        "upper",
        "-o",
        "c.bfc",
        "--change",
        "ENV A=2",
        "--change",
        "WORKDIR /w",
    ]);
    assert_eq!(
        config("c.bfc"),
        serde_json::json!({
            "Cmd": ["sleep", "9"], "Env": ["A=2"], "User": "5", "Labels": { "x": "y" },
            "WorkingDir": "/w",
        })
    );
    lxcri_fs(&["verify", "a.bfc"]);
    lxcri_fs(&["verify", "c.bfc"]);
    // Where there was no history, each layer gets its entry.
    sh(
        dir,
        "umoci init --layout oci; umoci new --image oci:t; umoci insert --image oci:t root /r
        python3 - <<'P'
import hashlib, json, os
def read(d): return json.load(open('oci/blobs/sha256/' + d['digest'][7:]))
def write(o):
    data = json.dumps(o).encode(); name = hashlib.sha256(data).hexdigest()
    open('oci/blobs/sha256/' + name, 'wb').write(data)
    return {'digest': 'sha256:' + name, 'size': len(data)}
index = json.load(open('oci/index.json')); top = index['manifests'][0]
manifest = read(top); config = read(manifest['config'])
del config['history']
manifest['config'].update(write(config)); top.update(write(manifest))
json.dump(index, open('oci/index.json', 'w'))
P",
    );
    lxcri_fs(&["build", "oci:oci:t", "-o", "e.bfc"]);
    lxcri_fs(&["append", "e.bfc", "layer"]);
    let info = run(common::lxcri_fs()
        .args(["info", "--json", "e.bfc"])
        .current_dir(dir));
    let info: Value = serde_json::from_str(&info).unwrap();
    let count = |list: &Value| list.as_array().map(Vec::len);
    assert_eq!(count(&info["config"]["history"]), count(&info["layers"]));
    let said = common::lxcri_fs()
        .args(["build", "root", "-o", "d.bfc", "--change", "FROM x"])
        .current_dir(dir)
        .output()
        .unwrap();
    assert_eq!(said.status.code(), Some(2));
    assert!(stderr(&said).contains("FROM is not one of CMD"));
}
