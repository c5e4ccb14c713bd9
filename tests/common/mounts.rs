//! What the tests of mounts share: images of their own, what `ps` says of them, their processes.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Stop, eventually, golden, lxcri_fs, run, tree};

/// A copy of a golden image: keepers see another image, so that tests do not share a mount.
pub fn image(dir: &Path) -> PathBuf {
    let path = dir.join("image.bfc");
    std::fs::copy(golden("zstd.bfc"), &path).unwrap();
    path
}

/// Directories to mount on, and an image.
pub fn setup<const N: usize>() -> (tempfile::TempDir, PathBuf, [PathBuf; N]) {
    let temp = tempfile::tempdir().unwrap();
    let image = image(temp.path());
    let dirs = std::array::from_fn(|i| temp.path().join(format!("mnt{i}")));
    for dir in &dirs {
        std::fs::create_dir(dir).unwrap();
    }
    (temp, image, dirs)
}

/// The shell's first line in a mount namespace of its own: without it, the copies of what other
/// tests have mounted would keep those mounts alive, which they expect to end.
pub const LEAVE_OTHERS: &str = r#"
awk '$3 == "fuse.lxcri-fs" || $3 == "erofs" && $1 ~ "/lxcri-fs/" { print $2 }' \
    /proc/self/mounts | while read -r others; do
    umount -l "$others" || true
done
"#;

/// All that `ps --json` says of an image.
pub fn all_of(image: &Path) -> Vec<Value> {
    let rows = run(lxcri_fs().args(["ps", "--json"]));
    let rows = rows
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap());
    rows.filter(|row| row["images"][0] == image.to_str().unwrap())
        .collect()
}

/// What `ps --json` says of an image.
pub fn ps(image: &Path) -> Option<Value> {
    all_of(image).into_iter().next()
}

/// As [`ps`], of what is mounted.
#[track_caller]
pub fn row_of(image: &Path) -> Value {
    eventually("row of the mount", || ps(image))
}

/// A process number in a row of `ps`.
#[track_caller]
pub fn pid(row: &Value, name: &str) -> u64 {
    row[name]
        .as_u64()
        .unwrap_or_else(|| panic!("no {name} in {row}"))
}

/// Whether a process is there. A zombie is dead; whoever has to reap it is not our concern.
pub fn is_alive(pid: u64) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Sends a signal.
pub fn kill(signal: &str, pid: u64) {
    let _ = Command::new("kill")
        .args([format!("-{signal}"), pid.to_string()])
        .stderr(Stdio::null())
        .status();
}

/// Waits until `done`, for a minute at most.
#[track_caller]
pub fn wait_until(what: &str, done: impl FnMut() -> bool) {
    assert!(within_a_minute(done), "{what} takes too long");
}

/// Whether `done` comes true within a minute.
pub fn within_a_minute(mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > Duration::from_secs(60) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Whether something is mounted on a directory.
pub fn is_mounted(dir: &Path) -> bool {
    std::fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .any(|l| l.split(' ').nth(4) == dir.to_str())
}

/// A process that is ended with the test.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads a tree in several threads until `act` is done; every content must be right every time. How
/// often it was read.
pub fn under_load(root: &Path, act: impl FnOnce()) -> u32 {
    let expected = tree(root);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let read = || {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                let found = tree(root);
                assert_eq!(found.len(), expected.len());
                assert!(
                    found
                        .iter()
                        .all(|(path, entry)| entry.content == expected[path].content)
                );
                rounds += 1;
            }
            rounds
        };
        let readers: Vec<_> = (0..3).map(|_| scope.spawn(read)).collect();
        let stopped = Stop(&stop);
        act();
        drop(stopped);
        readers.into_iter().map(|r| r.join().unwrap()).sum()
    })
}
