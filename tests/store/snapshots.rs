//! Snapshots of containers in directories, on file systems that share blocks between files.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::bench::{LoopDisk, Store};
use crate::common::{run, stderr, tree};

/// A store on a disk, with the container `c`, which is mounted and has written.
struct Setup {
    // Dropped in this order.
    store: Store,
    disk: LoopDisk,
}

impl Setup {
    fn new(mkfs: &str, size: u64) -> Self {
        let disk = LoopDisk::new(mkfs, size);
        let store = Store::in_directory(disk.path());
        store.build("file", "app");
        let setup = Self { store, disk };
        let bundle = setup.path("bundle");
        setup.store.run(&[
            "create",
            "c",
            "--image",
            "app",
            "--bundle",
            bundle.to_str().unwrap(),
            "--volume",
            "/own",
            "--",
            "/bin/true",
        ]);
        let root = setup.root();
        std::fs::write(root.join("big"), vec![7; 8 << 20]).unwrap();
        std::fs::write(root.join("state"), "before").unwrap();
        std::fs::remove_file(root.join("file")).unwrap();
        std::fs::create_dir(root.join("d")).unwrap();
        std::fs::hard_link(root.join("state"), root.join("d/hard")).unwrap();
        std::fs::write(setup.volume().join("v"), "before").unwrap();
        setup
    }

    fn path(&self, name: &str) -> PathBuf {
        self.store.dir.path().join(name)
    }

    fn root(&self) -> PathBuf {
        self.path("bundle/rootfs")
    }

    fn directory(&self) -> PathBuf {
        self.path("store/containers/c")
    }

    fn volume(&self) -> PathBuf {
        self.directory().join("volumes/own")
    }

    fn change(&self) {
        std::fs::write(self.root().join("state"), "after").unwrap();
        std::fs::write(self.root().join("more"), "more").unwrap();
        std::fs::remove_file(self.root().join("big")).unwrap();
        std::fs::write(self.volume().join("v"), "after").unwrap();
    }

    fn state(&self) -> [String; 2] {
        [self.root().join("state"), self.volume().join("v")]
            .map(|path| std::fs::read_to_string(path).unwrap())
    }

    fn free(&self) -> u64 {
        run(std::process::Command::new("sync")
            .arg("-f")
            .arg(self.disk.path()));
        let stat = rustix::fs::statvfs(self.disk.path()).unwrap();
        stat.f_bfree * stat.f_frsize
    }
}

fn on_both(test: impl Fn(&Setup)) {
    for (mkfs, size) in [("mkfs.xfs", 320 << 20), ("mkfs.btrfs", 256 << 20)] {
        test(&Setup::new(mkfs, size));
    }
}

/// Whether two trees are the same, but for times of directories that overlayfs changes.
#[track_caller]
fn assert_is(root: &Path, expected: &std::collections::BTreeMap<Vec<u8>, crate::common::Entry>) {
    crate::common::assert_same_tree(expected, &tree(root));
}

#[test]
fn a_snapshot_shares_its_blocks_and_a_rollback_restores_everything() {
    on_both(|setup| {
        let (store, root) = (&setup.store, setup.root());
        let before = tree(&root);
        let free = setup.free();
        store.run(&["snapshot", "c@one"]);
        let taken = free.saturating_sub(setup.free());
        assert!(taken < 2 << 20, "a snapshot of 8 MiB takes {taken} bytes");
        let listed = store.json(&["snapshots", "c", "--json"]);
        assert_eq!(listed["name"], "one");
        assert!(
            listed["referenced"].as_u64().unwrap() >= 8 << 20,
            "{listed}"
        );
        assert!(listed["used"].as_u64().unwrap() < 1 << 20, "{listed}");
        setup.change();
        assert!(store.fails(&["rollback", "c@one"], 6).contains("--force"));
        assert_eq!(setup.state(), ["after", "after"]);
        {
            let _open = std::fs::File::open(root.join("more")).unwrap();
            store.fails(&["rollback", "c@one", "--force"], 6);
            store.fails(&["snapshot", "c@busy"], 6);
        }
        store.run(&["rollback", "c@one", "--force"]);
        assert_eq!(setup.state(), ["before", "before"]);
        assert_is(&root, &before);
        // Once more, unmounted.
        setup.change();
        store.run(&["umount", root.to_str().unwrap()]);
        store.run(&["rollback", "c@one"]);
        store.run(&["mount", "--all"]);
        assert_eq!(setup.state(), ["before", "before"]);
        assert_is(&root, &before);
        let clone = setup.path("clone");
        setup.change();
        store.run(&["clone", "c@one", "c2", "--dir", clone.to_str().unwrap()]);
        assert_is(&clone.join("rootfs"), &before);
        store.fails(&["snapshot", "c@one"], 1);
        store.fails(&["rollback", "c@two"], 5);
        store.fails(&["clone", "c@two", "c3"], 5);
        store.fails(&["snapshot", "c@a b"], 2);
        store.fails(&["snapshot", "c@../x"], 2);
        store.run(&["snapshot", "--delete", "c@one"]);
        assert_eq!(store.run(&["snapshots", "c", "--json"]), "");
        store.run(&["delete", "c", "c2"]);
        assert!(!setup.directory().exists());
    });
}

/// Whenever a rollback is killed, the container is as before or as at the snapshot, with everything
/// that belongs together.
#[test]
fn a_killed_rollback_happens_as_a_whole_or_not_at_all() {
    let setup = Setup::new("mkfs.xfs", 320 << 20);
    let (store, root) = (&setup.store, setup.root());
    store.run(&["snapshot", "c@one"]);
    let (mut before, mut after) = (0, 0);
    for delay in (0..40).map(|n| Duration::from_micros(1500 * n)) {
        if store
            .run(&["ps", "--json"])
            .contains(root.to_str().unwrap())
        {
            setup.change();
            store.run(&["umount", root.to_str().unwrap()]);
        }
        let mut rollback = store.command(&["rollback", "c@one"]).spawn().unwrap();
        std::thread::sleep(delay);
        let _ = rollback.kill();
        rollback.wait().unwrap();
        store.run(&["mount", "--all"]);
        match setup.state().each_ref().map(String::as_str) {
            ["before", "before"] => before += 1,
            ["after", "after"] => after += 1,
            mixed => panic!("{mixed:?} after {delay:?}"),
        }
        assert_eq!(root.join("big").exists(), !root.join("more").exists());
        if !root.join("big").exists() {
            store.run(&["rollback", "c@one", "--force"]);
        }
        for name in std::fs::read_dir(setup.directory()).unwrap() {
            let name = name.unwrap().file_name().into_string().unwrap();
            assert!(name != "rollback", "{name}");
        }
    }
    eprintln!("rolled back {before} times, not {after} times");
    store.run(&["delete", "c"]);
}

#[test]
fn ext4_has_no_snapshots_and_says_what_does() {
    let setup = Setup::new("mkfs.ext4", 64 << 20);
    let output = setup.store.output(&["snapshot", "c@one"]);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(
        said.contains("cannot share blocks") && said.contains("btrfs, XFS and ZFS"),
        "{said}"
    );
    assert!(!setup.directory().join("snapshots").exists());
    setup.store.run(&["delete", "c"]);
}
