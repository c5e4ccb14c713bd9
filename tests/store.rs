//! Images and containers in a store. All of it passes on a directory, and with `LXCRI_FS_TEST_ZFS=POOL[/PARENT]` on ZFS.
//!
//! Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Mounted, run, stderr};
use serde_json::Value;

/// A store that goes with the test.
struct Store {
    dir: tempfile::TempDir,
    location: String,
}

impl Store {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("lxcri-fs-store").tempdir_in("/var/tmp").unwrap();
        let location = match std::env::var("LXCRI_FS_TEST_ZFS") {
            Ok(parent) => format!("zfs:{parent}/{}", dir.path().file_name().unwrap().to_str().unwrap().replace('.', "_")),
            Err(_) => format!("dir:{}", dir.path().join("store").display()),
        };
        Self { dir, location }
    }

    /// A command that works on it.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = common::lxcri_fs();
        command.args(args).current_dir(self.dir.path()).env("LXCRI_FS_STORE", &self.location).env_remove("LXCRI_FS_CONFIG");
        command
    }

    /// Its standard output.
    #[track_caller]
    fn run(&self, args: &[&str]) -> String {
        run(&mut self.command(args))
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.run(args)).unwrap()
    }

    /// A command that has to fail with this exit code; its complaint.
    #[track_caller]
    fn fails(&self, args: &[&str], code: i32) -> String {
        let output = self.output(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
        stderr(&output)
    }

    fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// A directory with a file `name` in it, to build an image of.
    fn source(&self, name: &str, content: &[u8]) -> PathBuf {
        let dir = self.dir.path().join(format!("source-{name}"));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(name), content).unwrap();
        dir
    }

    /// Builds an image with one file, `name`.
    #[track_caller]
    fn build(&self, name: &str, reference: &str) {
        self.run(&["build", self.source(name, name.as_bytes()).to_str().unwrap(), "-t", reference]);
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(dataset) = self.location.strip_prefix("zfs:") {
            let output = Command::new("zfs").args(["destroy", "-R", dataset]).output().unwrap();
            assert!(output.status.success() || std::thread::panicking(), "{}", stderr(&output));
        }
    }
}

#[test]
fn an_image_in_the_store_can_be_used_wherever_a_file_can() {
    let store = Store::new();
    store.build("hello", "team/app:1");
    for name in ["team/app:1", "docker.io/team/app:1", "docker://team/app:1"] {
        assert_eq!(store.run(&["cat", name, "hello"]), "hello");
    }
    assert_eq!(store.run(&["ls", "team/app:1"]), "hello\n");
    let info = store.json(&["info", "--json", "team/app:1"]);
    let digest = info["root_digest"].as_str().unwrap();
    assert_eq!(store.run(&["cat", digest, "hello"]), "hello");
    assert_eq!(store.run(&["cat", &digest["blake3:".len()..][..12], "hello"]), "hello");
    store.run(&["verify", "team/app:1"]);
    store.run(&["extract", "team/app:1", "out"]);
    assert_eq!(std::fs::read(store.dir.path().join("out/hello")).unwrap(), b"hello");
    store.run(&["export", "team/app:1", "--tar", "app.tar"]);
    store.run(&["build", "tar:app.tar", "-t", "again", "--from", "team/app:1"]);
    let mountpoint = store.dir.path().join("mnt");
    std::fs::create_dir(&mountpoint).unwrap();
    run(&mut store.command(&["mount", "again", "mnt"]));
    let _mounted = Mounted(mountpoint.clone());
    assert_eq!(std::fs::read(mountpoint.join("hello")).unwrap(), b"hello");
}

#[test]
fn a_file_comes_before_an_image_of_the_store() {
    let store = Store::new();
    store.build("stored", "app");
    run(&mut store.command(&["build", store.source("filed", b"").to_str().unwrap(), "-o", "app"]));
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
    assert!(complaint.contains("no image other") && complaint.contains(&store.location), "{complaint}");
    store.fails(&["ls", "No/Such"], 2);
}

#[test]
fn a_failed_build_leaves_nothing() {
    let store = Store::new();
    store.build("old", "app");
    std::fs::write(store.dir.path().join("bad.tar"), [b'x'; 5000]).unwrap();
    store.fails(&["build", "tar:bad.tar", "-t", "app"], 3);
    assert_eq!(store.run(&["ls", "app"]), "old\n");
    if let Some(dir) = store.location.strip_prefix("dir:") {
        let names = |dir: PathBuf| std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
        assert_eq!(names(Path::new(dir).join("images")), ["app:latest"]);
        assert_eq!(names(Path::new(dir).join("locks")), [""; 0]);
    }
}

#[test]
fn the_configuration_says_where_its_values_come_from() {
    let store = Store::new();
    let config = store.dir.path().join("config.toml");
    let show = |text: &str, variable: Option<&str>, args: &[&str]| {
        std::fs::write(&config, text).unwrap();
        let mut command = store.command(&["config", "show", "--json"]);
        command.args(args).env("LXCRI_FS_CONFIG", &config).env("LXCRI_FS_STORE", variable.unwrap_or_default());
        let output = command.output().unwrap();
        (serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default(), stderr(&output))
    };
    let text = "store = \"dir:/srv/images\"\n[registries]\ninsecure = [\"localhost:5000\"]\n";
    let cases: [(Option<&str>, &[&str], &str, &str); 3] = [
        (None, &[], "dir:/srv/images", config.to_str().unwrap()),
        (Some("zfs:tank"), &[], "zfs:tank", "LXCRI_FS_STORE"),
        (Some("zfs:tank"), &["--store", "/elsewhere"], "dir:/elsewhere", "--store"),
    ];
    for (variable, args, value, from) in cases {
        let (shown, _) = show(text, variable, args);
        assert_eq!((shown["store"]["value"].as_str(), shown["store"]["from"].as_str()), (Some(value), Some(from)));
        assert_eq!(shown["gc.grace"]["from"], "default");
        assert_eq!(shown["registries.insecure"]["value"][0], "localhost:5000");
    }
    let (_, complaint) = show("stor = \"x\"\n", None, &[]);
    assert!(complaint.contains("config.toml, line 1: unknown field `stor`"), "{complaint}");
    let text = run(store.command(&["--store", "zfs:tank", "config", "show"]).env_remove("LXCRI_FS_STORE"));
    assert!(text.lines().any(|l| l.split_whitespace().eq(["store", "zfs:tank", "--store"])), "{text}");
}
