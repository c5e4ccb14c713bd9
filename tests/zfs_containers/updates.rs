//! An update of a container on ZFS, and the way back.

use std::path::Path;

use crate::Setup;
use crate::common::zfs::{pool, property, zfs};
use crate::common::{stderr, tree};

#[test]
fn zfs_an_update_keeps_what_was_written_and_goes_back() {
    let Some(setup) = Setup::new() else { return };
    let store = &setup.store;
    store.build("other", "app:2");
    let big: Vec<u8> = (0..1 << 20_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(setup.root().join("big"), &big).unwrap();
    std::fs::remove_file(setup.root().join("file")).unwrap();
    store.run(&["snapshot", "c1@before"]);
    let before = tree(&setup.root());
    store.run(&["update", "c1", "--image", "app:2"]);
    assert!(std::fs::read(setup.root().join("big")).unwrap() == big);
    assert_eq!(
        std::fs::read(setup.root().join("precious")).unwrap(),
        b"precious"
    );
    assert!(setup.root().join("other").exists());
    assert!(store.fails(&["rm", "app"], 6).contains("go back"));
    // Its images are properties of its dataset.
    let images = property(&setup.container(), "org.lxcri-fs:image");
    assert_eq!(images.split(' ').count(), 2, "{images}");
    // A clone has the new image, and nothing to go back to.
    let clone = store.dir.path().join("clone");
    store.run(&["clone", "c1", "c2", "--dir", clone.to_str().unwrap()]);
    assert!(clone.join("rootfs/other").exists());
    store.fails(&["rollback", "c2"], 5);
    store.run(&["delete", "c2"]);
    // Datasets that are not mounted are.
    setup.unmount();
    store.run(&["rollback", "c1"]);
    crate::common::assert_same_tree(&before, &tree(&setup.root()));
    store.run(&["rollback", "c1"]);
    assert!(setup.root().join("other").exists());
    store.run(&["gc", "--rollbacks"]);
    store.run(&["rm", "app"]);
    store.run(&["delete", "c1"]);
}

#[test]
fn zfs_an_upper_in_a_dataset_of_its_own_is_updated() {
    let Some(setup) = Setup::new() else { return };
    let Some(pool) = pool() else { return };
    let store = &setup.store;
    store.build("other", "app:2");
    let dataset = format!("{pool}/updated-{}", std::process::id());
    let bundle = store.dir.path().join("elsewhere");
    let (upper, bundle) = (format!("zfs:{dataset}"), bundle.to_str().unwrap());
    let create = [
        "create", "e", "--image", "app", "--bundle", bundle, "--upper", &upper,
    ];
    store.run(&[&create[..], &["--", "/bin/true"]].concat());
    let root = Path::new(bundle).join("rootfs");
    std::fs::write(root.join("own"), "own").unwrap();
    store.run(&["update", "e", "--image", "app:2"]);
    assert_eq!(std::fs::read(root.join("own")).unwrap(), b"own");
    assert!(root.join("other").exists());
    // It is the dataset's, whoever asks.
    let output = store.output(&["diff", &upper]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "A /own\n");
    store.run(&["rollback", "e"]);
    assert!(!root.join("other").exists() && root.join("own").exists());
    store.run(&["delete", "e", "c1"]);
    zfs(&["destroy", "-r", &dataset]);
}
