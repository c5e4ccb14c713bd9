//! A clone of a container on ZFS is a clone of its dataset.

use crate::Setup;
use crate::bench::Store;
use crate::common::zfs::{pool, property, zfs};

/// The clone of a container that runs has what it had written, takes no space of its own, and both
/// can be deleted in any order.
#[test]
fn zfs_a_clone_of_a_running_container_is_a_container() {
    let Some(setup) = Setup::new() else { return };
    let of = |name: &str| setup.store.dir.path().join(name);
    let clone = |from: &str, name: &str| {
        let dir = of(name);
        setup
            .store
            .run(&["clone", from, name, "--dir", dir.to_str().unwrap()]);
    };
    let big: Vec<u8> = (0..1 << 20_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(setup.root().join("big"), &big).unwrap();
    setup.store.run(&["snapshot", "c1@before"]);
    let mut running = std::fs::File::create(setup.root().join("open")).unwrap();
    std::io::Write::write_all(&mut running, b"not synced").unwrap();
    clone("c1", "c2");
    clone("c1@before", "c3");
    let read = |path: &str| std::fs::read(of(path));
    assert_eq!(read("c2/rootfs/open").unwrap(), b"not synced");
    assert!(read("c3/rootfs/open").is_err());
    for name in ["c2", "c3"] {
        assert_eq!(
            read(&format!("{name}/rootfs/precious")).unwrap(),
            b"precious"
        );
        assert!(read(&format!("{name}/rootfs/big")).unwrap() == big);
        let used = property(&format!("{}/containers/{name}", setup.dataset), "used");
        assert!(used.parse::<u64>().unwrap() < 2 << 20, "{name} uses {used}");
        let inspected = setup.store.json(&["inspect", name, "--json"]);
        assert_eq!(
            (&inspected["name"], &inspected["state"]),
            (&name.into(), &"ready".into())
        );
    }
    std::fs::write(of("c2/rootfs/own"), "own").unwrap();
    assert!(!setup.root().join("own").exists());
    setup.store.fails(&["clone", "c1@never", "c4"], 5);
    setup.store.fails(&["clone", "c1", "c2"], 1);
    assert_eq!(setup.store.run(&["containers", "-q"]), "c1\nc2\nc3\n");
    drop(running);
    setup.store.run(&["delete", "c1"]);
    assert!(read("c2/rootfs/big").unwrap() == big);
    setup.store.run(&["delete", "c2", "c3"]);
    let containers = format!("{}/containers", setup.dataset);
    let left = zfs(&["list", "-Hr", "-t", "all", "-o", "name", &containers]);
    assert_eq!(left.trim(), containers);
}

/// A copy of what overlayfs has written with an index, as before Linux 6.16: the index becomes the
/// copy's, and all names of a file lead to what was written.
#[test]
fn zfs_guest_a_clone_in_a_directory_keeps_the_names_of_a_file() {
    // In the guest only: its kernel is the one in question.
    if pool().is_none() {
        return;
    }
    let store = Store::directory();
    let source = store.source("a", b"image");
    std::fs::hard_link(source.join("a"), source.join("b")).unwrap();
    store.run(&["build", source.to_str().unwrap(), "-t", "app"]);
    let at = |name: &str| store.dir.path().join(format!("bundle-{name}"));
    let bundle = at("one");
    let args = [
        "create",
        "one",
        "--image",
        "app",
        "--bundle",
        bundle.to_str().unwrap(),
    ];
    store.run(&[&args[..], &["--", "/bin/true"]].concat());
    std::fs::write(bundle.join("rootfs/a"), "changed").unwrap();
    store.run(&["clone", "one", "two", "--dir", at("two").to_str().unwrap()]);
    for name in ["a", "b"] {
        let path = at("two").join("rootfs").join(name);
        assert_eq!(std::fs::read_to_string(path).unwrap(), "changed", "{name}");
    }
    std::fs::write(at("two").join("rootfs/b"), "again").unwrap();
    assert_eq!(
        std::fs::read_to_string(at("two").join("rootfs/a")).unwrap(),
        "again"
    );
    assert_eq!(
        std::fs::read_to_string(bundle.join("rootfs/b")).unwrap(),
        "changed"
    );
    store.run(&["delete", "one", "two"]);
}
