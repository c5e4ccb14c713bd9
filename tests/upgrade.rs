//! A live mount continues with another version of the program. These tests have a process of their
//! own: `upgrade` affects all mounts of its user, those of other tests too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::mounts::{pid, row_of, setup, under_load};
use common::{Mounted, lxcri_fs, stderr};

#[test]
fn an_upgrade_causes_no_read_error() {
    let (_temp, image, [dir]) = setup();
    let _mounted = Mounted::new(&[image.to_str().unwrap()], &dir);
    let before = row_of(&image);
    let rounds = under_load(&dir, || {
        for _ in 0..10 {
            std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
            let output = lxcri_fs().arg("upgrade").output().unwrap();
            // Keepers of other tests end meanwhile, or have a worker that is being killed just now.
            // What is said of ours counts.
            assert!(
                !stderr(&output).contains(image.to_str().unwrap()),
                "{}",
                stderr(&output)
            );
        }
    });
    assert!(rounds > 0);
    let after = row_of(&image);
    assert_eq!(pid(&before, "keeper"), pid(&after, "keeper"));
    assert!(pid(&after, "restarts") > 0);
}
