//! Snapshots of uppers: rollbacks and clones.

use std::path::Path;
use std::process::Command;

use crate::common::zfs::{property, zfs};
use crate::common::{Mounted, assert_same_tree, hard_links_part, lxcri_fs, run, stderr, tree};

use super::{Setup, change, fails};

#[test]
fn zfs_a_rollback_restores_everything_a_snapshot_holds() {
    let Some(setup) = Setup::new() else { return };
    let mounted = setup.mount("web", &["-o", "suid,nodev"]);
    let (root, upper) = (&mounted.0, setup.upper("web"));
    change(root);
    let then = tree(root);
    // By the name of the dataset, and by where it is mounted.
    run(lxcri_fs().args(["snapshot", &format!("{upper}@first")]));
    fails(1, lxcri_fs().args(["snapshot", &format!("{upper}@first")]));
    std::fs::write(root.join("etc/hostname"), "later\n").unwrap();
    std::fs::remove_dir_all(root.join("data/renamed")).unwrap();
    run(lxcri_fs()
        .arg("snapshot")
        .arg(format!("{}@second", root.display())));
    std::fs::remove_file(root.join("new/file")).unwrap();

    let listed = run(lxcri_fs().args(["snapshots", "--json", &upper]));
    let rows: Vec<serde_json::Value> = listed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        rows.iter()
            .map(|row| row["name"].as_str().unwrap())
            .collect::<Vec<_>>(),
        ["first", "second"]
    );
    // As docs/JSON.md has it.
    let fields: Vec<_> = rows[0].as_object().unwrap().keys().collect();
    assert_eq!(
        fields,
        [
            "clones",
            "created",
            "name",
            "referenced",
            "snapshot",
            "used"
        ]
    );
    let created = rows[0]["created"].as_str().unwrap();
    assert!(created.parse::<jiff::Timestamp>().is_ok(), "{created}");
    assert_eq!(
        rows[0]["snapshot"],
        format!("{}@first", setup.scratch.child("web"))
    );
    assert!(
        run(lxcri_fs().args(["snapshots", &upper]))
            .lines()
            .nth(2)
            .unwrap()
            .starts_with("second ")
    );

    let rollback = |name: &str| {
        let mut command = lxcri_fs();
        command.args(["rollback", &format!("{upper}@{name}")]);
        command
    };
    let output = fails(6, &mut rollback("second"));
    assert!(
        stderr(&output).contains(root.to_str().unwrap()) && stderr(&output).contains("--force"),
        "{}",
        stderr(&output)
    );
    fails(5, rollback("third").arg("--force"));
    let output = fails(6, rollback("first").arg("--force"));
    assert!(
        stderr(&output).contains("second") && stderr(&output).contains("--destroy-newer"),
        "{}",
        stderr(&output)
    );
    // Somebody uses it: nothing happens.
    let file = std::fs::File::open(root.join("etc/hostname")).unwrap();
    fails(6, rollback("second").arg("--force"));
    drop(file);
    assert_eq!(
        std::fs::read_to_string(root.join("etc/hostname")).unwrap(),
        "later\n"
    );
    run(rollback("second").arg("--force"));
    assert_eq!(
        std::fs::read_to_string(root.join("new/file")).unwrap(),
        "new\n"
    );
    run(rollback("first").args(["--force", "--destroy-newer"]));
    assert_same_tree(&then, &tree(root));
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mountinfo
        .lines()
        .find(|line| line.contains(&format!(" {} ", root.display())))
        .unwrap();
    assert!(line.contains("nodev") && !line.contains("nosuid"), "{line}");
    // Unmounted, no force is needed.
    std::fs::write(root.join("etc/hostname"), "lost\n").unwrap();
    drop(mounted);
    run(&mut rollback("first"));
    let mounted = setup.mount("web", &[]);
    assert_same_tree(&then, &tree(&mounted.0));
    run(lxcri_fs().args(["snapshot", "--delete", &format!("{upper}@first")]));
    assert_eq!(
        run(lxcri_fs().args(["snapshots", &upper])).lines().count(),
        1
    );
}

#[test]
fn zfs_a_rollback_sees_mounts_of_other_namespaces() {
    let Some(setup) = Setup::alone() else { return };
    let mounted = setup.mount("web", &[]);
    let upper = setup.upper("web");
    run(lxcri_fs().args(["snapshot", &format!("{upper}@first")]));
    let mut other = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sleep", "600"])
        .spawn()
        .unwrap();
    crate::common::eventually("other namespace", || {
        let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap();
        (namespace(other.id()) != namespace(std::process::id())).then_some(())
    });
    let output = lxcri_fs()
        .args(["rollback", "--force", &format!("{upper}@first")])
        .output()
        .unwrap();
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(output.status.code(), Some(6), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("namespace of sleep"),
        "{}",
        stderr(&output)
    );
    assert!(mounted.0.join("etc/hostname").exists());
}

#[test]
fn zfs_the_mount_of_an_encrypted_image_is_rolled_back_without_its_password() {
    let Some(setup) = Setup::new() else { return };
    let (dir, upper) = (setup.directory("web"), setup.upper("web"));
    let image = crate::common::golden("zstd-keyfile.bfc");
    let key = crate::common::golden("key.bin");
    let mounted = Mounted::new(
        &[
            "--upper",
            &upper,
            "--key-file",
            key.to_str().unwrap(),
            image.to_str().unwrap(),
        ],
        &dir,
    );
    let before = tree(&mounted.0);
    run(lxcri_fs().args(["snapshot", &format!("{upper}@first")]));
    std::fs::write(mounted.0.join("new"), "x").unwrap();
    run(lxcri_fs().args(["rollback", "--force", &format!("{upper}@first")]));
    assert_same_tree(&before, &tree(&mounted.0));
}

#[test]
fn zfs_a_clone_and_its_origin_continue_independently() {
    let Some(setup) = Setup::new() else { return };
    let first = setup.mount("web1", &["--idmap", "0:100000:65536"]);
    let change_hostname = |root: &Path, text: &str| {
        std::fs::write(root.join("etc/hostname"), text).unwrap();
        std::fs::write(root.join(text.trim()), text).unwrap();
    };
    change_hostname(&first.0, "first\n");
    let then = tree(&first.0);
    let (one, two, three) = (
        setup.upper("web1"),
        setup.upper("web2"),
        setup.upper("web3"),
    );
    run(lxcri_fs().args(["clone", &one, &two, "--quota", "1G"]));
    change_hostname(&first.0, "later\n");
    run(lxcri_fs().args(["snapshot", &format!("{one}@later")]));
    run(lxcri_fs().args(["clone", &format!("{one}@later"), &three]));
    fails(1, lxcri_fs().args(["clone", &one, &three]));
    fails(
        5,
        lxcri_fs().args(["clone", &format!("{one}@never"), &setup.upper("web4")]),
    );
    assert_eq!(
        run(lxcri_fs().args(["snapshots", &one])).lines().count(),
        3,
        "a clone that failed leaves no snapshot"
    );
    assert_eq!(
        property(&setup.scratch.child("web2"), "refquota"),
        (1_u64 << 30).to_string()
    );

    // Whose ids are in it is known; others are refused.
    fails(
        1,
        lxcri_fs()
            .args(["mount", "--upper", &two])
            .arg(&setup.image)
            .arg(setup.directory("web2")),
    );
    let second = setup.mount("web2", &["--idmap", "0:100000:65536"]);
    let third = setup.mount("web3", &["--idmap", "0:100000:65536"]);
    assert_same_tree(&then, &tree(&second.0));
    assert_same_tree(&tree(&first.0), &tree(&third.0));
    change_hostname(&second.0, "second\n");
    change_hostname(&first.0, "again\n");
    std::fs::write(second.0.join("data/two"), "second\n").unwrap();
    for (mounted, own, others) in [
        (
            &first,
            ["first", "later", "again"].as_slice(),
            ["second"].as_slice(),
        ),
        (&second, &["first", "second"], &["later", "again"]),
    ] {
        assert!(
            own.iter().all(|name| mounted.0.join(name).exists())
                && !others.iter().any(|name| mounted.0.join(name).exists())
        );
    }
    // Hard links of the image are one file in a clone, unless the kernel parts them.
    let one = std::fs::read(second.0.join("data/one")).unwrap();
    assert_eq!(one == b"second\n", !hard_links_part());
    assert!(one == b"second\n" || one.len() == 300_000);
    assert_eq!(
        std::fs::read(first.0.join("data/one")).unwrap().len(),
        300_000
    );
    // The origin goes once its clones stand alone.
    drop(first);
    fails(
        1,
        Command::new("zfs").args(["destroy", "-r", &setup.scratch.child("web1")]),
    );
    zfs(&["promote", &setup.scratch.child("web3")]);
    zfs(&["promote", &setup.scratch.child("web2")]);
    zfs(&["destroy", &setup.scratch.child("web1")]);
    assert_eq!(
        std::fs::read_to_string(second.0.join("etc/hostname")).unwrap(),
        "second\n"
    );
    assert_eq!(
        std::fs::read_to_string(third.0.join("etc/hostname")).unwrap(),
        "later\n"
    );
}
