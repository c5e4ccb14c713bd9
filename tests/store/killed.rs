//! Processes over one store that are killed at any moment.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::bench::{Store, on_both};
use crate::common::stderr;

on_both! {
    twenty_processes_killed_at_any_point_lose_nothing
}

/// A process that ends with the test at the latest.
pub struct Killed(pub std::process::Child);

impl Killed {
    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// For as long as `LXCRI_FS_TEST_SECONDS` says; the clearing up is what takes long on ZFS in an
/// emulated VM.
fn twenty_processes_killed_at_any_point_lose_nothing(store: &Store) {
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
    // What killed mounts have started ends by itself, and keeps its image until then.
    crate::common::eventually("the end of what killed mounts started", || {
        store.run(&["gc", "--grace", "0s"]);
        let images = store.images();
        let mut all = images.iter();
        all.all(|i| i["references"] != serde_json::json!([]))
            .then_some(())
    });
    assert_eq!(store.work(), [""; 0]);
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
        let _ = crate::common::lxcri_fs()
            .arg("umount")
            .arg(&self.0)
            .output();
    }
}
