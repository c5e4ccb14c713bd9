//! What the tests share: the program under test, mounts that go away, trees to compare.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../bfc/tests/forge/mod.rs"]
pub mod forge;
pub mod mounts;
pub mod zfs;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest, Sha256};

/// The program under test.
pub fn lxcri_fs() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lxcri-fs"));
    command.env_remove("LXCRI_FS_PASSWORD").stdin(Stdio::null());
    command
}

/// The project's test data.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

/// Runs a command that has to succeed; its standard output.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        stderr(&output)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Builds an image that must not exist yet.
#[track_caller]
pub fn build_image(source: impl AsRef<OsStr>, image: &Path) {
    run(lxcri_fs().arg("build").arg(source).arg("-o").arg(image));
}

/// Runs a command that has to fail and say this.
#[track_caller]
pub fn fails_with(command: &mut Command, said: &str) {
    let output = command.output().unwrap();
    assert!(
        !output.status.success() && stderr(&output).contains(said),
        "{command:?}: {}",
        stderr(&output)
    );
}

/// Standard error of a command.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What `stats` prints for a mount.
#[track_caller]
pub fn stats(dir: &Path) -> Value {
    serde_json::from_str(&run(lxcri_fs().args(["stats", "--json"]).arg(dir))).unwrap()
}

/// How many requests of this kind a mount has answered; `stats` omits kinds without requests.
#[track_caller]
pub fn requests(dir: &Path, op: &str) -> u64 {
    let stats = stats(dir);
    let request = stats["requests"]
        .as_array()
        .unwrap()
        .iter()
        .find(|request| request["op"] == op);
    request.map_or(0, |request| request["count"].as_u64().unwrap())
}

/// A mount that is unmounted when the test ends, however it ends.
pub struct Mounted(pub PathBuf);

impl Mounted {
    /// Mounts with these arguments (options and images) on `dir`.
    #[track_caller]
    pub fn new(args: &[&str], dir: &Path) -> Self {
        run(lxcri_fs().arg("mount").args(args).arg(dir));
        Self(dir.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let output = lxcri_fs().arg("umount").arg(&self.0).output().unwrap();
        if !output.status.success() {
            let _ = Command::new("umount").arg("-l").arg(&self.0).status();
            if !std::thread::panicking() {
                panic!("umount {}: {}", self.0.display(), stderr(&output));
            }
        }
    }
}

/// Tells the other threads of a test to stop, also when the test fails: they would run for ever.
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What `find` finds, tried again for half a minute: a keeper that is just starting a worker on a
/// busy machine may be slow to answer.
#[track_caller]
pub fn eventually<T>(what: &str, find: impl Fn() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "no {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What a tree has at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, i64),
    /// Not of directories: file systems differ.
    pub size: Option<u64>,
    pub nlink: Option<u64>,
    pub rdev: u64,
    /// SHA-256 of a file, target of a symlink.
    pub content: Vec<u8>,
    /// First path, in order, of the same inode.
    pub linked_to: Option<Vec<u8>>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Every entry below `root` (the root under the empty path).
pub fn tree(root: &Path) -> BTreeMap<Vec<u8>, Entry> {
    let mut out = BTreeMap::new();
    let mut inodes: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    let mut stack = vec![PathBuf::new()];
    while let Some(path) = stack.pop() {
        let full = if path.as_os_str().is_empty() {
            root.to_owned()
        } else {
            root.join(&path)
        };
        let meta = full
            .symlink_metadata()
            .unwrap_or_else(|e| panic!("{}: {e}", full.display()));
        let kind = meta.file_type();
        if kind.is_dir() {
            for entry in full.read_dir().unwrap() {
                stack.push(path.join(entry.unwrap().file_name()));
            }
        }
        let content = if kind.is_file() {
            let mut hasher = Sha256::new();
            let mut file = std::fs::File::open(&full).unwrap();
            let mut buf = vec![0; 1 << 18];
            loop {
                let n = file
                    .read(&mut buf)
                    .unwrap_or_else(|e| panic!("{}: {e}", full.display()));
                if n == 0 {
                    break;
                }
                hasher.update(&buf[..n]);
            }
            hasher.finalize().to_vec()
        } else if kind.is_symlink() {
            full.read_link().unwrap().as_os_str().as_bytes().to_vec()
        } else {
            Vec::new()
        };
        let bytes = path.as_os_str().as_bytes().to_vec();
        if !kind.is_dir() && meta.nlink() > 1 {
            inodes.entry(meta.ino()).or_default().push(bytes.clone());
        }
        let entry = Entry {
            mode: meta.mode(),
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            size: (!kind.is_dir()).then(|| meta.size()),
            nlink: (!kind.is_dir()).then(|| meta.nlink()),
            rdev: if kind.is_char_device() || kind.is_block_device() {
                meta.rdev()
            } else {
                0
            },
            content,
            linked_to: None,
            xattrs: xattrs(&full),
        };
        out.insert(bytes, entry);
    }
    for mut paths in inodes.into_values() {
        paths.sort();
        for path in &paths {
            if let Some(entry) = out.get_mut(path) {
                entry.linked_to = Some(paths[0].clone());
            }
        }
    }
    out
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let Ok(len) = rustix::fs::llistxattr(path, &mut names[..]) else {
        return BTreeMap::new();
    };
    let names = names[..len]
        .split(|&b| b == 0)
        .filter(|n| !n.is_empty() && !n.starts_with(b"trusted.overlay."));
    names
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
            (name.to_vec(), value[..len].to_vec())
        })
        .collect()
}

/// Whether hard links part on the first write (see docs/WRITING.md).
pub fn hard_links_part() -> bool {
    handles_are_stale() && !is_split()
}

/// What `--engine auto` takes on this host.
pub fn is_split() -> bool {
    static IS_SPLIT: OnceLock<bool> = OnceLock::new();
    *IS_SPLIT.get_or_init(|| {
        let asked = std::env::var("LXCRI_FS_ENGINE").unwrap_or_default();
        let found = || {
            let said = lxcri_fs().arg("doctor").output().unwrap().stdout;
            String::from_utf8_lossy(&said).contains("engine   split: ")
        };
        asked == "split" || asked != "fuse" && found()
    })
}

/// Whether the kernel takes FUSE files that are found by handle for out of date, so that overlayfs
/// has no index over them: from Linux 6.16 on.
pub fn handles_are_stale() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse::<u32>().unwrap_or_default());
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 16)
}

/// As [`tree`], but for how many names a file has: where overlayfs has no index, it goes on
/// counting those that are gone, or outside.
pub fn within(root: &Path) -> BTreeMap<Vec<u8>, Entry> {
    let mut tree = tree(root);
    let mut names: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
    for first in tree.values().filter_map(|entry| entry.linked_to.clone()) {
        *names.entry(first).or_default() += 1;
    }
    for entry in tree.values_mut() {
        entry.nlink = None;
        entry.linked_to.take_if(|first| names[first] == 1);
    }
    tree
}

/// Panics with the first differences of two trees, unless they are equal.
#[track_caller]
pub fn assert_same_tree(expected: &BTreeMap<Vec<u8>, Entry>, found: &BTreeMap<Vec<u8>, Entry>) {
    let mut differences = Vec::new();
    for path in expected
        .keys()
        .chain(found.keys().filter(|p| !expected.contains_key(*p)))
    {
        if expected.get(path) != found.get(path) {
            differences.push(format!(
                "{}:\n  expected {:?}\n  found    {:?}",
                path.escape_ascii(),
                expected.get(path),
                found.get(path)
            ));
        }
    }
    let shown = differences
        .iter()
        .take(5)
        .cloned()
        .collect::<Vec<_>>()
        .join("\n");
    assert!(
        differences.is_empty(),
        "{} of {} entries differ\n{shown}",
        differences.len(),
        expected.len()
    );
    assert!(!expected.is_empty());
}

/// A tar member, in the oldest form.
pub fn member(name: &[u8], kind: u8, link: &[u8], content: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name);
    header[100..107].copy_from_slice(b"0000644");
    header[108..115].copy_from_slice(b"0000000");
    header[116..123].copy_from_slice(b"0000000");
    header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[148..156].copy_from_slice(b"        ");
    header[156] = kind;
    header[157..157 + link.len()].copy_from_slice(link);
    header[257..263].copy_from_slice(b"ustar\0");
    header[263..265].copy_from_slice(b"00");
    let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut out = header.to_vec();
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}
