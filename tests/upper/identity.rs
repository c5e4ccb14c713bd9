//! What identifies an upper, which image and ids it belongs to, and how it was written.

use std::path::Path;
use std::process::Command;

use crate::common::{Mounted, build_image, handles_are_stale, is_split, lxcri_fs, run, stderr};
use serde_json::Value;

use super::{Fixture, mounts, sh};

#[test]
fn an_upper_belongs_to_one_image_one_id_map_and_one_mount() {
    let fixture = Fixture::new();
    let upper = fixture.upper("upper");
    {
        let _mounted = fixture.mount(&["--upper", &upper], "merged");
        let output = fixture.try_mount(&["--upper", &upper], "second");
        assert_eq!(output.status.code(), Some(6), "{}", stderr(&output));
        let expected = format!(
            "is in use by what is mounted on {}",
            fixture.path("merged").display()
        );
        assert!(stderr(&output).contains(&expected), "{}", stderr(&output));
        let output = fixture.try_mount(&["--ephemeral"], "merged");
        assert_eq!(output.status.code(), Some(6), "{}", stderr(&output));
    }
    let output = fixture.try_mount(&["--upper", &upper, "--idmap", "0:100000:65536"], "merged");
    assert!(
        stderr(&output).contains("belongs to the image's own ids, not to the ids 0:100000:65536"),
        "{}",
        stderr(&output)
    );
    let other = fixture.path("other.bfc");
    build_image(fixture.path("root/bin"), &other);
    let output = lxcri_fs()
        .arg("mount")
        .arg(&other)
        .args(["--upper", &upper])
        .arg(fixture.path("merged"))
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(
        stderr(&output).contains(&format!("belongs to {}", fixture.image.display())),
        "{}",
        stderr(&output)
    );
    assert!(stderr(&output).contains("commit"), "{}", stderr(&output));
    assert!(!mounts().contains(fixture.path("merged").to_str().unwrap()));
    // The image may have moved: it is told by what it is.
    std::fs::rename(&fixture.image, fixture.path("moved.bfc")).unwrap();
    let _mounted = Mounted::new(
        &[
            fixture.path("moved.bfc").to_str().unwrap(),
            "--upper",
            &upper,
        ],
        &fixture.path("merged"),
    );
}

/// Overlayfs gets descriptors: neither the length of a path matters nor what it names later.
#[test]
fn an_upper_is_identified_by_its_inode_not_by_its_path() {
    let fixture = Fixture::new();
    let long = fixture.upper(&["x".repeat(200), "y".repeat(200), "z".repeat(200)].join("/"));
    {
        let _mounted = fixture.mount(&["--upper", &long], "merged");
        sh(&fixture.path("merged"), "echo new > new");
        let second = fixture.try_mount(&["--upper", &long], "second");
        assert_eq!(second.status.code(), Some(6), "{}", stderr(&second));
        assert_eq!(run(lxcri_fs().arg("diff").arg(&long)), "A /new\n");
        let diff = lxcri_fs()
            .arg("diff")
            .arg(fixture.path("merged"))
            .output()
            .unwrap();
        assert!(
            stderr(&diff).contains("too long for mountinfo"),
            "{}",
            stderr(&diff)
        );
    }
    assert_eq!(sh(Path::new(&long), "cat upper/new"), "new\n");
    let upper = fixture.upper("upper");
    let _mounted = fixture.mount(&["--upper", &upper], "merged");
    std::fs::rename(&upper, fixture.path("renamed")).unwrap();
    std::os::unix::fs::symlink("renamed", &upper).unwrap();
    for name in ["renamed", "upper"] {
        let second = fixture.try_mount(&["--upper", &fixture.upper(name)], "second");
        let expected = format!(
            "is in use by what is mounted on {}",
            fixture.path("merged").display()
        );
        assert!(
            second.status.code() == Some(6) && stderr(&second).contains(&expected),
            "{}",
            stderr(&second)
        );
    }
    let _open = std::fs::File::create(fixture.path("merged/open")).unwrap();
    let commit = lxcri_fs()
        .arg("commit")
        .arg(fixture.path("renamed"))
        .arg("-o")
        .arg(fixture.path("new.bfc"))
        .output()
        .unwrap();
    assert!(
        stderr(&commit).contains("is being written to"),
        "{}",
        stderr(&commit)
    );
}

/// A directory with other files, or the upper of another image, is not used as an upper.
#[test]
fn a_directory_that_is_not_an_upper_does_not_become_one() {
    let fixture = Fixture::new();
    let refused = |name: &str, said: &str| {
        let output = fixture.try_mount(&["--upper", &fixture.upper(name)], "merged");
        assert_eq!(output.status.code(), Some(1), "{name}: {}", stderr(&output));
        assert!(
            stderr(&output).contains(said),
            "{name}: {}",
            stderr(&output)
        );
    };
    sh(
        fixture.dir.path(),
        "mkdir -p home/me data file link target new/lost+found; echo mine > home/.profile; touch \
         file/upper; ln -s ../target link/upper
        mkdir -p unknown/upper unknown/work; echo x > unknown/upper/x; mkdir -p made/upper \
         made/work; chmod 755 made",
    );
    for name in ["home", "."] {
        refused(name, "is not an upper, and not empty");
    }
    assert_eq!(
        sh(fixture.dir.path(), "find home | sort"),
        "home\nhome/.profile\nhome/me\n"
    );
    refused("unknown", "it has no record of one");
    for name in ["file", "link"] {
        let output = fixture.try_mount(&["--upper", &fixture.upper(name)], "merged");
        assert!(!output.status.success(), "{name}");
    }
    assert_eq!(
        sh(fixture.dir.path(), "find target link file"),
        "target\nlink\nlink/upper\nfile\nfile/upper\n"
    );
    // What a mount that was killed has left is empty.
    for name in ["new", "made"] {
        let _mounted = fixture.mount(&["--upper", &fixture.upper(name)], "merged");
        assert_eq!(
            sh(fixture.dir.path(), &format!("stat -c %a {name}")),
            "700\n"
        );
        sh(&fixture.path("merged"), "echo x > x");
    }
    std::fs::remove_file(fixture.path("made/lxcri-fs.json")).unwrap();
    refused("made", "it has no record of one");
    // A record is no symlink, and does not wait for a writer.
    sh(
        fixture.dir.path(),
        "mv new/lxcri-fs.json record; ln -s ../record new/lxcri-fs.json",
    );
    assert!(
        !fixture
            .try_mount(&["--upper", &fixture.upper("new")], "merged")
            .status
            .success()
    );
    sh(
        fixture.dir.path(),
        "rm new/lxcri-fs.json; mkfifo new/lxcri-fs.json",
    );
    assert!(
        !fixture
            .try_mount(&["--upper", &fixture.upper("new")], "merged")
            .status
            .success()
    );
}

/// The record says how overlayfs wrote an upper; where its marks would be taken for something else,
/// it is not mounted.
#[test]
fn an_upper_records_how_it_was_written() {
    let fixture = Fixture::new();
    let upper = fixture.upper("upper");
    drop(fixture.mount(&["--upper", &upper], "merged"));
    let read = || {
        serde_json::from_slice::<Value>(
            &std::fs::read(fixture.path("upper/lxcri-fs.json")).unwrap(),
        )
        .unwrap()
    };
    let overlay = &read()["overlay"];
    assert_eq!(
        (
            &overlay["marks"],
            &overlay["metacopy"],
            &overlay["redirect_dir"]
        ),
        (&"trusted".into(), &true.into(), &true.into())
    );
    sh(
        &fixture.path("upper"),
        "sed -i 's/\"trusted\"/\"user\"/' lxcri-fs.json",
    );
    let output = fixture.try_mount(&["--upper", &upper], "merged");
    assert!(
        stderr(&output).contains("user.overlay.*"),
        "{}",
        stderr(&output)
    );
    // One of before says nothing, and is the host's root's.
    let before = r#"
import json
record = json.load(open("lxcri-fs.json"))
del record["overlay"]
json.dump(record, open("lxcri-fs.json", "w"))"#;
    run(Command::new("python3")
        .args(["-c", before])
        .current_dir(fixture.path("upper")));
    drop(fixture.mount(&["--upper", &upper], "merged"));
    assert_eq!(read()["overlay"]["marks"], "trusted");
}

/// On Linux before 6.16, overlayfs finds a file that is copied up by all its names, of which the
/// upper has those that were used: later kernels would show the image's old content under the
/// others.
#[test]
fn an_upper_with_an_index_is_completed_on_kernels_without() {
    let dir = tempfile::tempdir().unwrap();
    sh(
        dir.path(),
        "mkdir -p root/a root/b/c root/m/sub merged; echo old > root/a/1; ln root/a/1 root/b/c/2; \
         ln root/a/1 root/3
        echo same > root/a/meta; ln root/a/meta root/b/meta; echo gone > root/a/gone; ln \
         root/a/gone root/b/gone; echo in > root/m/x; ln root/m/x root/m/sub/y
        chown 7:8 root/b; chmod 2750 root/b; setfattr -n user.b -v yes root/b; touch -d \
         '2001-02-03 04:05:06.5' root/b root/b/c",
    );
    let (image, merged) = (dir.path().join("image.bfc"), dir.path().join("merged"));
    build_image(dir.path().join("root"), &image);
    let mount = || {
        Mounted::new(
            &[
                image.to_str().unwrap(),
                "--engine",
                "fuse",
                "--upper",
                dir.path().join("up").to_str().unwrap(),
            ],
            &merged,
        )
    };
    if !handles_are_stale() {
        eprintln!("NOT TESTED: this kernel has an index");
        return;
    }
    // What an earlier kernel leaves: the names that were used, and an entry of the index for each
    // file.
    sh(
        dir.path(),
        r#"
        "$0" mount --engine fuse image.bfc merged
        for f in a/1 a/meta a/gone m/x; do stat -c %i merged/$f > ino-${f#*/}; done
        "$0" umount merged"#
            .replace("$0", env!("CARGO_BIN_EXE_lxcri-fs"))
            .as_str(),
    );
    {
        let _mounted = mount();
        sh(
            &merged,
            "echo new >> a/1; chown 5 a/meta; echo more >> a/gone",
        );
    }
    let entry = r#"
        entry() {
            printf 'work/index/00fb210081%032d00000000%s00000000' 0 "$(python3 -c '
import sys
print(int(sys.argv[1]).to_bytes(4, "little").hex())' "$(cat ../ino-$1)")"
        }"#;
    let fabricate = format!(
        r#"{entry}
        mkdir -p work/index
        ln upper/a/1 "$(entry 1)"
        ln upper/a/meta "$(entry meta)"
        mv upper/a/gone "$(entry gone)"
        mknod upper/a/gone c 0 0
        sed -i 's/"index": false/"index": true/' lxcri-fs.json"#
    );
    sh(&dir.path().join("up"), &fabricate);
    {
        let _mounted = mount();
        let found = sh(
            &merged,
            "cat 3 b/c/2; stat -c %u b/meta; cat b/meta b/gone; ls a; stat -c '%a %u:%g %Y' b; \
             getfattr --only-values -n user.b b",
        );
        assert_eq!(
            found,
            "old\nnew\nold\nnew\n5\nsame\ngone\nmore\n1\nmeta\n2750 7:8 981173106\nyes"
        );
        // They are one file from now on, also when it is written to.
        sh(
            &merged,
            "echo last > 3; [ \"$(cat a/1 b/c/2)\" = $'last\nlast' ]; [ $(stat -c %i a/1 3 b/c/2 \
             | sort -u | wc -l) = 1 ]; [ $(stat -c %h a/1) = 3 ]",
        );
    }
    assert_eq!(
        sh(
            &dir.path().join("up"),
            "ls work/index; grep -c '\"index\": false' lxcri-fs.json"
        ),
        "1\n"
    );
    let diff = run(lxcri_fs().arg("diff").arg(dir.path().join("up")));
    assert_eq!(
        diff,
        "C /3\nC /a\nC /a/1\nD /a/gone\nC /a/meta\nC /b\nC /b/c\nC /b/c/2\nC /b/gone\nC /b/meta\n"
    );
    // A name below a directory that has moved is overlayfs's to make: refused, with what there is
    // to do.
    {
        let _mounted = mount();
        sh(&merged, "echo new >> m/x; mv m moved");
    }
    let fabricate = format!(
        r#"{entry}
        mkdir -p work/index
        ln upper/moved/x "$(entry x)"
        sed -i 's/"index": false/"index": true/' lxcri-fs.json"#
    );
    sh(&dir.path().join("up"), &fabricate);
    let output = lxcri_fs()
        .arg("mount")
        .arg(&image)
        .arg("--upper")
        .arg(dir.path().join("up"))
        .arg(&merged)
        .output()
        .unwrap();
    assert!(
        !output.status.success() && stderr(&output).contains("moved/sub/y"),
        "{}",
        stderr(&output)
    );
    assert!(
        stderr(&output).contains("lxcri-fs commit"),
        "{}",
        stderr(&output)
    );
    let new = dir.path().join("new.bfc");
    run(lxcri_fs()
        .arg("commit")
        .arg(dir.path().join("up"))
        .arg("-o")
        .arg(&new));
    let _mounted = Mounted::new(&[new.to_str().unwrap()], &merged);
    assert_eq!(sh(&merged, "cat moved/sub/y b/c/2"), "in\nnew\nlast\n");
}

/// Another version of the kernel may name the image's files by another kind of handle, which
/// overlayfs then does not find in its index.
#[test]
fn an_index_with_other_handles_is_completed() {
    if !is_split() {
        eprintln!("NOT TESTED: this host mounts no EROFS");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    sh(
        dir.path(),
        "mkdir -p root/a root/b merged; echo old > root/a/1; ln root/a/1 root/b/2",
    );
    let (image, merged) = (dir.path().join("image.bfc"), dir.path().join("merged"));
    build_image(dir.path().join("root"), &image);
    let up = dir.path().join("up");
    let mount = || {
        Mounted::new(
            &[image.to_str().unwrap(), "--upper", up.to_str().unwrap()],
            &merged,
        )
    };
    {
        let _mounted = mount();
        sh(&merged, "echo new >> a/1");
    }
    // What the kernel names now, and what it says it did.
    assert_ne!(sh(&up, "ls work/index"), "");
    assert_eq!(sh(&up, "ls upper"), "a\n");
    sh(
        &up,
        "sed -i 's/\"handles\": [0-9]*/\"handles\": 77/' lxcri-fs.json; grep -q 77 lxcri-fs.json",
    );
    let _mounted = mount();
    assert_eq!(sh(&merged, "cat b/2"), "old\nnew\n");
    assert_eq!(sh(&merged, "stat -c %h a/1 b/2"), "2\n2\n");
    assert_eq!(sh(&up, "ls upper/b"), "2\n");
    assert!(!sh(&up, "cat lxcri-fs.json").contains("77"));
}
