//! Images that share layers store them once.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::bench::{LoopDisk, Store, on_both};
use crate::common::run;
use crate::common::zfs::property;
use serde_json::Value;

on_both! {
    layers_are_stored_once
}

/// A base image of some size, and one with a layer more.
fn base_and_derived(store: &Store) {
    let mut noise = vec![0; 8 << 20];
    rustix::rand::getrandom(&mut noise, rustix::rand::GetRandomFlags::empty()).unwrap();
    store.run(&[
        "build",
        store.source("base", &noise).to_str().unwrap(),
        "-t",
        "base",
    ]);
    let base = format!("bfc:{}", store.image("base")["path"].as_str().unwrap());
    store.run(&[
        "build",
        &base,
        "--layer",
        store.source("more", b"more").to_str().unwrap(),
        "-t",
        "derived",
    ]);
}

/// Either image can be removed, and the other stays whole.
fn either_may_go(store: &Store) {
    for goes in ["base", "derived"] {
        base_and_derived(store);
        let stays = if goes == "base" { "derived" } else { "base" };
        store.run(&["rm", goes]);
        store.run(&["verify", "--all"]);
        assert_eq!(
            store.run(&["ls", stays]),
            if stays == "base" {
                "base\n"
            } else {
                "base\nmore\n"
            }
        );
        assert_eq!(store.images().len(), 1);
        store.run(&["rm", stays]);
        assert_eq!(store.images().len(), 0);
    }
}

fn layers_are_stored_once(store: &Store) {
    base_and_derived(store);
    let (base, derived) = (store.image("base"), store.image("derived"));
    assert_eq!(derived["parent"], base["name"]);
    let info = store.json(&["info", "--json", "derived"]);
    assert_eq!(
        info["chain"],
        serde_json::json!([derived["name"], base["name"]])
    );
    if store.location.starts_with("zfs:") {
        assert!(
            derived["own_bytes"].as_u64().unwrap() < 1 << 20,
            "{derived}"
        );
        let used: u64 = property(
            &format!("{}/images/derived:latest", &store.location[4..]),
            "used",
        )
        .parse()
        .unwrap();
        assert!(used < 1 << 20, "{used}");
    }
    // The same, but for where its bytes are, as one that shares nothing.
    let source = format!("bfc:{}", base["path"].as_str().unwrap());
    store.run(&[
        "build",
        &source,
        "--layer",
        store.dir.path().join("source-more").to_str().unwrap(),
        "-t",
        "alone",
        "--no-share",
    ]);
    assert_eq!(store.images().len(), 2, "same input, same image");
    store.run(&["rm", "alone", "derived", "base"]);
    either_may_go(store);
}

#[test]
fn layers_are_stored_once_on_xfs_and_btrfs() {
    for (mkfs, size) in [("mkfs.xfs", 320 << 20), ("mkfs.btrfs", 256 << 20)] {
        let disk = LoopDisk::new(mkfs, size);
        let store = Store::in_directory(disk.path());
        base_and_derived(&store);
        run(&mut Command::new("sync"));
        let (base, derived) = (store.image("base"), store.image("derived"));
        let bytes = |image: &Value, key: &str| image[key].as_u64().unwrap();
        assert!(
            bytes(&derived, "bytes") > 8 << 20 && bytes(&derived, "own_bytes") < 1 << 20,
            "{mkfs}: {derived}"
        );
        assert!(bytes(&base, "shared_bytes") >= 8 << 20, "{mkfs}: {base}");
        let free = || {
            run(&mut Command::new("sync"));
            let stat = rustix::fs::statvfs(disk.path()).unwrap();
            stat.f_bfree * stat.f_frsize
        };
        // What is said to be freed is what is freed. XFS frees the blocks of removed files in the
        // background.
        let settled = |mut last| loop {
            std::thread::sleep(Duration::from_millis(500));
            let now = free();
            if now == last {
                return now;
            }
            last = now;
        };
        let before = settled(free());
        store.build("other", "base");
        let rows: Vec<Value> = store
            .run(&["gc", "--grace", "0s", "--json"])
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        assert!(
            rows.iter().map(|r| bytes(r, "freed")).sum::<u64>() < 1 << 20,
            "{rows:?}"
        );
        store.build("other", "derived");
        let rows: Vec<Value> = store
            .run(&["gc", "--grace", "0s", "--json"])
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        let freed: u64 = rows.iter().map(|r| bytes(r, "freed")).sum();
        assert!(freed > 8 << 20, "{rows:?}");
        if mkfs == "mkfs.xfs" {
            let deadline = Instant::now() + Duration::from_secs(30);
            while free().saturating_sub(before).abs_diff(freed) >= 1 << 20 {
                assert!(
                    Instant::now() < deadline,
                    "{} {freed}",
                    free().saturating_sub(before)
                );
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        store.run(&["rm", "base", "derived"]);
        either_may_go(&store);
    }
}
