//! What a keeper does when things go wrong around it: its worker hangs or dies of a request, its
//! caller is killed, its namespace empties. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "common/killer.rs"]
mod killer;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::mounts::{
    LEAVE_OTHERS, Process, all_of, is_alive, is_mounted, kill, pid, ps, row_of, setup, wait_until,
};
use common::{Mounted, build_image, lxcri_fs, run, stderr, tree};
use killer::{Death, Killer};

#[test]
fn a_stopped_worker_is_reported_and_replaced_and_its_readers_continue() {
    let (_temp, image, [dir]) = setup();
    let _mounted = Mounted::new(&[image.to_str().unwrap()], &dir);
    let expected = std::fs::read(common::golden("zstd.bfc")).unwrap();
    assert!(!expected.is_empty());
    let worker = pid(&row_of(&image), "worker");
    kill("STOP", worker);
    let reader = Process(
        Command::new("cat")
            .arg(dir.join("tree/text.txt"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    // A command is not held up by it.
    let began = Instant::now();
    run(lxcri_fs().args(["stats", "--json"]).arg(&dir));
    assert!(began.elapsed() < Duration::from_secs(5));
    wait_until("saying that it does not answer", || {
        row_of(&image)["not_answering_since"].is_string() || pid(&row_of(&image), "restarts") > 0
    });
    wait_until("another worker", || {
        row_of(&image)["worker"]
            .as_u64()
            .is_some_and(|now| now != worker)
    });
    let mut reader = reader;
    assert!(reader.0.wait().unwrap().success());
    let row = row_of(&image);
    assert!(
        row["not_answering_since"].is_null() && pid(&row, "restarts") == 1,
        "{row}"
    );
    assert!(!is_alive(worker));
    assert!(run(lxcri_fs().args(["stats", "--json"]).arg(&dir)).contains("requests"));
}

#[test]
fn stats_return_when_a_stopped_worker_continues() {
    let (_temp, image, [dir]) = setup();
    let _mounted = Mounted::new(&[image.to_str().unwrap()], &dir);
    let worker = pid(&row_of(&image), "worker");
    let stats = || run(lxcri_fs().args(["stats", "--json"]).arg(&dir));
    kill("STOP", worker);
    // A thread may be answering when the signal comes.
    wait_until("the stop of the worker", || !stats().contains("requests"));
    kill("CONT", worker);
    wait_until("the answer of the worker", || stats().contains("requests"));
    assert_eq!(pid(&row_of(&image), "worker"), worker);
}

#[test]
fn a_request_that_crashes_two_workers_is_an_error_only_for_its_reader() {
    for (engine, most) in [("fuse", 8), ("split", 32)] {
        let bad = Bad::new(Death::Crash, engine);
        bad.is_an_error_at(0);
        // The kernel asks once more for a page that it could not read ahead, so these are two
        // requests, each of two crashes. What a worker reads ahead by itself may crash before each.
        // Below EROFS, the decoded device is read ahead and asked for once more as well.
        let deaths = bad.deaths();
        assert!((2..=most).contains(&deaths), "{engine}: {deaths}");
        // Ten crashes in a row would be the end, if nothing explained them.
        for page in 1..PAGES {
            bad.is_an_error_at(page);
        }
        assert!(bad.deaths() > 10);
        bad.is_the_only_one();
    }
}

#[test]
fn a_request_that_repeatedly_kills_workers_is_an_error_only_for_its_reader() {
    for (engine, most) in [("fuse", 32), ("split", 128)] {
        let bad = Bad::new(Death::Kill, engine);
        bad.is_an_error_at(0);
        // As above, with eight for each request.
        let deaths = bad.deaths();
        assert!((8..=most).contains(&deaths), "{engine}: {deaths}");
        bad.is_the_only_one();
    }
}

/// How many pages the bad file has.
const PAGES: u64 = 12;

/// A mount with a file that ends every worker that reads it, and others.
struct Bad {
    // In this order they end.
    mounted: Mounted,
    _slow: fuser::BackgroundSession,
    image: PathBuf,
    killed: Arc<AtomicU32>,
    _temp: tempfile::TempDir,
}

impl Bad {
    fn new(death: Death, engine: &str) -> Self {
        let (temp, _, [slow, dir]) = setup();
        let source = temp.path().join("source");
        std::fs::create_dir(&source).unwrap();
        std::fs::write(source.join("bad"), random("bad", PAGES * 4096)).unwrap();
        for name in ["good", "another"] {
            std::fs::write(source.join(name), random(name, 4_000)).unwrap();
        }
        let built = temp.path().join("built.bfc");
        build_image(format!("dir:{}", source.display()), &built);
        let bytes = std::fs::read(&built).unwrap();
        // Content that is stored as it is can be found in the image.
        let at = bytes
            .windows(64)
            .position(|w| w == random("bad", 64))
            .unwrap() as u64;
        let (session, killed) = Killer::mount(bytes, at..at + PAGES * 4096, death, &slow);
        let image = slow.join("image.bfc");
        let mounted = Mounted::new(&["--engine", engine, image.to_str().unwrap()], &dir);
        Self {
            mounted,
            _slow: session,
            image,
            killed,
            _temp: temp,
        }
    }

    fn is_an_error_at(&self, page: u64) {
        let file = File::open(self.mounted.0.join("bad")).unwrap();
        let error = file.read_at(&mut [0; 4096], page * 4096).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5), "{error}");
    }

    fn deaths(&self) -> u32 {
        self.killed.load(Ordering::Relaxed)
    }

    fn is_the_only_one(&self) {
        for name in ["good", "another"] {
            assert_eq!(
                std::fs::read(self.mounted.0.join(name)).unwrap(),
                random(name, 4_000)
            );
        }
        let row = row_of(&self.image);
        assert!(
            row["failed"].is_null() && pid(&row, "restarts") > 0,
            "{row}"
        );
    }
}

fn random(seed: &str, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    blake3::Hasher::new()
        .update(seed.as_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

#[test]
fn a_killed_mount_can_be_repeated_at_once() {
    let (_temp, image, [dir]) = setup();
    for round in 0..40 {
        let mut first = Process(
            lxcri_fs()
                .arg("mount")
                .arg(&image)
                .arg(&dir)
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        std::thread::sleep(Duration::from_millis(round));
        first.0.kill().unwrap();
        first.0.wait().unwrap();
        run(lxcri_fs().arg("umount").arg(&dir));
        let second = lxcri_fs()
            .arg("mount")
            .arg(&image)
            .arg(&dir)
            .output()
            .unwrap();
        // The first may have come to its end all the same.
        assert!(
            second.status.success() || stderr(&second).contains("already"),
            "{round}: {}",
            stderr(&second)
        );
        drop(Mounted(dir.clone()));
        assert!(!is_mounted(&dir));
    }
    wait_until("the end of the keepers", || ps(&image).is_none());
}

/// As root in a user namespace, with mounts of its own.
fn in_user_namespace(script: &str, image: &Path, dir: &Path) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["-Urm", "sh", "-ec", script, env!("CARGO_BIN_EXE_lxcri-fs")])
        .arg(image)
        .arg(dir);
    command
}

#[test]
fn user_namespaces_and_the_host_can_read_the_same_image() {
    let (temp, image, [a, b]) = setup();
    let script = r#"
        "$0" mount "$1" "$2"
        cat "$2/tree/text.txt"
        touch "$2.ready"
        while [ ! -e "$2.done" ]; do sleep 0.05; done"#;
    let first = Process(
        in_user_namespace(script, &image, &a)
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    );
    wait_until("mounting in a user namespace", || {
        temp.path().join("mnt0.ready").exists()
    });
    // Beside it.
    let mounted = Mounted::new(&[image.to_str().unwrap()], &b);
    let expected = tree(&b);
    let again = r#""$0" mount "$1" "$2"; cat "$2/tree/text.txt""#;
    let text = std::fs::read_to_string(b.join("tree/text.txt")).unwrap();
    assert_eq!(run(&mut in_user_namespace(again, &image, &a)), text);
    drop(mounted);
    // After it, and nobody has unmounted anything there.
    std::fs::write(temp.path().join("mnt0.done"), "").unwrap();
    let mut first = first;
    assert!(first.0.wait().unwrap().success());
    let mounted = Mounted::new(&[image.to_str().unwrap()], &b);
    assert_eq!(tree(&b), expected);
    drop(mounted);
    wait_until("the end of all keepers", || all_of(&image).is_empty());
}

#[test]
fn mounts_stay_in_a_namespace_that_a_bind_mount_holds() {
    // Where the first process is in another namespace, nobody knows of the file.
    if std::fs::read_link("/proc/1/ns/mnt").ok() != std::fs::read_link("/proc/self/ns/mnt").ok() {
        return;
    }
    let (temp, image, [dir]) = setup();
    let holder = temp.path().join("holder");
    std::fs::create_dir(&holder).unwrap();
    run(Command::new("mount")
        .args(["-t", "tmpfs", "none"])
        .arg(&holder));
    run(Command::new("mount").arg("--make-private").arg(&holder));
    let namespace = holder.join("ns");
    std::fs::write(&namespace, "").unwrap();
    let script =
        r#"mount -t tmpfs -o mode=700 none /run/lxcri-fs; "$0" mount "$1" "$2"; "$0" ps --json"#;
    let script = format!("{LEAVE_OTHERS}{script}");
    let mut command = Command::new("unshare");
    command
        .arg(format!("--mount={}", namespace.display()))
        .args(["sh", "-ec", &script, env!("CARGO_BIN_EXE_lxcri-fs")])
        .arg(&image)
        .arg(&dir);
    run(lxcri_fs().arg("ps"));
    let row: serde_json::Value =
        serde_json::from_str(run(&mut command).lines().next().unwrap()).unwrap();
    std::thread::sleep(Duration::from_secs(4));
    let inside = |args: &[&str]| {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--mount={}", namespace.display()))
            .args(args);
        command
    };
    let alive = is_alive(pid(&row, "keeper"));
    let text = run(inside(&["cat"]).arg(dir.join("tree/text.txt")));
    run(Command::new("umount").arg(&namespace));
    run(Command::new("umount").arg(&holder));
    assert!(alive && !text.is_empty());
    wait_until("the end of the keeper", || !is_alive(pid(&row, "keeper")));
}

#[test]
fn a_keeper_that_is_alone_in_its_namespace_ends() {
    let (_temp, image, [dir]) = setup();
    // The keeper stays in it, because it is told to keep its directory where nobody else looks.
    let script =
        r#"mount -t tmpfs -o mode=700 none /run/lxcri-fs; "$0" mount "$1" "$2"; "$0" ps --json"#;
    let script = format!("{LEAVE_OTHERS}{script}");
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "sh",
            "-ec",
            &script,
            env!("CARGO_BIN_EXE_lxcri-fs"),
        ])
        .arg(&image)
        .arg(&dir);
    run(lxcri_fs().arg("ps"));
    let row: serde_json::Value =
        serde_json::from_str(run(&mut command).lines().next().unwrap()).unwrap();
    for process in ["keeper", "worker"] {
        wait_until("the end of the processes", || !is_alive(pid(&row, process)));
    }
}
