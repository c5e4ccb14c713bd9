//! Volumes on ZFS are datasets.

use crate::Setup;
use crate::common::zfs::{directory, zfs};

#[test]
fn zfs_a_volume_is_a_dataset_that_is_mounted_when_it_is_needed() {
    let Some(setup) = Setup::new() else { return };
    let bundle = setup.store.dir.path().join("v");
    setup.store.run(&[
        "create",
        "v1",
        "--image",
        "app",
        "--bundle",
        bundle.to_str().unwrap(),
        "--volume",
        "logs:/srv",
        "--volume",
        "/own",
        "--",
        "/bin/true",
    ]);
    let dataset = format!("{}/volumes/logs", setup.dataset);
    let data = directory(&dataset).join("data");
    std::fs::write(data.join("log"), "log").unwrap();
    assert!(
        directory(&format!("{}/containers/v1", setup.dataset))
            .join("volumes/own")
            .is_dir()
    );
    zfs(&["unmount", &dataset]);
    setup
        .store
        .run(&["umount", bundle.join("rootfs").to_str().unwrap()]);
    setup.store.run(&["mount", "--all"]);
    assert_eq!(std::fs::read_to_string(data.join("log")).unwrap(), "log");
    setup.store.fails(&["volumes", "--delete", "logs"], 6);
    setup.store.run(&["delete", "v1"]);
    let listed = setup.store.json(&["volumes", "--json"]);
    assert_eq!(
        (&listed["name"], &listed["containers"]),
        (&"logs".into(), &serde_json::json!([]))
    );
    setup.store.run(&["volumes", "--delete", "logs"]);
    assert_eq!(setup.store.run(&["volumes", "-q"]), "");
    setup.end();
}
