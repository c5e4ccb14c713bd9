//! Images and containers in a store: the same tests on a directory and on ZFS.
//!
//! Needs root; those on ZFS need a pool, named by `LXCRI_FS_TEST_POOL`: `tests/zfs/run` makes one
//! in a VM.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/store.rs"]
mod bench;
mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bench::{LoopDisk, Store, on_both};
use common::zfs::{Pool, property, zfs};
use common::{Mounted, run, stderr};
use serde_json::Value;

on_both! {
    an_image_in_the_store_can_be_used_wherever_a_file_can
    a_file_comes_before_an_image_of_the_store
    a_failed_build_leaves_nothing
    names_are_given_moved_and_taken
    an_image_in_use_is_not_removed_and_it_is_said_by_whom
    gc_removes_what_has_no_name_and_what_was_interrupted_and_counts_it
    df_adds_up
    verify_all_lists_what_is_damaged
    layers_are_stored_once
    a_store_that_is_full_has_nothing_half_in_it
    doctor_tells_what_is_broken
    what_is_there_is_not_built_again
    twenty_processes_that_are_killed_at_any_point_lose_nothing
}

fn an_image_in_the_store_can_be_used_wherever_a_file_can(store: &Store) {
    store.build("hello", "team/app:1");
    for name in ["team/app:1", "docker.io/team/app:1", "docker://team/app:1"] {
        assert_eq!(store.run(&["cat", name, "hello"]), "hello");
    }
    assert_eq!(store.run(&["ls", "team/app:1"]), "hello\n");
    let info = store.json(&["info", "--json", "team/app:1"]);
    let digest = info["root_digest"].as_str().unwrap();
    assert_eq!(store.run(&["cat", digest, "hello"]), "hello");
    assert_eq!(
        store.run(&["cat", &digest["blake3:".len()..][..12], "hello"]),
        "hello"
    );
    store.run(&["verify", "team/app:1"]);
    store.run(&["extract", "team/app:1", "out"]);
    assert_eq!(
        std::fs::read(store.dir.path().join("out/hello")).unwrap(),
        b"hello"
    );
    store.run(&["export", "team/app:1", "--tar", "app.tar"]);
    store.run(&[
        "build",
        "tar:app.tar",
        "-t",
        "again",
        "--from",
        "team/app:1",
    ]);
    let mountpoint = store.dir.path().join("mnt");
    std::fs::create_dir(&mountpoint).unwrap();
    run(&mut store.command(&["mount", "again", "mnt"]));
    let _mounted = Mounted(mountpoint.clone());
    assert_eq!(std::fs::read(mountpoint.join("hello")).unwrap(), b"hello");
}

fn a_file_comes_before_an_image_of_the_store(store: &Store) {
    store.build("stored", "app");
    run(&mut store.command(&[
        "build",
        store.source("filed", b"").to_str().unwrap(),
        "-o",
        "app",
    ]));
    assert_eq!(store.run(&["ls", "app"]), "filed\n");
    assert_eq!(store.run(&["ls", "./app"]), "filed\n");
    assert_eq!(store.run(&["ls", "app:latest"]), "stored\n");
    std::fs::remove_file(store.dir.path().join("app")).unwrap();
    assert_eq!(store.run(&["ls", "app"]), "stored\n");
    // A directory is no image.
    std::fs::create_dir(store.dir.path().join("app")).unwrap();
    assert_eq!(store.run(&["ls", "app"]), "stored\n");
    assert!(store.fails(&["ls", "./app"], 1).contains("directory"));
    let complaint = store.fails(&["ls", "other"], 5);
    assert!(
        complaint.contains("no image other") && complaint.contains(&store.location),
        "{complaint}"
    );
    store.fails(&["ls", "No/Such"], 2);
}

fn a_failed_build_leaves_nothing(store: &Store) {
    store.build("old", "app");
    std::fs::write(store.dir.path().join("bad.tar"), [b'x'; 5000]).unwrap();
    store.fails(&["build", "tar:bad.tar", "-t", "app"], 3);
    assert_eq!(store.run(&["ls", "app"]), "old\n");
    if let Some(dir) = store.location.strip_prefix("dir:") {
        let names = |dir: PathBuf| {
            std::fs::read_dir(dir)
                .unwrap()
                .map(|e| e.unwrap().file_name())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(Path::new(dir).join("images")), ["app:latest"]);
        assert_eq!(names(Path::new(dir).join("locks")), [""; 0]);
    }
}

fn names_are_given_moved_and_taken(store: &Store) {
    store.build("one", "app:1");
    store.run(&["tag", "app:1", "app:latest", "registry.example.org/app:v1"]);
    let images = store.images();
    assert_eq!(images.len(), 1);
    let references = [
        "docker.io/library/app:1",
        "docker.io/library/app:latest",
        "registry.example.org/app:v1",
    ];
    assert_eq!(images[0]["references"], serde_json::json!(references));
    // The same again is the same image.
    store.build("one", "app:again");
    assert_eq!(store.images().len(), 1);
    assert!(
        store
            .run(&["rm", "app:again", "registry.example.org/app:v1"])
            .contains("name removed")
    );
    // Another image takes a name, and the image that had it stays.
    store.build("two", "app:latest");
    assert_eq!(
        (store.run(&["ls", "app"]), store.run(&["ls", "app:1"])),
        ("two\n".into(), "one\n".into())
    );
    store.build("three", "app:latest");
    let images = store.images();
    let unnamed: Vec<&Value> = images
        .iter()
        .filter(|i| i["references"] == serde_json::json!([]))
        .collect();
    assert_eq!((images.len(), unnamed.len()), (3, 1));
    let digest = unnamed[0]["root_digest"].as_str().unwrap();
    assert_eq!(store.run(&["ls", digest]), "two\n");
    assert!(store.run(&["list"]).contains("<none>"));
    // A name for it again.
    store.run(&["tag", digest, "app:2"]);
    assert_eq!(store.run(&["ls", "app:2"]), "two\n");
    let complaint = store.fails(&["rm", "app:1", "no-such", "app:2"], 5);
    assert!(
        complaint.contains("no image no-such") && complaint.contains("1 of 3"),
        "{complaint}"
    );
    assert_eq!(store.images().len(), 1);
    store.fails(&["tag", "app:latest", "Not A Name"], 2);
    store.fails(&["tag", "no-such", "app:3"], 5);
}

fn an_image_in_use_is_not_removed_and_it_is_said_by_whom(store: &Store) {
    store.build("file", "app");
    let mountpoint = store.dir.path().join("mnt");
    std::fs::create_dir(&mountpoint).unwrap();
    {
        run(&mut store.command(&["mount", "app", "mnt"]));
        let _mounted = Mounted(mountpoint.clone());
        let complaint = store.fails(&["rm", "app"], 6);
        assert!(
            complaint.contains(&format!("mounted on {}", mountpoint.display())),
            "{complaint}"
        );
        // By another path, and not by name.
        let (link, other) = (
            store.dir.path().join("link.bfc"),
            store.dir.path().join("other"),
        );
        std::os::unix::fs::symlink(store.image("app")["path"].as_str().unwrap(), &link).unwrap();
        std::fs::create_dir(&other).unwrap();
        {
            let _other = Mounted::new(&["--subdir", ".", link.to_str().unwrap()], &other);
            assert!(
                store
                    .fails(&["rm", "app"], 6)
                    .contains(&format!("mounted on {}", other.display()))
            );
        }
        store.build("newer", "app");
        let kept = store.run(&["gc", "--grace", "0s", "--json"]);
        assert_eq!(kept, "");
        assert_eq!(std::fs::read(mountpoint.join("file")).unwrap(), b"file");
    }
    let digest = store
        .images()
        .iter()
        .find(|i| i["references"] == serde_json::json!([]))
        .unwrap()["root_digest"]
        .as_str()
        .unwrap()
        .to_owned();
    // Read by somebody who is not known.
    let path = PathBuf::from(
        store
            .images()
            .iter()
            .find(|i| i["root_digest"] == *digest)
            .unwrap()["path"]
            .as_str()
            .unwrap(),
    );
    let file = std::fs::File::open(&path).unwrap();
    file.lock_shared().unwrap();
    assert!(store.fails(&["rm", &digest], 6).contains("has it open"));
    drop(file);
    store.run(&["rm", &digest]);
    assert!(!path.exists());
    assert_eq!(store.run(&["ls", "app"]), "newer\n");
}

fn gc_removes_what_has_no_name_and_what_was_interrupted_and_counts_it(store: &Store) {
    store.run(&[
        "build",
        store.source("large", &vec![7; 9_000_000]).to_str().unwrap(),
        "-t",
        "app",
        "--compression",
        "none",
    ]);
    store.build("new", "app");
    // A build that is stopped at work, and then killed.
    let mut noise = vec![0; 16 << 20];
    rustix::rand::getrandom(&mut noise, rustix::rand::GetRandomFlags::empty()).unwrap();
    let source = store.source("noise", &noise);
    let mut build = Killed(
        store
            .command(&[
                "build",
                source.to_str().unwrap(),
                "-t",
                "app",
                "--level",
                "22",
            ])
            .spawn()
            .unwrap(),
    );
    common::eventually("build at work", || store.work().pop());
    build.signal(rustix::process::Signal::STOP);
    assert_eq!(
        store
            .run(&["gc", "--grace", "0s", "--dry-run", "--json"])
            .lines()
            .count(),
        1,
        "it is at work"
    );
    build.signal(rustix::process::Signal::KILL);
    build.0.wait().unwrap();
    assert_eq!(
        store.run(&["gc", "--dry-run", "--json"]).lines().count(),
        1,
        "the image is too young"
    );
    let plan = store.run(&["gc", "--grace", "0s", "--dry-run"]);
    assert!(
        plan.contains("unfinished image") && plan.contains("would be freed"),
        "{plan}"
    );
    assert_eq!(store.images().len(), 2);
    let done: Vec<Value> = store
        .run(&["gc", "--grace", "0s", "--json"])
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let freed: u64 = done.iter().map(|row| row["freed"].as_u64().unwrap()).sum();
    assert!((9_000_000..9_300_000).contains(&freed), "{done:?}");
    assert_eq!((store.images().len(), store.work().len()), (1, 0));
    // What a pull that was cut off would go on from.
    let images = Path::new(store.image("app")["path"].as_str().unwrap())
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .to_owned();
    let blob = images.join(".lxcri-fs-blobs").join("0".repeat(64));
    std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
    std::fs::write(&blob, [b'b'; 10_000]).unwrap();
    assert_eq!(store.run(&["gc"]), "0 B (0 bytes) freed\n");
    let held = std::fs::File::open(&blob).unwrap();
    held.lock_shared().unwrap();
    assert_eq!(store.run(&["gc", "--grace", "0s"]), "0 B (0 bytes) freed\n");
    drop(held);
    assert!(
        store
            .run(&["gc", "--grace", "0s"])
            .contains("part of a blob")
    );
    assert!(!blob.exists());
    store.run(&["doctor"]);
    assert_eq!(store.run(&["gc", "--grace", "0s"]), "0 B (0 bytes) freed\n");
    assert_eq!(store.run(&["ls", "app"]), "new\n");
}

fn df_adds_up(store: &Store) {
    assert_eq!(store.json(&["df", "--json"])["images"], 0);
    store.run(&[
        "build",
        store.source("large", &vec![7; 3_000_000]).to_str().unwrap(),
        "-t",
        "app",
        "--compression",
        "none",
    ]);
    store.build("new", "app");
    let df = store.json(&["df", "--json"]);
    let bytes = |key: &str| df[key].as_u64().unwrap();
    let listed: u64 = store
        .images()
        .iter()
        .map(|i| i["bytes"].as_u64().unwrap())
        .sum();
    assert!(
        bytes("image_bytes") >= 3_000_000 && bytes("image_bytes").abs_diff(listed) < 200_000,
        "{df} {listed}"
    );
    assert!(bytes("garbage_bytes") >= 3_000_000 && bytes("free_bytes") > 0);
    assert!(store.run(&["df"]).contains("Garbage"));
}

fn verify_all_lists_what_is_damaged(store: &Store) {
    store.build("good", "good");
    store.build("gone", "gone");
    store.run(&[
        "build",
        store.source("bad", b"not anywhere else").to_str().unwrap(),
        "-t",
        "bad",
    ]);
    assert_eq!(
        store
            .run(&["verify", "--all"])
            .lines()
            .filter(|l| l.contains("sound"))
            .count(),
        3
    );
    let path = |name: &str| {
        store.json(&["info", "--json", name])["image"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    store.damage(Path::new(&path("bad")), b"not anywhere else");
    store.damage(Path::new(&path("gone")), b"BFCFv1");
    let output = store.output(&["verify", "--all"]);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(
        text.contains("good:latest: sound") && text.contains("bad:latest: bad:"),
        "{text}"
    );
    assert!(
        stderr(&output).contains("2 of 3 images are damaged: bad:latest, gone:latest"),
        "{}",
        stderr(&output)
    );
    // What is whole is listed, and works.
    assert_eq!(store.run(&["cat", "good", "good"]), "good");
    assert_eq!(store.images().len(), 3);
}

/// A process that ends with the test at the latest.
struct Killed(std::process::Child);

impl Killed {
    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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

/// Whichever goes, the other stays whole.
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

/// `store` is small.
fn is_filled(store: &Store) {
    store.build("kept", "kept");
    let mut noise = vec![0; 40 << 20];
    rustix::rand::getrandom(&mut noise, rustix::rand::GetRandomFlags::empty()).unwrap();
    let elsewhere = tempfile::tempdir_in("/var/tmp").unwrap();
    std::fs::write(elsewhere.path().join("noise"), &noise).unwrap();
    // What is not compressed may become so small that it fits: it is tried.
    let complaint = store.fails(
        &["build", elsewhere.path().to_str().unwrap(), "-t", "large"],
        1,
    );
    assert!(
        ["No space left", "quota exceeded", "are free"]
            .iter()
            .any(|what| complaint.contains(what)),
        "{complaint}"
    );
    assert_eq!((store.images().len(), store.work().len()), (1, 0));
    assert_eq!(store.run(&["cat", "kept", "kept"]), "kept");
    store.run(&["doctor"]);
}

fn a_store_that_is_full_has_nothing_half_in_it(store: &Store) {
    if let Some(dataset) = store.location.strip_prefix("zfs:") {
        store.build("first", "first");
        zfs(&["set", "quota=24M", dataset]);
        store.run(&["rm", "first"]);
        return is_filled(store);
    }
    let disk = LoopDisk::tmpfs("24m");
    is_filled(&Store::in_directory(disk.path()));
}

fn doctor_tells_what_is_broken(store: &Store) {
    let findings = |store: &Store| {
        let output = store.output(&["doctor", "--json"]);
        let text = String::from_utf8(output.stdout).unwrap();
        let findings: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let bad = findings
            .iter()
            .filter(|f| f["level"] == "bad" && f["about"] == "store")
            .map(|f| f["found"].as_str().unwrap().to_owned());
        (output.status.success(), bad.collect::<Vec<_>>(), text)
    };
    store.build("one", "one");
    store.build("two", "two");
    let (sound, bad, text) = findings(store);
    assert!(
        sound && bad.is_empty() && text.contains("images: 2, containers: 0"),
        "{text}"
    );
    for about in ["kernel", "overlay", "zfs", "limits", "mounts", "store"] {
        assert!(
            text.contains(&format!("\"about\":\"{about}\"")),
            "{about}: {text}"
        );
    }
    let path = store.image("two")["path"].as_str().unwrap().to_owned();
    store.damage(Path::new(&path), b"BFCFv1");
    let (sound, bad, text) = findings(store);
    assert!(
        !sound && bad.len() == 1 && bad[0].contains("image two:latest"),
        "{text}"
    );
    store.fails(&["doctor"], 1);
}

fn what_is_there_is_not_built_again(store: &Store) {
    store.build("file", "first");
    let path = store.image("first")["path"].as_str().unwrap().to_owned();
    let source = format!("bfc:{path}");
    let built = |args: &[&str]| store.run(&[&["build", &source, "-t", "second"], args].concat());
    assert!(!built(&[]).contains("already in the store"));
    assert!(built(&[]).contains("already in the store"));
    assert!(!built(&["--force"]).contains("already in the store"));
    assert!(!built(&["--compression", "none"]).contains("already in the store"));
    // Of several at a time, one does the work.
    let children: Vec<_> = (0..4)
        .map(|_| {
            store
                .command(&["build", &source, "-t", "third", "--level", "9"])
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let texts: Vec<String> = children
        .into_iter()
        .map(|c| String::from_utf8(c.wait_with_output().unwrap().stdout).unwrap())
        .collect();
    assert_eq!(
        texts
            .iter()
            .filter(|t| !t.contains("already in the store"))
            .count(),
        1,
        "{texts:?}"
    );
}

/// For as long as `LXCRI_FS_TEST_SECONDS` says; the clearing up is what takes long on ZFS in an
/// emulated VM.
fn twenty_processes_that_are_killed_at_any_point_lose_nothing(store: &Store) {
    const PROCESSES: usize = 20;
    let seconds = std::env::var("LXCRI_FS_TEST_SECONDS")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(if store.location.starts_with("dir:") {
            20
        } else {
            10
        });
    store.build("kept", "kept");
    let sources: Vec<String> = (0..4)
        .map(|i| {
            store
                .source(&format!("s{i}"), &[i; 100_000])
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let base = format!("bfc:{}", store.image("kept")["path"].as_str().unwrap());
    let until = Instant::now() + Duration::from_secs(seconds);
    let mountpoint = |n: usize| store.dir.path().join(format!("mnt-{n}"));
    let _mounts: Vec<Gone> = (0..PROCESSES)
        .map(|n| {
            std::fs::create_dir(mountpoint(n)).unwrap();
            Gone(mountpoint(n))
        })
        .collect();
    std::thread::scope(|scope| {
        for n in 0..PROCESSES {
            let (sources, base) = (&sources, &base);
            scope.spawn(move || {
                let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(n as u64 + 1);
                let mut next = |below: u64| {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    random % below
                };
                while Instant::now() < until {
                    let (name, other) = (format!("n{}", next(5)), format!("n{}", next(5)));
                    let source = &sources[usize::try_from(next(4)).unwrap()];
                    let mnt = mountpoint(n).to_str().unwrap().to_owned();
                    let args: Vec<&str> = match next(10) {
                        0 | 1 => vec!["build", source, "-t", &name],
                        2 | 3 => vec!["build", base, "--layer", source, "-t", &name],
                        4 => vec!["tag", &name, &other],
                        5 => vec!["rm", &name],
                        6 => vec!["gc", "--grace", "0s"],
                        7 => vec!["mount", if next(2) == 0 { &name } else { "kept" }, &mnt],
                        8 => vec!["umount", &mnt],
                        _ => vec!["list"],
                    };
                    let quiet = || std::process::Stdio::null();
                    let mut child = Killed(
                        store
                            .command(&args)
                            .stdout(quiet())
                            .stderr(quiet())
                            .spawn()
                            .unwrap(),
                    );
                    if next(3) == 0 {
                        std::thread::sleep(Duration::from_millis(next(80)));
                        continue;
                    }
                    child.0.wait().unwrap();
                }
            });
        }
    });
    assert_eq!(store.run(&["cat", "kept", "kept"]), "kept");
    let sound = store.output(&["doctor"]);
    assert!(
        sound.status.success(),
        "{}{}",
        String::from_utf8_lossy(&sound.stdout),
        stderr(&sound)
    );
    store.run(&["verify", "--all"]);
    (0..PROCESSES).for_each(|n| drop(Gone(mountpoint(n))));
    let left = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(
        !left.contains(&format!("{}/mnt-", store.dir.path().display())),
        "{left}"
    );
    store.run(&["gc", "--grace", "0s"]);
    assert_eq!(store.work(), [""; 0]);
    assert!(
        store
            .images()
            .iter()
            .all(|i| i["references"] != serde_json::json!([])),
        "{:?}",
        store.images()
    );
    if let Some(dir) = store.location.strip_prefix("dir:") {
        assert_eq!(
            std::fs::read_dir(Path::new(dir).join("locks"))
                .unwrap()
                .count(),
            0
        );
    }
}

/// A directory on which nothing is mounted when this goes.
struct Gone(PathBuf);

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = common::lxcri_fs().arg("umount").arg(&self.0).output();
    }
}

#[test]
fn zfs_an_image_that_was_sent_is_there() {
    let Some(store) = Store::zfs() else { return };
    store.build("file", "registry.example.org/team/app:v1_RC");
    let sent = store.images().remove(0);
    let name = sent["name"].as_str().unwrap();
    let dataset = format!("{}/images/{name}", &store.location[4..]);
    let snapshot = zfs(&[
        "list", "-H", "-o", "name", "-t", "snapshot", "-d", "1", &dataset,
    ])
    .trim_end()
    .to_owned();
    let pool = Pool::new(
        &format!("lxcrifs{}", std::process::id()),
        "/var/tmp".as_ref(),
        256 << 20,
        &[],
    );
    zfs(&["create", &format!("{}/images", pool.name)]);
    let send = |options: &str, name: &str| {
        let script = format!(
            "set -o pipefail; zfs send {options} '{snapshot}' | zfs receive '{}/images/{name}'",
            pool.name
        );
        run(Command::new("bash").args(["-c", &script]));
    };
    send("-p", name);
    let there = Store::at(format!("zfs:{}", pool.name));
    let mut found = there.images().remove(0);
    let same = [
        "references",
        "root_digest",
        "created",
        "layers",
        "compression",
        "encryption",
        "size",
    ];
    assert!(
        same.iter().all(|key| found[key] == sent[key]),
        "{found} {sent}"
    );
    // Without properties, what it is called is told by the name that it is received under.
    send("", "other:2");
    found = there
        .images()
        .into_iter()
        .find(|i| i["references"][0] == "docker.io/library/other:2")
        .unwrap();
    assert_eq!(found["root_digest"], sent["root_digest"]);
    there.run(&["verify", "--all"]);
    there.run(&["doctor"]);
    let mountpoint = there.dir.path().join("mnt");
    std::fs::create_dir(&mountpoint).unwrap();
    run(&mut there.command(&["mount", "registry.example.org/team/app:v1_RC", "mnt"]));
    let mounted = Mounted(mountpoint.clone());
    assert_eq!(std::fs::read(mountpoint.join("file")).unwrap(), b"file");
    assert!(
        there
            .fails(&["rm", "registry.example.org/team/app:v1_RC"], 6)
            .contains("mounted on")
    );
    drop(mounted);
    there.run(&["rm", "registry.example.org/team/app:v1_RC", "other:2"]);
}

#[test]
fn an_image_that_was_copied_there_is_there() {
    let (from, to) = (Store::directory(), Store::directory());
    let target = to.location.strip_prefix("dir:").unwrap();
    from.build("file", "registry.example.org/team/app:v1_RC");
    let path = PathBuf::from(from.images()[0]["path"].as_str().unwrap());
    let name = path.parent().unwrap().file_name().unwrap();
    assert_eq!(name, "registry.example.org__team__app:v1_5fRC");
    let images = Path::new(target).join("images");
    std::fs::create_dir_all(images.join(name)).unwrap();
    // Only the file: what is known of it is in it, and its name in the directory's.
    std::fs::copy(&path, images.join(name).join("any.bfc")).unwrap();
    let (mut a, mut b) = (from.images().remove(0), to.images().remove(0));
    for image in [&mut a, &mut b] {
        let image = image.as_object_mut().unwrap();
        image.retain(|key, _| !["path", "created", "bytes", "own_bytes"].contains(&key.as_str()));
    }
    assert_eq!(a, b);
    assert_eq!(
        to.run(&["ls", "registry.example.org/team/app:v1_RC"]),
        "file\n"
    );
    // What is no image's name, and what is no image, is passed over.
    std::fs::create_dir(images.join("..strange")).unwrap();
    std::fs::create_dir(images.join("empty")).unwrap();
    assert_eq!(to.images().len(), 1);
}

#[test]
fn the_configuration_says_where_its_values_come_from() {
    let store = Store::directory();
    let config = store.dir.path().join("config.toml");
    let show = |text: &str, variable: Option<&str>, args: &[&str]| {
        std::fs::write(&config, text).unwrap();
        let mut command = store.command(&["config", "show", "--json"]);
        command
            .args(args)
            .env("LXCRI_FS_CONFIG", &config)
            .env("LXCRI_FS_STORE", variable.unwrap_or_default());
        let output = command.output().unwrap();
        (
            serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default(),
            stderr(&output),
        )
    };
    let text = "store = \"dir:/srv/images\"\n[registries.\"localhost:5000\"]\ninsecure = true\n";
    let cases: [(Option<&str>, &[&str], &str, &str); 3] = [
        (None, &[], "dir:/srv/images", config.to_str().unwrap()),
        (Some("zfs:tank"), &[], "zfs:tank", "LXCRI_FS_STORE"),
        (
            Some("zfs:tank"),
            &["--store", "/elsewhere"],
            "dir:/elsewhere",
            "--store",
        ),
    ];
    for (variable, args, value, from) in cases {
        let (shown, _) = show(text, variable, args);
        assert_eq!(
            (
                shown["store"]["value"].as_str(),
                shown["store"]["from"].as_str()
            ),
            (Some(value), Some(from))
        );
        assert_eq!(shown["gc.grace"]["from"], "default");
        assert_eq!(
            shown["registries"]["value"]["localhost:5000"]["insecure"],
            true
        );
    }
    let (_, complaint) = show("stor = \"x\"\n", None, &[]);
    assert!(
        complaint.contains("config.toml, line 1: unknown field `stor`"),
        "{complaint}"
    );
    let text = run(store
        .command(&["--store", "zfs:tank", "config", "show"])
        .env_remove("LXCRI_FS_STORE"));
    assert!(
        text.lines()
            .any(|l| l.split_whitespace().eq(["store", "zfs:tank", "--store"])),
        "{text}"
    );
}
