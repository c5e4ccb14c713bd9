//! Containers on datasets that are not mounted, locked, copied, renamed, or contain foreign data:
//! nothing is lost, and commands name the obstacle.
//!
//! Needs a pool, named by `LXCRI_FS_TEST_POOL`: `tests/zfs/run` makes one in a VM.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/store.rs"]
mod bench;
mod clones;
#[path = "../common/mod.rs"]
mod common;
mod updates;
mod volumes;

use std::path::{Path, PathBuf};
use std::process::Command;

use bench::Store;
use common::zfs::{directory, pool, zfs};
use common::{Mounted, eventually, run, stderr};

/// A store on a dataset of its own, with the image `app` and the container `c1`, which has written
/// `precious`.
struct Setup {
    store: Store,
    dataset: String,
    bundle: PathBuf,
}

impl Setup {
    fn new() -> Option<Self> {
        let setup = Self::empty(Store::zfs()?);
        setup.begin();
        Some(setup)
    }

    fn empty(store: Store) -> Self {
        let dataset = store.location.strip_prefix("zfs:").unwrap().to_owned();
        let bundle = store.dir.path().join("b");
        Self {
            store,
            dataset,
            bundle,
        }
    }

    fn begin(&self) {
        self.store.build("file", "app");
        self.create(0);
        std::fs::write(self.root().join("precious"), "precious").unwrap();
    }

    fn root(&self) -> PathBuf {
        self.bundle.join("rootfs")
    }

    /// `create c1`, which has to end with this exit code; its standard error.
    #[track_caller]
    fn create(&self, code: i32) -> String {
        let output = self.store.output(&[
            "create",
            "c1",
            "--image",
            "app",
            "--bundle",
            self.bundle.to_str().unwrap(),
            "--",
            "/bin/true",
        ]);
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        stderr(&output)
    }

    fn container(&self) -> String {
        format!("{}/containers/c1", self.dataset)
    }

    #[track_caller]
    fn unmount(&self) {
        self.store.run(&["umount", self.root().to_str().unwrap()]);
        self.unmount_datasets();
    }

    /// Unmounts the datasets of the container and its image, and then those that they lie in.
    #[track_caller]
    fn unmount_datasets(&self) {
        let unmount = |name: &str| {
            let unmounted = Command::new("zfs").args(["unmount", name]).status();
            unmounted.unwrap().success()
        };
        let image = format!("{}/images/app:latest", self.dataset);
        for name in [
            self.container(),
            image,
            format!("{}/containers", self.dataset),
            format!("{}/images", self.dataset),
        ] {
            // The kernel may still be closing a file that somebody had open.
            eventually("unmounted dataset", || unmount(&name).then_some(()));
        }
        eventually("unmounted store", || unmount(&self.dataset).then_some(()));
    }

    /// What `zfs mount -a` does, to the datasets of this store only: those of other tests are
    /// theirs.
    #[track_caller]
    fn mount_datasets(&self) {
        let listed = zfs(&[
            "list",
            "-Hr",
            "-o",
            "name,mounted",
            "-s",
            "name",
            &self.dataset,
        ]);
        for name in listed.lines().filter_map(|line| line.strip_suffix("\tno")) {
            zfs(&["mount", name]);
        }
    }

    #[track_caller]
    fn assert_is_there(&self) {
        assert_eq!(
            std::fs::read_to_string(self.root().join("precious")).unwrap(),
            "precious"
        );
    }

    fn end(&self) {
        self.store.run(&["delete", "c1"]);
        assert!(!self.bundle.exists());
    }
}

/// Destroys what is in the way of a test's end, also when it fails.
struct End(Vec<String>);

impl Drop for End {
    fn drop(&mut self) {
        for name in &self.0 {
            let _ = Command::new("zfs")
                .args(["destroy", "-R", "-f", name])
                .output();
        }
    }
}

#[test]
fn zfs_a_container_that_is_not_mounted_is_not_taken_for_unfinished() {
    let Some(setup) = Setup::new() else { return };
    for how in ["on", "noauto"] {
        setup.store.run(&["umount", setup.root().to_str().unwrap()]);
        zfs(&["set", &format!("canmount={how}"), &setup.container()]);
        let _ = Command::new("zfs")
            .args(["unmount", &setup.container()])
            .output();
        assert!(setup.create(1).contains("already"));
        let _ = Command::new("zfs")
            .args(["unmount", &setup.container()])
            .output();
        setup.store.run(&["inspect", "c1"]);
        let _ = Command::new("zfs")
            .args(["unmount", &setup.container()])
            .output();
        setup.store.run(&["mount", "--all"]);
        setup.assert_is_there();
    }
    setup.store.run(&["doctor"]);
    setup.end();
}

#[test]
fn zfs_a_locked_store_says_so_and_loses_nothing() {
    let Some(pool) = pool() else { return };
    let key = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    std::fs::write(key.path(), "passpass1\n").unwrap();
    let dataset = format!("{pool}/locked-{}", std::process::id());
    let location = format!("keylocation=file://{}", key.path().display());
    zfs(&[
        "create",
        "-o",
        "encryption=on",
        "-o",
        "keyformat=passphrase",
        "-o",
        &location,
        &dataset,
    ]);
    let _end = End(vec![dataset.clone()]);
    let setup = Setup::empty(Store::at(format!("zfs:{dataset}")));
    setup.begin();
    setup.store.run(&["umount", setup.root().to_str().unwrap()]);
    zfs(&["unmount", "-f", &dataset]);
    zfs(&["unload-key", "-r", &dataset]);
    let hint = format!("zfs load-key {dataset}");
    for args in [
        &["list"][..],
        &["mount", "--all"],
        &["delete", "c1"],
        &["inspect", "c1"],
        &["ls", "app"],
        &["rm", "app"],
    ] {
        let said = setup.store.fails(args, 1);
        assert!(
            said.contains("locked") && said.contains(&hint),
            "{args:?}: {said}"
        );
    }
    assert!(setup.create(1).contains(&hint));
    let output = setup.store.output(&["doctor"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        !output.status.success()
            && said.contains("cannot be reached")
            && said.contains(&hint)
            && !said.contains("remove its")
            && !said.contains("was removed"),
        "{said}"
    );
    zfs(&["load-key", &dataset]);
    setup.store.run(&["mount", "--all"]);
    setup.assert_is_there();
    setup.store.run(&["doctor"]);
    setup.end();
}

#[test]
fn zfs_unmounted_datasets_are_mounted_after_their_parents() {
    let Some(setup) = Setup::new() else { return };
    setup.store.run(&["umount", setup.root().to_str().unwrap()]);
    for args in [
        &["list"][..],
        &["df"],
        &["doctor"],
        &["containers"],
        &["inspect", "c1"],
    ] {
        setup.unmount_datasets();
        setup.store.run(args);
        // What `zfs mount -a` does later hides nothing.
        setup.mount_datasets();
        assert_eq!(setup.store.images().len(), 1, "{args:?}");
        setup.store.run(&["verify", "app"]);
        setup.mount_datasets();
        // Everything has to be there to be unmounted again.
        setup.store.run(&["inspect", "c1"]);
    }
    let listed = setup.store.json(&["containers", "--json"]);
    assert_eq!(
        (&listed["name"], &listed["status"]),
        (&"c1".into(), &"created".into())
    );
    assert!(listed["written_bytes"].as_u64().unwrap() > 0);
    setup.store.run(&["mount", "--all"]);
    setup.assert_is_there();
    // Something else over it is told, and the image is not said to be broken.
    let dir = directory(&format!("{}/images/app:latest", setup.dataset));
    run(Command::new("mount")
        .args(["-t", "tmpfs", "tmpfs"])
        .arg(&dir));
    let said = setup.store.output(&["doctor"]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(
        said.contains("mounted over it") && said.contains("umount") && !said.contains("remove its"),
        "{said}"
    );
    assert!(setup.store.fails(&["list"], 1).contains("mounted over it"));
    run(Command::new("umount").arg(&dir));
    setup.store.run(&["list"]);
    setup.end();
}

#[test]
fn zfs_an_image_is_found_by_its_recorded_path() {
    let Some(setup) = Setup::new() else { return };
    let path = setup.store.json(&["info", "--json", "app"])["image"]
        .as_str()
        .unwrap()
        .to_owned();
    let dir = directory(&setup.container());
    let dir = dir.to_str().unwrap();
    let hook = |when: &str| {
        let mut command = setup.store.command(&["hook", "lxc", dir]);
        run(command.env("LXC_HOOK_TYPE", when));
    };
    setup.store.run(&["umount", setup.root().to_str().unwrap()]);
    for args in [
        &["ls", &path][..],
        &["diff", dir],
        &["commit", dir, "-t", "committed"],
    ] {
        setup.unmount_datasets();
        setup.store.run(args);
        setup.mount_datasets();
    }
    assert_eq!(setup.store.run(&["ls", "committed"]), "file\nprecious\n");
    setup.store.run(&["rm", "committed"]);
    setup.unmount_datasets();
    hook("pre-start");
    setup.assert_is_there();
    hook("post-stop");
    assert!(!setup.root().join("precious").exists());
    setup.store.run(&["mount", "--all"]);
    setup.end();
}

/// A `zfs` whose datasets another process's `zfs mount -a` always mounts first.
const OVERTAKEN: &str = r#"#!/bin/sh
PATH=${PATH#*:}
zfs "$@" || exit
case $1 in
    create | clone | rename | mount)
        echo "cannot mount 'it': mountpoint or dataset is busy" >&2
        exit 1
        ;;
esac
"#;

#[test]
fn zfs_a_dataset_that_another_process_mounts_first_counts_as_mounted() {
    use std::os::unix::fs::PermissionsExt;
    let Some(setup) = Setup::new() else { return };
    let bin = setup.store.dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join("zfs"), OVERTAKEN).unwrap();
    std::fs::set_permissions(bin.join("zfs"), PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let overtaken = |args: &[&str]| run(setup.store.command(args).env("PATH", &path));
    overtaken(&["commit", "c1", "-t", "committed"]);
    overtaken(&[
        "build",
        setup.store.source("other", b"other").to_str().unwrap(),
        "-t",
        "other",
    ]);
    overtaken(&["clone", "c1", &format!("zfs:{}/cloned", setup.dataset)]);
    setup.unmount();
    overtaken(&["mount", "--all"]);
    setup.assert_is_there();
    assert_eq!(setup.store.run(&["ls", "committed"]), "file\nprecious\n");
    assert_eq!(setup.store.images().len(), 3);
    // What is busy and not mounted is busy.
    std::fs::write(
        bin.join("zfs"),
        OVERTAKEN.replace(
            "zfs \"$@\" || exit\n",
            "[ $1 = clone ] || zfs \"$@\" || exit\n",
        ),
    )
    .unwrap();
    let output = setup
        .store
        .command(&["clone", "c1", &format!("zfs:{}/second", setup.dataset)])
        .env("PATH", &path)
        .output()
        .unwrap();
    assert!(
        output.status.code() == Some(6) && stderr(&output).contains("busy"),
        "{}",
        stderr(&output)
    );
    zfs(&["destroy", &format!("{}/cloned", setup.dataset)]);
    setup.end();
}

#[test]
fn zfs_delete_names_foreign_data_in_a_containers_dataset_and_removes_nothing() {
    let Some(setup) = Setup::new() else { return };
    let (elsewhere, below) = (
        setup.store.dir.path().join("srv"),
        format!("{}/data", setup.container()),
    );
    let mountpoint = format!("mountpoint={}", elsewhere.display());
    for options in [&["-o", mountpoint.as_str()][..], &[]] {
        zfs(&[&["create"], options, &[below.as_str()]].concat());
        std::fs::write(directory(&below).join("mine"), "mine").unwrap();
        let said = setup.store.fails(&["delete", "c1"], 6);
        assert!(said.contains(&below), "{said}");
        assert_eq!(
            std::fs::read_to_string(directory(&below).join("mine")).unwrap(),
            "mine"
        );
        setup.assert_is_there();
        assert!(setup.bundle.join("config.json").exists());
        zfs(&["destroy", &below]);
    }
    let held = format!("{}@held", setup.container());
    zfs(&["snapshot", &held]);
    zfs(&["hold", "test", &held]);
    let said = setup.store.fails(&["delete", "c1"], 6);
    assert!(said.contains(&held) && said.contains("held"), "{said}");
    setup.assert_is_there();
    zfs(&["release", "test", &held]);
    setup.end();
    // Images as well.
    let image = format!("{}/images/app:latest", setup.dataset);
    zfs(&["create", "-o", "mountpoint=none", &format!("{image}/mine")]);
    assert!(setup.store.fails(&["rm", "app"], 6).contains("mine"));
    zfs(&["destroy", &format!("{image}/mine")]);
    let snapshot = zfs(&["list", "-H", "-o", "name", "-t", "snapshot", &image]);
    zfs(&["hold", "test", snapshot.trim()]);
    assert!(setup.store.fails(&["rm", "app"], 6).contains("held"));
    zfs(&["release", "test", snapshot.trim()]);
    setup.store.run(&["rm", "app"]);
}

#[test]
fn zfs_a_copy_of_a_store_leaves_the_originals_alone() {
    let Some(setup) = Setup::new() else { return };
    let copy = format!("{}-copy", setup.dataset);
    let _end = End(vec![copy.clone()]);
    zfs(&["create", &copy]);
    for name in ["images", "containers"] {
        let from = format!("{}/{name}@copy", setup.dataset);
        zfs(&["snapshot", "-r", &from]);
        run(Command::new("sh").args([
            "-ec",
            "zfs send -R \"$0\" | zfs receive \"$1\"",
            &from,
            &format!("{copy}/{name}"),
        ]));
    }
    let location = format!("zfs:{copy}");
    let of_copy = |args: &[&str]| {
        setup
            .store
            .command(args)
            .env("LXCRI_FS_STORE", &location)
            .output()
            .unwrap()
    };
    let output = of_copy(&["mount", "--all"]);
    assert!(
        !output.status.success() && stderr(&output).contains("is a copy of zfs:"),
        "{}",
        stderr(&output)
    );
    let output = of_copy(&["delete", "c1"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!zfs(&["list", "-Hr", "-o", "name", &copy]).contains("c1"));
    setup.assert_is_there();
    assert!(setup.bundle.join("config.json").exists());
    setup.end();
}

#[test]
fn zfs_a_mounted_dataset_is_not_rolled_back_under_any_name() {
    let Some(setup) = Setup::new() else { return };
    let path = setup.store.json(&["info", "--json", "app"])["image"]
        .as_str()
        .unwrap()
        .to_owned();
    let mountpoint = setup.store.dir.path().join("mnt");
    std::fs::create_dir(&mountpoint).unwrap();
    let name = |number: u32| format!("{}/upper{number}", setup.dataset);
    let mounted = Mounted::new(
        &["--upper", &format!("zfs:{}", name(1)), &path],
        &mountpoint,
    );
    setup
        .store
        .run(&["snapshot", &format!("zfs:{}@s", name(1))]);
    std::fs::write(mountpoint.join("since"), "since").unwrap();
    let open = std::fs::File::open(mountpoint.join("since")).unwrap();
    zfs(&["rename", &name(1), &name(2)]);
    let elsewhere = format!(
        "mountpoint={}",
        setup.store.dir.path().join("elsewhere").display()
    );
    for step in 0..2 {
        for force in [&[][..], &["--force"]] {
            let snapshot = format!("zfs:{}@s", name(2));
            setup
                .store
                .fails(&[&["rollback", &snapshot], force].concat(), 6);
        }
        let mut text = String::new();
        std::io::Read::read_to_string(&mut &open, &mut text).unwrap();
        assert!(step == 1 || text == "since");
        zfs(&["set", &elsewhere, &name(2)]);
    }
    drop((open, mounted));
    setup
        .store
        .run(&["rollback", &format!("zfs:{}@s", name(2))]);
    assert!(!Path::new(&directory(&name(2))).join("upper/since").exists());
    setup.end();
}

#[test]
fn zfs_failed_and_killed_commands_leave_no_unknown_dataset() {
    let Some(setup) = Setup::new() else { return };
    // An upper that could not be mounted.
    let (none, mountpoint) = (
        format!("{}/none", setup.dataset),
        setup.store.dir.path().join("mnt"),
    );
    std::fs::create_dir(&mountpoint).unwrap();
    zfs(&["create", "-o", "mountpoint=none", &none]);
    setup.store.fails(
        &[
            "mount",
            "app",
            mountpoint.to_str().unwrap(),
            "--upper",
            &format!("zfs:{none}/upper"),
        ],
        1,
    );
    assert_eq!(
        zfs(&["list", "-Hr", "-o", "name", &none]).lines().count(),
        1
    );
    // What a commit left that was killed: its process, whose number is another's by now.
    let left = format!("{}@lxcri-fs-reading-1-0", setup.container());
    zfs(&["snapshot", &left]);
    let said = setup.store.run(&["doctor"]);
    assert!(said.contains(&left), "{said}");
    assert!(setup.store.run(&["gc"]).contains(&left));
    assert!(!setup.store.run(&["doctor"]).contains(&left));
    zfs(&["snapshot", &left]);
    setup.store.run(&["commit", "c1", "-t", "committed"]);
    assert!(
        !zfs(&[
            "list",
            "-H",
            "-o",
            "name",
            "-t",
            "snapshot",
            &setup.container()
        ])
        .contains("reading")
    );
    assert_eq!(setup.store.run(&["ls", "committed"]), "file\nprecious\n");
    setup.end();
}
