//! Images of a store: their names, their use, and the ways into a store.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bench::{Store, on_both};
use crate::common::zfs::{Pool, zfs};
use crate::common::{Mounted, run, stderr};
use serde_json::Value;

on_both! {
    a_stored_image_can_be_used_wherever_a_file_can
    a_file_takes_precedence_over_a_stored_image
    a_failed_build_leaves_nothing
    tags_are_added_moved_and_removed
    a_name_that_moved_on_means_the_new_image
    an_image_in_use_is_not_removed_and_its_user_is_named
    a_stored_image_is_not_built_again
    commands_take_several_names
}

fn a_stored_image_can_be_used_wherever_a_file_can(store: &Store) {
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
    // As a source, and as a layer on top.
    store.run(&["build", "team/app:1", "-t", "copied"]);
    assert_eq!(store.run(&["cat", "copied", "hello"]), "hello");
    store.build("other", "other");
    for source in ["team/app:1", "bfc:team/app:1", digest] {
        store.run(&["build", source, "--layer", "other", "-t", "both"]);
        assert_eq!(store.run(&["ls", "both"]), "hello\nother\n");
    }
    store.run(&["append", "bfc:other", "bfc:team/app:1", "-t", "appended"]);
    assert_eq!(store.run(&["ls", "appended"]), "hello\nother\n");
    store.run(&["build", "team/app:1", "-o", "file.bfc"]);
    store.run(&["append", "file.bfc", "other"]);
    assert_eq!(store.run(&["ls", "file.bfc"]), "hello\nother\n");
    store.fails(&["build", "team/app:2", "-t", "none"], 5);
    store.fails(&["build", "bfc:team/app:2", "-t", "none"], 5);
    let mountpoint = store.dir.path().join("mnt");
    std::fs::create_dir(&mountpoint).unwrap();
    let upper = store.dir.path().join("upper");
    run(&mut store.command(&[
        "mount",
        "team/app:1",
        "mnt",
        "--upper",
        upper.to_str().unwrap(),
    ]));
    {
        let _mounted = Mounted(mountpoint.clone());
        std::fs::write(mountpoint.join("written"), "").unwrap();
    }
    assert_eq!(store.run(&["diff", "upper", "team/app:1"]), "A /written\n");
    assert_eq!(
        store.run(&["diff", "upper", "bfc:team/app:1"]),
        "A /written\n"
    );
    store.run(&["commit", "upper", "team/app:1", "-t", "committed"]);
    assert_eq!(store.run(&["ls", "committed"]), "hello\nwritten\n");
    store.fails(&["diff", "upper", "team/app:2"], 5);
    run(&mut store.command(&["mount", "again", "mnt"]));
    let _mounted = Mounted(mountpoint.clone());
    assert_eq!(std::fs::read(mountpoint.join("hello")).unwrap(), b"hello");
}

/// What lists is a table also when it is empty, and commands take several names.
fn commands_take_several_names(store: &Store) {
    assert!(store.run(&["list"]).starts_with("REFERENCE"));
    assert_eq!(store.run(&["list", "-q"]), "");
    for name in ["a", "b", "c"] {
        store.build(name, name);
    }
    let info = store.run(&["info", "a", "b"]);
    assert_eq!(info.matches("Root digest").count(), 2);
    assert_eq!(store.run(&["info", "--json", "a", "b"]).lines().count(), 2);
    // What can be shown is, and the rest is an error.
    let output = store.output(&["info", "a", "none", "b"]);
    assert_eq!(output.status.code(), Some(5));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout)
            .matches("Root digest")
            .count(),
        2
    );
    assert_eq!(store.run(&["cat", "a", "a", "/a"]), "aa");
    let digests = store.run(&["list", "-q"]);
    let digests: Vec<&str> = digests.lines().collect();
    assert_eq!(digests.len(), 3);
    store.run(&[&["rm"], &digests[..]].concat());
    assert!(store.images().is_empty());
}

fn a_file_takes_precedence_over_a_stored_image(store: &Store) {
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

/// The first image with a name lies in a directory of that name, for ever.
fn a_name_that_moved_on_means_the_new_image(store: &Store) {
    let show = |name: &str| store.run(&["ls", name]);
    store.build("one", "t:1");
    store.run(&["tag", "t:1", "keep:1"]);
    store.build("two", "t:1");
    assert_eq!(
        (show("t:1"), show("keep:1")),
        ("two\n".into(), "one\n".into())
    );
    store.run(&["rm", "t:1"]);
    assert_eq!((show("keep:1"), store.images().len()), ("one\n".into(), 1));
    for args in [["ls", "t:1"], ["rm", "t:1"]] {
        store.fails(&args, 5);
    }
    // Nor does a name live on that was taken away.
    store.build("three", "x");
    store.run(&["tag", "x", "y"]);
    store.run(&["rm", "x"]);
    for name in ["x", "x:latest"] {
        store.fails(&["rm", name], 5);
    }
    assert_eq!(show("y"), "three\n");
    for name in ["y", "keep:1"] {
        store.run(&["rm", name]);
    }
}

fn tags_are_added_moved_and_removed(store: &Store) {
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

fn an_image_in_use_is_not_removed_and_its_user_is_named(store: &Store) {
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

fn a_stored_image_is_not_built_again(store: &Store) {
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

#[test]
fn zfs_a_store_shows_an_image_sent_into_it() {
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
fn a_store_shows_an_image_copied_into_it() {
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
fn config_show_names_the_origin_of_each_value() {
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
