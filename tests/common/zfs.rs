//! What the tests on ZFS share: a pool to use, and datasets that go away.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::run;

/// The pool or dataset that tests may use, from `LXCRI_FS_TEST_POOL`. Says that the test is skipped
/// where there is none: `tests/zfs/run` has one.
pub fn pool() -> Option<String> {
    let pool = std::env::var("LXCRI_FS_TEST_POOL")
        .ok()
        .filter(|pool| !pool.is_empty());
    if pool.is_none() {
        let test = std::thread::current().name().unwrap_or("test").to_owned();
        eprintln!("{test} is skipped: LXCRI_FS_TEST_POOL names no ZFS pool");
    }
    pool
}

/// A dataset of a test's own, destroyed with all that is in it when the test ends, however it ends.
pub struct Scratch(String);

impl Scratch {
    /// A new dataset in the pool; `None` where there is none.
    pub fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "{}/test-{}-{}",
            pool()?,
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        zfs(&["create", &name]);
        Some(Self(name))
    }

    /// The name of a dataset in it.
    pub fn child(&self, name: &str) -> String {
        format!("{}/{name}", self.0)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let output = Command::new("zfs")
            .args(["destroy", "-R", "-f", &self.0])
            .output()
            .unwrap();
        if !output.status.success() && !std::thread::panicking() {
            panic!("zfs destroy {}: {}", self.0, super::stderr(&output));
        }
    }
}

/// `zfs ARGS`, which has to succeed; its output.
#[track_caller]
pub fn zfs(args: &[&str]) -> String {
    run(Command::new("zfs").args(args))
}

/// A property of a dataset or snapshot.
#[track_caller]
pub fn property(dataset: &str, name: &str) -> String {
    zfs(&["get", "-Hp", "-o", "value", name, dataset])
        .trim_end()
        .to_owned()
}

/// The directory of a dataset.
#[track_caller]
pub fn directory(dataset: &str) -> PathBuf {
    PathBuf::from(property(dataset, "mountpoint"))
}

/// A pool in a file, destroyed when this goes.
pub struct Pool {
    pub name: String,
    _file: tempfile::NamedTempFile,
}

impl Pool {
    /// A pool of a file of `bytes` in a directory, made by `zpool create ARGS`.
    pub fn new(name: &str, dir: &Path, bytes: u64, args: &[&str]) -> Self {
        let file = tempfile::NamedTempFile::new_in(dir).unwrap();
        file.as_file().set_len(bytes).unwrap();
        run(Command::new("zpool")
            .arg("create")
            .args(args)
            .arg(name)
            .arg(file.path()));
        Self {
            name: name.to_owned(),
            _file: file,
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = Command::new("zpool")
            .args(["destroy", "-f", &self.name])
            .status();
    }
}
