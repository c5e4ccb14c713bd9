//! Updates of containers in directories on several file systems.

use crate::bench::{LoopDisk, Store};
use crate::common::{run, tree};

#[test]
fn an_update_shares_what_it_carries_over_where_the_file_system_can() {
    for (mkfs, size, shares) in [
        ("mkfs.ext4", 128 << 20, false),
        ("mkfs.xfs", 320 << 20, true),
        ("mkfs.btrfs", 256 << 20, true),
    ] {
        let disk = LoopDisk::new(mkfs, size);
        let store = Store::in_directory(disk.path());
        let at = |name: &str| store.dir.path().join(name);
        let free = || {
            run(std::process::Command::new("sync")
                .arg("-f")
                .arg(disk.path()));
            let stat = rustix::fs::statvfs(disk.path()).unwrap();
            stat.f_bfree * stat.f_frsize
        };
        store.build("file", "app:1");
        store.build("other", "app:2");
        let bundle = at("bundle");
        let create = [
            "create",
            "c",
            "--image",
            "app:1",
            "--bundle",
            bundle.to_str().unwrap(),
        ];
        store.run(&[&create[..], &["--", "/bin/true"]].concat());
        let root = bundle.join("rootfs");
        std::fs::write(root.join("big"), vec![7; 16 << 20]).unwrap();
        std::fs::hard_link(root.join("big"), root.join("link")).unwrap();
        let before = tree(&root);
        let was = free();
        store.run(&["update", "c", "--image", "app:2"]);
        let taken = was.saturating_sub(free());
        assert_eq!(taken < 4 << 20, shares, "{mkfs}: 16 MiB take {taken} bytes");
        assert_eq!(std::fs::read(root.join("big")).unwrap(), vec![7; 16 << 20]);
        assert!(root.join("other").exists() && !root.join("file").exists());
        store.run(&["rollback", "c"]);
        crate::common::assert_same_tree(&before, &tree(&root));
        store.run(&["gc", "--rollbacks"]);
        store.run(&["rm", "app:2"]);
        store.run(&["delete", "c"]);
    }
}
