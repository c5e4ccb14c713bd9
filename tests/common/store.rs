//! A store for tests, in a directory or on ZFS, and disks to put one on.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use super::common::zfs::Scratch;
use super::common::{lxcri_fs, run, stderr};

/// Makes tests of functions that take a store: one on a directory, one on ZFS. tests/zfs/run finds
/// the files that use it.
#[allow(unused_macros)]
macro_rules! on_both {
    ($($name:ident)*) => {
        mod on_a_directory {
            $(#[test] fn $name() { super::$name(&super::Store::directory()); })*
        }
        mod zfs_ {
            $(#[test] fn $name() {
                if let Some(store) = super::Store::zfs() {
                    super::$name(&store);
                }
            })*
        }
    };
}
#[allow(unused_imports)]
pub(crate) use on_both;

/// A store that is removed with the test.
pub struct Store {
    pub dir: tempfile::TempDir,
    pub location: String,
    _dataset: Option<Scratch>,
}

impl Store {
    pub fn directory() -> Self {
        Self::in_directory("/var/tmp".as_ref())
    }

    pub fn in_directory(parent: &Path) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("lxcri-fs-store")
            .tempdir_in(parent)
            .unwrap();
        Self {
            location: format!("dir:{}", dir.path().join("store").display()),
            dir,
            _dataset: None,
        }
    }

    /// A store that the caller makes and removes.
    pub fn at(location: String) -> Self {
        Self {
            dir: tempfile::tempdir_in("/var/tmp").unwrap(),
            location,
            _dataset: None,
        }
    }

    /// `None` where there is no ZFS.
    pub fn zfs() -> Option<Self> {
        let dataset = Scratch::new()?;
        let dir = tempfile::Builder::new()
            .prefix("lxcri-fs-store")
            .tempdir_in("/var/tmp")
            .unwrap();
        Some(Self {
            location: format!("zfs:{}", dataset.child("store")),
            dir,
            _dataset: Some(dataset),
        })
    }

    /// A command that works on it.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = lxcri_fs();
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("LXCRI_FS_STORE", &self.location)
            .env_remove("LXCRI_FS_CONFIG");
        command
    }

    /// Its standard output.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> String {
        run(&mut self.command(args))
    }

    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.run(args)).unwrap()
    }

    /// A command that has to fail with this exit code; its standard error.
    #[track_caller]
    pub fn fails(&self, args: &[&str], code: i32) -> String {
        let output = self.output(args);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{args:?}: {}",
            stderr(&output)
        );
        stderr(&output)
    }

    pub fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// A directory with a file `name` in it, to build an image of.
    pub fn source(&self, name: &str, content: &[u8]) -> PathBuf {
        let dir = self.dir.path().join(format!("source-{name}"));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(name), content).unwrap();
        // The same again is the same image.
        run(Command::new("touch")
            .args(["-d", "2026-01-01"])
            .arg(dir.join(name))
            .arg(&dir));
        dir
    }

    /// The images, as `list` tells them.
    #[track_caller]
    pub fn images(&self) -> Vec<Value> {
        self.run(&["list", "--json"])
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// One of them.
    #[track_caller]
    pub fn image(&self, familiar: &str) -> Value {
        let reference = format!("docker.io/library/{familiar}:latest");
        self.images()
            .into_iter()
            .find(|i| i["references"][0] == *reference)
            .unwrap()
    }

    /// Names of images that are being written.
    pub fn work(&self) -> Vec<String> {
        let names: Vec<String> = match self.location.split_once(':').unwrap() {
            ("dir", dir) => {
                let Ok(entries) = std::fs::read_dir(Path::new(dir).join("images")) else {
                    return Vec::new();
                };
                entries
                    .map(|e| e.unwrap().file_name().into_string().unwrap())
                    .collect()
            }
            (_, dataset) => {
                let output = Command::new("zfs")
                    .args(["list", "-Hr", "-o", "name", &format!("{dataset}/images")])
                    .output()
                    .unwrap();
                String::from_utf8(output.stdout)
                    .unwrap()
                    .lines()
                    .map(|l| l.rsplit('/').next().unwrap().to_owned())
                    .collect()
            }
        };
        names
            .into_iter()
            .filter(|name| name.starts_with("_w"))
            .collect()
    }

    /// Changes a byte of these in an image.
    pub fn damage(&self, path: &Path, bytes: &[u8]) {
        use std::os::unix::fs::FileExt;
        let dataset = self.location.strip_prefix("zfs:").map(|d| {
            format!(
                "{d}/images/{}",
                path.parent()
                    .unwrap()
                    .file_name()
                    .unwrap()
                    .to_str()
                    .unwrap()
            )
        });
        if let Some(dataset) = &dataset {
            run(Command::new("zfs").args(["set", "readonly=off", dataset]));
        }
        let image = std::fs::read(path).unwrap();
        let offset = image.windows(bytes.len()).position(|w| w == bytes).unwrap();
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.write_all_at(&[image[offset] ^ 0x55], offset as u64)
            .unwrap();
        drop(file);
        if let Some(dataset) = &dataset {
            run(Command::new("zfs").args(["set", "readonly=on", dataset]));
        }
    }

    /// Builds an image with one file, `name`.
    #[track_caller]
    pub fn build(&self, name: &str, reference: &str) {
        self.run(&[
            "build",
            self.source(name, name.as_bytes()).to_str().unwrap(),
            "-t",
            reference,
        ]);
    }
}

/// A file system in a file, mounted while this lives.
pub struct LoopDisk {
    mountpoint: PathBuf,
    _dir: tempfile::TempDir,
}

impl LoopDisk {
    pub fn new(mkfs: &str, size: u64) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("lxcri-fs-disk")
            .tempdir_in("/var/tmp")
            .unwrap();
        let image = dir.path().join("disk");
        std::fs::File::create(&image)
            .unwrap()
            .set_len(size)
            .unwrap();
        run(Command::new(mkfs).arg(&image));
        let disk = Self {
            mountpoint: dir.path().join("mnt"),
            _dir: dir,
        };
        std::fs::create_dir(disk.path()).unwrap();
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(disk.path()));
        disk
    }

    pub fn tmpfs(size: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("lxcri-fs-disk")
            .tempdir_in("/var/tmp")
            .unwrap();
        let disk = Self {
            mountpoint: dir.path().join("mnt"),
            _dir: dir,
        };
        std::fs::create_dir(disk.path()).unwrap();
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(disk.path()));
        disk
    }

    pub fn path(&self) -> &Path {
        &self.mountpoint
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        // Children of other tests have our descriptors for a moment, until they are programs of
        // their own.
        for _ in 0..100 {
            if Command::new("umount")
                .arg("-q")
                .arg(self.path())
                .status()
                .unwrap()
                .success()
            {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
