//! Mounts whose worker, keeper or image fails.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::forge::mend;
use crate::common::mounts::{is_alive, is_mounted, kill, pid, ps, row_of, setup, wait_until};
use crate::common::{Mounted, Stop, build_image, golden, lxcri_fs, run, stats, stderr, tree};

#[test]
fn repeated_kills_of_the_worker_cause_no_read_error() {
    let (temp, image, [dir]) = setup();
    let _mounted = Mounted::new(&[image.to_str().unwrap()], &dir);
    let overlay = temp.path().join("overlay");
    let [upper, work] = ["upper", "work"].map(|name| temp.path().join(name));
    for dir in [&overlay, &upper, &work] {
        std::fs::create_dir(dir).unwrap();
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        dir.display(),
        upper.display(),
        work.display()
    );
    run(Command::new("mount")
        .args(["-t", "overlay", "-o", &options, "overlay"])
        .arg(&overlay));
    let expected = tree(&dir);
    let stop = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let mut readers = Vec::new();
        for root in [&dir, &dir, &overlay, &overlay] {
            readers.push(scope.spawn(|| {
                let mut rounds = 0;
                while !stop.load(Ordering::Relaxed) {
                    let found = tree(root);
                    assert_eq!(found.len(), expected.len());
                    for (path, entry) in &found {
                        assert_eq!(
                            entry.content,
                            expected[path].content,
                            "{}",
                            path.escape_ascii()
                        );
                    }
                    rounds += 1;
                }
                rounds
            }));
        }
        let stopped = Stop(&stop);
        while pid(&row_of(&image), "restarts") < 50 {
            // Or nobody would have to ask.
            std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
            std::thread::sleep(Duration::from_millis(20));
            if let Some(worker) = row_of(&image)["worker"].as_u64() {
                kill("KILL", worker);
            }
        }
        drop(stopped);
        readers.into_iter().map(|r| r.join().unwrap()).sum::<u32>()
    });
    run(Command::new("umount").arg(&overlay));
    assert!(rounds > 4, "{rounds}");
}

/// The header of the section with the tree, bytes.
const HEADER: usize = 512;

/// Whoever mounts it is told, not whoever reads it.
#[test]
fn an_image_without_a_root_directory_is_not_mounted() {
    let (temp, _, [dir]) = setup();
    let image = temp.path().join("damaged.bfc");
    std::fs::create_dir_all(temp.path().join("root/bin")).unwrap();
    build_image(temp.path().join("root"), &image);
    let mut bytes = std::fs::read(&image).unwrap();
    let section = mend::section_range(&bytes).unwrap();
    bytes[section.start + HEADER..section.end]
        .iter_mut()
        .for_each(|byte| *byte ^= 1);
    std::fs::write(&image, bytes).unwrap();
    for how in [&[][..], &["--ephemeral"]] {
        let mut command = lxcri_fs();
        let output = command.arg("mount").args(how).args([&image, &dir]).output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
        assert!(!is_mounted(&dir) && ps(&image).is_none());
    }
}

#[test]
fn a_worker_that_cannot_start_is_given_up_and_the_mount_says_so() {
    for engine in ["fuse", "split"] {
        given_up(engine);
    }
}

fn given_up(engine: &str) {
    let (_temp, image, [a, b]) = setup();
    let mounted = Mounted::new(&["--engine", engine, image.to_str().unwrap()], &a);
    let row = row_of(&image);
    // Nobody can open it any more.
    let bytes = std::fs::read(&image).unwrap();
    std::fs::write(&image, "").unwrap();
    kill("KILL", pid(&row, "worker"));
    wait_until("giving up", || {
        ps(&image).is_some_and(|row| row["failed"].is_string())
    });
    if engine == "fuse" {
        let error = a.join("tree/имя").metadata().unwrap_err();
        assert!(
            [Some(107), Some(103)].contains(&error.raw_os_error()),
            "{error}"
        );
        let output = lxcri_fs()
            .arg("mount")
            .arg(&image)
            .arg(a.join("tree"))
            .output()
            .unwrap();
        assert!(
            stderr(&output).contains("lxcri-fs umount"),
            "{}",
            stderr(&output)
        );
    } else {
        // The kernel goes on to show names, but not what nobody has read.
        assert!(a.join("tree/имя").exists());
        let error = std::fs::read(a.join("tree/text.txt")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5), "{error}");
    }
    // Whoever mounts it when it is well again gets it.
    std::fs::write(&image, bytes).unwrap();
    let again = Mounted::new(&[image.to_str().unwrap()], &b);
    assert!(b.join("tree/text.txt").exists());
    drop(again);
    drop(mounted);
    wait_until("the end of the keeper", || !is_alive(pid(&row, "keeper")));
}

#[test]
fn the_leftovers_of_a_killed_keeper_are_removed() {
    let (_temp, image, [a, b]) = setup();
    let first = Mounted::new(&[image.to_str().unwrap()], &a);
    let row = row_of(&image);
    kill("KILL", pid(&row, "keeper"));
    wait_until("the end of the keeper", || !is_alive(pid(&row, "keeper")));
    // The worker serves on, without somebody to replace it.
    assert!(a.join("tree/text.txt").exists());
    let second = Mounted::new(&[image.to_str().unwrap()], &b);
    assert_ne!(a.metadata().unwrap().dev(), b.metadata().unwrap().dev());
    drop(second);
    drop(first);
    // Tests in mount namespaces of their own have copies of all mounts for a moment.
    wait_until("the end of the keeper", || ps(&image).is_none());
    wait_until("the end of the worker", || !is_alive(pid(&row, "worker")));
    let left = std::fs::read_dir("/run/lxcri-fs")
        .unwrap()
        .flatten()
        .map(|e| e.path().join("mnt"));
    assert!(
        !left
            .into_iter()
            .any(|mnt| mnt.exists() && is_mounted(&mnt) && ps(&image).is_some())
    );
}

#[test]
fn a_damaged_file_is_an_error_only_for_its_readers() {
    let (temp, image, [dir]) = setup();
    std::fs::copy(golden("plain.bfc"), &image).unwrap();
    let log = temp.path().join("log");
    let good = std::fs::read(&image).unwrap();
    let _mounted = Mounted::new(
        &["--log-file", log.to_str().unwrap(), image.to_str().unwrap()],
        &dir,
    );
    // Not read through the mount before: stored content of v1 has one checksum, which is checked
    // once.
    let content = lxcri_fs()
        .arg("cat")
        .arg(golden("plain.bfc"))
        .arg("tree/blob/mixed")
        .output()
        .unwrap()
        .stdout;
    let at = good.windows(64).position(|w| w == &content[..64]).unwrap();
    let mut bad = good;
    bad[at] ^= 1;
    std::fs::write(&image, &bad).unwrap();
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    let error = std::fs::read(dir.join("tree/blob/mixed"))
        .map(drop)
        .unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    assert!(std::fs::read(dir.join("tree/text.txt")).is_ok());
    let stats = stats(&dir);
    assert!(stats["damaged"].as_u64().unwrap() > 0, "{stats}");
    let _ = std::fs::read(dir.join("tree/blob/mixed"));
    let log = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = log.lines().filter(|l| l.contains("ERROR")).collect();
    assert!(
        !lines.is_empty() && lines.iter().all(|l| l.contains("path=/tree/blob/mixed")),
        "{log}"
    );
    let mut once = lines.clone();
    once.dedup_by_key(|l| l.split("offset=").nth(1).map(str::to_owned));
    assert_eq!(once.len(), lines.len(), "{log}");
}

#[test]
fn a_deleted_image_is_still_served_and_a_truncated_one_gives_errors() {
    for engine in ["fuse", "split"] {
        deleted_and_truncated(engine);
    }
}

fn deleted_and_truncated(engine: &str) {
    let (temp, image, [dir]) = setup();
    std::fs::copy(golden("plain.bfc"), &image).unwrap();
    let kept = temp.path().join("kept.bfc");
    std::fs::hard_link(&image, &kept).unwrap();
    let _mounted = Mounted::new(&["--engine", engine, image.to_str().unwrap()], &dir);
    let expected = tree(&dir);
    let mixed = std::fs::read(dir.join("tree/blob/mixed")).unwrap();
    std::fs::remove_file(&image).unwrap();
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    assert_eq!(tree(&dir), expected);
    File::options()
        .write(true)
        .open(&kept)
        .unwrap()
        .set_len(5000)
        .unwrap();
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    match std::fs::read(dir.join("tree/blob/mixed")) {
        // A worker of the split engine keeps the frames that it decoded last.
        Ok(read) => assert!(engine == "split" && read == mixed),
        Err(error) => assert_eq!(error.raw_os_error(), Some(5)),
    }
    assert_eq!(
        std::fs::read_dir(dir.join("tree")).unwrap().count(),
        dir.join("tree").read_dir().unwrap().count()
    );
}
