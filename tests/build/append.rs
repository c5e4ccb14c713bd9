//! Appending layers to an image: what readers see meanwhile, and what an interrupted append leaves.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{lxcri_fs, run, stderr};

use super::{build, sh};

/// A container's own file that is the end of an image, with section, index and footer, made for the
/// place where `append` puts it: behind the image of `base` and the header of an object.
fn tail(dir: &Path, base: &Path) -> Vec<u8> {
    let (forged, layer) = (dir.join("forged.bfc"), dir.join("forged"));
    build(&[base.as_os_str(), "-o".as_ref(), forged.as_os_str()]);
    let end = usize::try_from(forged.metadata().unwrap().len()).unwrap();
    std::fs::create_dir(&layer).unwrap();
    // Several frames that are stored as they are.
    sh(&layer, "head -c 200000 /dev/urandom > forged");
    run(lxcri_fs().arg("append").arg(&forged).arg(&layer));
    std::fs::read(forged).unwrap()[end + 48..].to_vec()
}

/// A layer to append, and what the image shows before and after.
fn append_fixture(dir: &Path) -> (PathBuf, PathBuf, String, String) {
    let (base, layer, image) = (dir.join("base"), dir.join("layer"), dir.join("image.bfc"));
    for path in [&base, &layer] {
        std::fs::create_dir(path).unwrap();
    }
    std::fs::write(base.join("kept"), "kept\n").unwrap();
    std::fs::write(base.join("removed"), "removed\n").unwrap();
    run(Command::new("mknod")
        .arg(layer.join("removed"))
        .args(["c", "0", "0"]));
    std::fs::write(
        layer.join("large"),
        (0..200_000_u32)
            .flat_map(u32::to_le_bytes)
            .collect::<Vec<_>>(),
    )
    .unwrap();
    std::fs::write(layer.join("a-tail"), tail(dir, &base)).unwrap();
    symlink("kept", layer.join("link")).unwrap();
    build(&[base.as_os_str(), "-o".as_ref(), image.as_os_str()]);
    let before = run(lxcri_fs().args(["ls", "-lR"]).arg(&image));
    let copy = dir.join("copy.bfc");
    std::fs::copy(&image, &copy).unwrap();
    run(lxcri_fs().arg("append").arg(&copy).arg(&layer));
    let after = run(lxcri_fs().args(["ls", "-lR"]).arg(&copy));
    assert_ne!(before, after);
    assert!(
        after.contains("link -> kept") && !after.contains("removed"),
        "{after}"
    );
    // The file stands where it was made for.
    let (start, bytes) = (
        image.metadata().unwrap().len() + 48,
        std::fs::read(&copy).unwrap(),
    );
    assert!(
        bytes[usize::try_from(start).unwrap()..]
            .starts_with(&std::fs::read(layer.join("a-tail")).unwrap())
    );
    (image, layer, before, after)
}

/// A file that ends after the container's file, as it does after a crash or during the append, is
/// still the old image.
#[test]
fn what_is_being_appended_is_never_taken_for_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let (image, layer, before, _) = append_fixture(dir.path());
    let (mut torn, tail) = (
        std::fs::read(&image).unwrap(),
        std::fs::read(layer.join("a-tail")).unwrap(),
    );
    torn.extend_from_slice(&[0; 48]);
    torn.extend_from_slice(&tail);
    let target = dir.path().join("target.bfc");
    std::fs::write(&target, &torn).unwrap();
    assert_eq!(run(lxcri_fs().args(["ls", "-lR"]).arg(&target)), before);
    let info: serde_json::Value =
        serde_json::from_str(&run(lxcri_fs().args(["info", "--json"]).arg(&target))).unwrap();
    assert_eq!(info["torn_after"], image.metadata().unwrap().len());
    // And shorter than the image says that it is, it is damaged.
    let len = usize::try_from(image.metadata().unwrap().len()).unwrap();
    std::fs::write(&target, &torn[..len - 1]).unwrap();
    let output = lxcri_fs().arg("ls").arg(&target).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(
        stderr(&output).contains("the image is cut off"),
        "{}",
        stderr(&output)
    );
}

/// While layers are appended again and again, every process that opens the path finds a complete
/// image.
#[test]
fn an_image_opens_at_any_time_while_layers_are_appended() {
    let dir = tempfile::tempdir().unwrap();
    let (image, layer, before, after) = append_fixture(dir.path());
    let original = std::fs::read(&image).unwrap();
    let target = dir.path().join("target.bfc");
    for _ in 0..5 {
        std::fs::write(&target, &original).unwrap();
        let mut append = lxcri_fs()
            .arg("append")
            .arg(&target)
            .arg(&layer)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while append.try_wait().unwrap().is_none() {
            let found = run(lxcri_fs().args(["ls", "-lR"]).arg(&target));
            assert!(found == before || found == after, "{found}");
        }
        assert!(append.wait().unwrap().success());
        assert_eq!(run(lxcri_fs().args(["ls", "-lR"]).arg(&target)), after);
    }
}

/// strace(1) kills the process, or fails its call, at the n-th system call that changes the file.
#[test]
fn an_append_that_ends_at_any_write_leaves_the_old_image_or_the_new() {
    let dir = tempfile::tempdir().unwrap();
    let (image, layer, before, after) = append_fixture(dir.path());
    let original = std::fs::read(&image).unwrap();
    let target = dir.path().join("target.bfc");
    for (call, fault) in [
        ("pwrite64", "signal=SIGKILL"),
        ("pwrite64", "error=ENOSPC"),
        ("fsync,fdatasync", "error=EIO"),
        ("fsync,fdatasync", "signal=SIGKILL"),
        ("ftruncate", "signal=SIGKILL"),
    ] {
        let mut outcomes = Vec::new();
        for n in 1.. {
            std::fs::write(&target, &original).unwrap();
            let inject = format!("inject={call}:{fault}:when={n}");
            let mut command = Command::new("strace");
            command.args([
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                &format!("trace={call}"),
                "-e",
                &inject,
            ]);
            let output = command
                .arg(env!("CARGO_BIN_EXE_lxcri-fs"))
                .arg("append")
                .arg(&target)
                .arg(&layer)
                .output()
                .unwrap();
            let found = run(lxcri_fs().args(["ls", "-lR"]).arg(&target));
            run(lxcri_fs().arg("verify").arg(&target));
            assert!(
                found == before || found == after,
                "{call} {fault} {n}: {found}"
            );
            if fault.starts_with("error") && !output.status.success() {
                assert_eq!(
                    std::fs::read(&target).unwrap(),
                    original,
                    "a failed append is undone"
                );
            }
            outcomes.push(found == after);
            if output.status.success() {
                break;
            }
            // What was torn does not stand in the way of the next.
            run(lxcri_fs().arg("append").arg(&target).arg(&layer));
            assert_eq!(
                run(lxcri_fs().args(["ls", "-lR"]).arg(&target)),
                after,
                "{call} {fault} {n}"
            );
            assert!(n < 100);
        }
        assert!(
            outcomes.len() > 1 && outcomes.last() == Some(&true),
            "{call} {fault}: {outcomes:?}"
        );
    }
}

#[test]
fn a_full_disk_leaves_the_old_image() {
    let dir = tempfile::tempdir().unwrap();
    let small = dir.path().join("small");
    std::fs::create_dir(&small).unwrap();
    run(Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2M", "tmpfs"])
        .arg(&small));
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("small"), "small\n").unwrap();
    let image = small.join("image.bfc");
    build(&[source.as_os_str(), "-o".as_ref(), image.as_os_str()]);
    let before = std::fs::read(&image).unwrap();
    sh(&source, "head -c 3000000 /dev/urandom > noise");
    let output = lxcri_fs()
        .arg("build")
        .arg("--force")
        .arg(&source)
        .arg("-o")
        .arg(&image)
        .output()
        .unwrap();
    let (text, after, left) = (
        stderr(&output),
        std::fs::read(&image).unwrap(),
        small.read_dir().unwrap().count(),
    );
    run(Command::new("umount").arg(&small));
    assert!(!output.status.success() && !text.is_empty());
    assert!(after == before && left == 1, "{text}");
}
