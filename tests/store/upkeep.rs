//! `gc`, `df`, `verify --all` and `doctor` of a store, and a store that is full.

use std::path::Path;
use std::process::Command;

use super::killed::Killed;
use crate::bench::{LoopDisk, Store, on_both};
use crate::common::zfs::zfs;
use crate::common::{run, stderr};
use serde_json::Value;

on_both! {
    gc_removes_untagged_and_interrupted_images_and_counts_them
    the_sizes_of_df_add_up
    verify_all_lists_what_is_damaged
    an_image_is_kept_for_the_grace_time_after_it_lost_its_name
    a_full_store_has_no_partial_image
    doctor_reports_damage
}

fn an_image_is_kept_for_the_grace_time_after_it_lost_its_name(store: &Store) {
    store.build("old", "app");
    let path = store.image("app")["path"].as_str().unwrap().to_owned();
    let dir = Path::new(&path).parent().unwrap();
    // It came into the store long ago.
    const CREATED: &str = "2020-01-01T00:00:00Z";
    match store.location.strip_prefix("zfs:") {
        Some(parent) => {
            let name = dir.file_name().unwrap().to_str().unwrap();
            let dataset = format!("{parent}/images/{name}");
            zfs(&["set", &format!("org.lxcri-fs:created={CREATED}"), &dataset]);
        }
        None => {
            let facts = dir.join("image.json");
            let text = std::fs::read_to_string(&facts).unwrap();
            let mut known: Value = serde_json::from_str(&text).unwrap();
            known["created"] = CREATED.into();
            std::fs::write(&facts, known.to_string()).unwrap();
        }
    }
    assert_eq!(store.image("app")["created"], CREATED);
    store.build("new", "app");
    let said = store.run(&["gc"]);
    assert!(
        said.contains(", formerly app:latest: kept until "),
        "{said}"
    );
    let row: Value = serde_json::from_str(&store.run(&["gc", "--json"])).unwrap();
    let until: jiff::Timestamp = row["kept_until"].as_str().unwrap().parse().unwrap();
    let left = until.duration_since(jiff::Timestamp::now());
    assert!((23..=24).contains(&left.as_hours()), "{row}");
    assert_eq!(store.images().len(), 2);
    // With its name it is no garbage; without, its time begins anew.
    store.build("old", "app");
    assert!(
        store
            .run(&["gc", "--grace", "0s"])
            .contains("formerly app:")
    );
    assert_eq!(store.images().len(), 1);
    assert_eq!(store.image("app")["created"], CREATED);
}

fn gc_removes_untagged_and_interrupted_images_and_counts_them(store: &Store) {
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
    let mut noise = vec![0; 96 << 20];
    for part in noise.chunks_mut(1 << 20) {
        rustix::rand::getrandom(part, rustix::rand::GetRandomFlags::empty()).unwrap();
    }
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
    crate::common::eventually("build at work", || store.work().pop());
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
    let planned = store.run(&["gc", "--dry-run", "--json"]);
    let (kept, removed): (Vec<&str>, Vec<&str>) = planned
        .lines()
        .partition(|line| line.contains("\"kept_until\":"));
    assert_eq!(
        (kept.len(), removed.len()),
        (1, 1),
        "the image is too young"
    );
    let plan = store.run(&["gc", "--grace", "0s", "--dry-run"]);
    assert!(
        plan.contains("unfinished image") && plan.contains("would be freed"),
        "{plan}"
    );
    let digest = store.images().into_iter().find_map(|image| {
        let digest = image["root_digest"].as_str().unwrap().to_owned();
        image["references"]
            .as_array()
            .unwrap()
            .is_empty()
            .then_some(digest)
    });
    let digest = digest.unwrap();
    let short = &digest.strip_prefix("blake3:").unwrap()[..12];
    let named = format!("image {short}, formerly app:latest: ");
    assert!(
        plan.contains(&named) && !plan.contains("_w") && !plan.contains("app_g"),
        "{plan}"
    );
    assert_eq!(store.images().len(), 2);
    let done: Vec<Value> = store
        .run(&["gc", "--grace", "0s", "--json"])
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let freed: u64 = done.iter().map(|row| row["freed"].as_u64().unwrap()).sum();
    let image = done.iter().find(|row| row["kind"] == "image").unwrap();
    assert_eq!(
        (&image["name"], &image["digest"]),
        (&"app:latest".into(), &digest.into())
    );
    let work = done.iter().find(|row| row["kind"] == "unfinished image");
    assert_eq!(work.unwrap().get("name"), None);
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
    let said = store.run(&["gc"]);
    let end = " by the grace period\n0 B (0 bytes) freed\n";
    assert!(
        said.contains(": kept until ") && said.ends_with(end),
        "{said}"
    );
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

fn the_sizes_of_df_add_up(store: &Store) {
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

fn a_full_store_has_no_partial_image(store: &Store) {
    if let Some(dataset) = store.location.strip_prefix("zfs:") {
        store.build("first", "first");
        zfs(&["set", "quota=24M", dataset]);
        store.run(&["rm", "first"]);
        return is_filled(store);
    }
    let disk = LoopDisk::tmpfs("24m");
    is_filled(&Store::in_directory(disk.path()));
}

fn doctor_reports_damage(store: &Store) {
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

/// What gives space back works on a full file system.
#[test]
fn containers_and_names_are_removed_from_a_full_store() {
    let disk = LoopDisk::tmpfs("8m");
    let store = Store::in_directory(disk.path());
    store.build("one", "one");
    store.run(&["tag", "one", "other"]);
    store.run(&[
        "append",
        "one",
        store.source("more", b"more").to_str().unwrap(),
        "-t",
        "two",
    ]);
    let elsewhere = tempfile::tempdir_in("/var/tmp").unwrap();
    let bundle = elsewhere.path().join("c");
    let create = format!("--bundle={}", bundle.display());
    store.run(&["create", "c", "--image=one", &create, "--", "true"]);
    let fill = |path: &Path| {
        let full = std::fs::write(path, vec![1; 16 << 20]).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    };
    fill(&bundle.join("rootfs/large"));
    // What is kept has to be recorded.
    store.fails(&["delete", "c", "--keep"], 1);
    assert!(bundle.join("rootfs/large").exists());
    store.run(&["delete", "c"]);
    assert!(!bundle.exists());
    let ballast = disk.path().join("ballast");
    fill(&ballast);
    store.run(&["rm", "other"]);
    store.run(&["rm", "one"]);
    assert_eq!(store.images().len(), 1);
    assert_eq!(store.run(&["cat", "two", "more"]), "more");
}

/// What a command prints that may fail.
fn said(store: &Store, args: &[&str]) -> String {
    String::from_utf8(store.output(args).stdout).unwrap()
}

/// What it needs is unknown, so all images stay; everything else goes on.
#[test]
fn a_damaged_container_is_in_nobodys_way() {
    let store = Store::directory();
    store.build("one", "one");
    let bundle = |name: &str| store.dir.path().join(name).display().to_string();
    let create = |name: &str| {
        let (image, bundle) = ("--image=one", format!("--bundle={}", bundle(name)));
        store.run(&["create", name, image, &bundle, "--", "true"]);
    };
    create("bad");
    create("good");
    let containers = store.dir.path().join("store/containers");
    std::fs::write(containers.join("bad/store.json"), "{").unwrap();
    store.run(&["inspect", "good"]);
    store.run(&["umount", &format!("{}/rootfs", bundle("good"))]);
    store.run(&["mount", "--all"]);
    assert!(store.json(&["inspect", "good", "--json"])["mounted"] == true);
    store.run(&["gc", "--grace", "0s"]);
    store.run(&["df"]);
    create("new");
    store.build("two", "two");
    let refusal = store.fails(&["rm", "two"], 6);
    assert!(refusal.contains("container bad, whose list"), "{refusal}");
    assert!(said(&store, &["doctor"]).contains("images of container bad"));
    for name in ["bad", "good", "new"] {
        store.run(&["delete", name]);
    }
    store.run(&["rm", "two"]);
    // Of a record that is damaged, `doctor` says so.
    create("bad");
    std::fs::write(containers.join("bad/container.json"), "{").unwrap();
    assert!(said(&store, &["doctor"]).contains("container bad:"));
    run(Command::new("umount").arg(bundle("bad/rootfs")));
}
