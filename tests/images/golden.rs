//! Images that the reference tool wrote, mounted and extracted, are what their manifest says;
//! damaged ones are refused.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{Mounted, build_image, forge, golden, lxcri_fs, run, stderr};
use sha2::{Digest, Sha256};

/// Every golden image and what opens it.
fn images() -> Vec<(&'static str, Vec<String>)> {
    let password = || {
        let file = std::env::temp_dir().join(format!("lxcri-fs-password-{}", std::process::id()));
        std::fs::write(&file, "correct horse\n").unwrap();
        vec!["--password-file".to_owned(), file.display().to_string()]
    };
    let key = vec![
        "--key-file".to_owned(),
        golden("key.bin").display().to_string(),
    ];
    vec![
        ("plain.bfc", vec![]),
        ("zstd.bfc", vec![]),
        ("zstd19-threshold1000.bfc", vec![]),
        ("block8192.bfc", vec![]),
        ("password.bfc", password()),
        ("zstd-password.bfc", password()),
        ("zstd-keyfile.bfc", key),
    ]
}

/// Compares a tree with the manifest, entry by entry; how many there were.
fn compare(root: &Path, image: &str) -> usize {
    let mut count = 0;
    for line in std::fs::read_to_string(golden("manifest.jsonl"))
        .unwrap()
        .lines()
    {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let path = row["path"].as_str().unwrap();
        let full = if image == "block8192.bfc" {
            if !["bin", "bin/tool", "bin/setuid-ish", "text.txt", "link-rel"].contains(&path) {
                continue;
            }
            root.join(path)
        } else {
            root.join("tree").join(path)
        };
        count += 1;
        let meta = full
            .symlink_metadata()
            .unwrap_or_else(|e| panic!("{image}: {path}: {e}"));
        let mode =
            u32::from_str_radix(row["mode"].as_str().unwrap().trim_start_matches("0o"), 8).unwrap();
        assert_eq!(meta.mode(), mode, "{image}: {path}: mode");
        assert_eq!(
            meta.mtime(),
            row["mtime"].as_i64().unwrap(),
            "{image}: {path}: mtime"
        );
        match row["type"].as_str().unwrap() {
            "file" => {
                let bytes = std::fs::read(&full).unwrap_or_else(|e| panic!("{image}: {path}: {e}"));
                assert_eq!(
                    meta.len(),
                    row["size"].as_u64().unwrap(),
                    "{image}: {path}: size"
                );
                assert_eq!(
                    bytes.len() as u64,
                    meta.len(),
                    "{image}: {path}: bytes read"
                );
                let digest: String = Sha256::digest(&bytes)
                    .iter()
                    .map(|b| format!("{b:02x}"))
                    .collect();
                assert_eq!(
                    digest,
                    row["sha256"].as_str().unwrap(),
                    "{image}: {path}: content"
                );
            }
            "symlink" => {
                let target = full.read_link().unwrap();
                assert_eq!(
                    target.to_str().unwrap(),
                    row["target"].as_str().unwrap(),
                    "{image}: {path}: target"
                );
            }
            "dir" => assert!(meta.is_dir(), "{image}: {path}: not a directory"),
            other => panic!("{other}"),
        }
    }
    let found = String::from_utf8(
        Command::new("find")
            .arg(root)
            .arg("-mindepth")
            .arg("1")
            .output()
            .unwrap()
            .stdout,
    )
    .unwrap();
    let extra = usize::from(image != "block8192.bfc"); // tree/ itself
    // One name of the manifest has a line end in none, and a tab in two: find prints a line each.
    assert_eq!(
        found.lines().count(),
        count + extra,
        "{image}: entries that the manifest does not have"
    );
    count
}

#[test]
fn mounted_golden_images_equal_their_manifests() {
    for (image, secret) in images() {
        let dir = tempfile::tempdir().unwrap();
        let path = golden(image).display().to_string();
        let mut args: Vec<&str> = secret.iter().map(String::as_str).collect();
        args.push(&path);
        let _mounted = Mounted::new(&args, dir.path());
        assert!(compare(dir.path(), image) >= 5);
    }
}

#[test]
fn extracted_golden_images_equal_their_manifests() {
    for (image, secret) in images() {
        let dir = tempfile::tempdir().unwrap();
        run(lxcri_fs()
            .arg("extract")
            .args(&secret)
            .arg(golden(image))
            .arg(dir.path()));
        assert!(compare(dir.path(), image) >= 5);
        run(lxcri_fs().arg("verify").args(&secret).arg(golden(image)));
    }
}

#[test]
fn extract_does_not_overwrite_without_force() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("tree")).unwrap();
    std::fs::write(dir.path().join("tree/one"), "mine").unwrap();
    let output = lxcri_fs()
        .arg("extract")
        .arg(golden("plain.bfc"))
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(
        stderr(&output).contains("tree/one: it exists"),
        "{}",
        stderr(&output)
    );
    assert_eq!(std::fs::read(dir.path().join("tree/one")).unwrap(), b"mine");
    run(lxcri_fs()
        .arg("extract")
        .arg("--force")
        .arg(golden("plain.bfc"))
        .arg(dir.path()));
    compare(dir.path(), "plain.bfc");
}

#[test]
fn extract_follows_no_symlink_out_of_its_directory() {
    let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::os::unix::fs::symlink(outside.path(), dir.path().join("tree")).unwrap();
    for force in [&[][..], &["--force"]] {
        let _ = lxcri_fs()
            .arg("extract")
            .args(force)
            .arg(golden("plain.bfc"))
            .arg(dir.path())
            .output()
            .unwrap();
        assert_eq!(outside.path().read_dir().unwrap().count(), 0);
    }
    compare(dir.path(), "plain.bfc");
}

#[test]
fn extract_takes_single_paths() {
    let dir = tempfile::tempdir().unwrap();
    run(lxcri_fs()
        .arg("extract")
        .arg(golden("zstd.bfc"))
        .arg(dir.path())
        .args(["tree/bin/tool", "tree/a/b"]));
    assert_eq!(
        std::fs::metadata(dir.path().join("tree/bin/tool"))
            .unwrap()
            .len(),
        1200
    );
    assert_eq!(
        std::fs::read(dir.path().join("tree/a/b/c0")).unwrap(),
        b"c0\n"
    );
    assert!(!dir.path().join("tree/one").exists());
    // The directories above have their attributes too.
    let listed = run(lxcri_fs()
        .args(["ls", "--json"])
        .arg(golden("zstd.bfc"))
        .arg("tree"));
    let bin = listed
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap())
        .find(|e| e["path"] == "bin")
        .unwrap();
    let mtime: jiff::Timestamp = bin["mtime"].as_str().unwrap().parse().unwrap();
    assert_eq!(
        std::fs::metadata(dir.path().join("tree/bin"))
            .unwrap()
            .mtime(),
        mtime.as_second()
    );
}

#[test]
fn wrong_and_missing_secrets_are_refused() {
    let refused = |args: &[&str], image: &str, code: i32, text: &str| {
        let output = lxcri_fs().args(args).arg(golden(image)).output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(code),
            "{args:?} {image}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains(text),
            "{args:?} {image}: {}",
            stderr(&output)
        );
        assert!(stderr(&output).contains("hint: "), "{}", stderr(&output));
    };
    for image in ["password.bfc", "zstd-password.bfc", "zstd-keyfile.bfc"] {
        refused(&["ls"], image, 4, "no password or key was given");
        refused(
            &["ls", "--key-file", "/dev/zero"],
            image,
            4,
            "exactly 32 bytes",
        );
        let key = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(key.path(), [7; 32]).unwrap();
        refused(
            &["ls", "--key-file", key.path().to_str().unwrap()],
            image,
            4,
            "the password or key is wrong",
        );
    }
    let output = lxcri_fs()
        .arg("ls")
        .arg(golden("password.bfc"))
        .env("LXCRI_FS_PASSWORD", "wrong")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    run(lxcri_fs()
        .arg("verify")
        .arg(golden("password.bfc"))
        .env("LXCRI_FS_PASSWORD", "correct horse"));
}

/// A command on a damaged image: its exit code and complaint, in at most a second, in at most 64
/// MiB.
fn quick(args: &[&str], image: &Path) -> (Option<i32>, String) {
    let start = Instant::now();
    // The limit is on the address space that is written to: data segment and private mappings.
    let script = format!("ulimit -d {}; exec \"$@\"", 64 << 10);
    let mut command = Command::new("sh");
    command
        .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_lxcri-fs")])
        .args(args)
        .arg(image);
    let output = command.env_remove("LXCRI_FS_PASSWORD").output().unwrap();
    let text = stderr(&output);
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{args:?}: {:?}",
        start.elapsed()
    );
    assert!(
        !text.contains("panicked") && !text.contains("memory allocation"),
        "{text}"
    );
    (output.status.code(), text)
}

/// A copy of a golden image, changed.
fn changed(image: &str, change: impl FnOnce(&mut Vec<u8>)) -> tempfile::NamedTempFile {
    let mut bytes = std::fs::read(golden(image)).unwrap();
    change(&mut bytes);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

fn footer_field(bytes: &[u8], at: usize) -> usize {
    let footer = bytes.len() - 56;
    usize::try_from(u64::from_le_bytes(
        bytes[footer + at..footer + at + 8].try_into().unwrap(),
    ))
    .unwrap()
}

#[test]
fn damage_has_its_own_error() {
    type Change = Box<dyn FnOnce(&mut Vec<u8>)>;
    let cases: [(&str, &str, Change); 8] = [
        ("header", "the header is damaged", Box::new(|b| b[20] ^= 1)),
        ("magic", "not a BFC image", Box::new(|b| b[0] ^= 1)),
        (
            "footer magic",
            "no valid footer",
            Box::new(|b| *b.last_mut().unwrap() ^= 1),
        ),
        (
            "index",
            "the index is damaged",
            Box::new(|b| {
                let at = footer_field(b, 20);
                b[at + 30] ^= 1;
            }),
        ),
        (
            "index of 2^60 bytes",
            "outside the file",
            Box::new(|b| {
                let at = b.len() - 56 + 8;
                b[at..at + 8].copy_from_slice(&(1_u64 << 60).to_le_bytes());
            }),
        ),
        (
            "index at 2^60",
            "outside the file",
            Box::new(|b| {
                let at = b.len() - 56 + 20;
                b[at..at + 8].copy_from_slice(&(1_u64 << 60).to_le_bytes());
            }),
        ),
        ("empty", "the file is empty", Box::new(Vec::clear)),
        (
            "header only",
            "shorter than header and footer",
            Box::new(|b| b.truncate(4096)),
        ),
    ];
    for (name, expected, change) in cases {
        let file = changed("zstd.bfc", change);
        for command in ["ls", "verify", "info"] {
            let (code, text) = quick(&[command], file.path());
            assert_eq!(code, Some(3), "{name}: {command}: {text}");
            assert!(text.contains(expected), "{name}: {command}: {text}");
        }
    }
}

#[test]
fn a_truncated_image_is_refused_wherever_it_ends() {
    let len = std::fs::read(golden("zstd.bfc")).unwrap().len();
    for cut in (0..len).step_by(4096) {
        let file = changed("zstd.bfc", |b| b.truncate(cut));
        let (code, text) = quick(&["ls"], file.path());
        assert_eq!(code, Some(3), "cut at {cut}: {text}");
        assert!(!text.is_empty());
    }
}

#[test]
fn a_flipped_byte_of_content_is_an_error_only_for_its_file() {
    for (image, path) in [
        ("plain.bfc", "tree/text.txt"),
        ("zstd.bfc", "tree/blob/mixed"),
        ("plain.bfc", "tree/blob/mixed"),
    ] {
        let listed = run(lxcri_fs()
            .args(["ls", "--json"])
            .arg(golden(image))
            .arg(path));
        let size = serde_json::from_str::<serde_json::Value>(&listed).unwrap()["size"]
            .as_u64()
            .unwrap();
        // The object's header holds the name: the content stands behind it.
        let file = changed(image, |b| {
            let name = b
                .windows(path.len())
                .position(|w| w == path.as_bytes())
                .unwrap();
            b[name + path.len() + 200] ^= 0x10;
        });
        let dir = tempfile::tempdir().unwrap();
        let _mounted = Mounted::new(&[file.path().to_str().unwrap()], dir.path());
        let error = std::fs::read(dir.path().join(path)).unwrap_err();
        assert_eq!(
            error.raw_os_error(),
            Some(5),
            "{image}: {path}: {error} ({size} bytes)"
        );
        assert_eq!(
            std::fs::read(dir.path().join("tree/bin/tool"))
                .unwrap()
                .len(),
            1200
        );
        let output = lxcri_fs().arg("verify").arg(file.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert!(String::from_utf8_lossy(&output.stdout).contains(path));
        let output = lxcri_fs()
            .arg("cat")
            .arg(file.path())
            .arg(path)
            .output()
            .unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(3), 0));
    }
}

/// A plain image does not say where it ends, so it ends with the file: nobody searches the file for
/// a footer, since any content may look like one.
#[test]
fn a_plain_image_with_trailing_bytes_is_refused() {
    let whole = std::fs::read(golden("zstd.bfc")).unwrap();
    for behind in [
        vec![0xAA; 100_000],
        [&[0; 8], &whole[4096..whole.len() - 1]].concat(),
    ] {
        let file = changed("zstd.bfc", |b| b.extend_from_slice(&behind));
        let (code, text) = quick(&["ls"], file.path());
        assert_eq!(code, Some(3), "{text}");
        assert!(
            text.contains("no valid footer at the end of the image"),
            "{text}"
        );
    }
}

/// An image of our own, for [`forge::forge`].
fn built(dir: &Path) -> Vec<u8> {
    let (source, image) = (dir.join("source"), dir.join("image.bfc"));
    std::fs::create_dir_all(source.join("d")).unwrap();
    std::fs::write(source.join("h"), "hello\n").unwrap();
    build_image(&source, &image);
    std::fs::read(image).unwrap()
}

/// What a section says of 2 GiB in one piece is damage: it is neither decoded nor kept anywhere.
#[test]
fn a_read_of_a_piece_longer_than_a_frame_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("forged.bfc");
    let size = (2_u64 << 30).to_le_bytes();
    let forged = forge::forge(&built(dir.path()), |section, header| {
        let content = usize::try_from(header.contents.offset).unwrap();
        section[content + 16..content + 24].copy_from_slice(&size);
        for ino in 1..=3 {
            forge::inode(section, header, ino, |i| {
                i.size = if i.mode & 0o170_000 == 0o100_000 {
                    2 << 30
                } else {
                    i.size
                }
            });
        }
    });
    std::fs::write(&image, forged).unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let _mounted = Mounted::new(&[image.to_str().unwrap()], &root);
    let file = std::fs::File::open(root.join("h")).unwrap();
    assert_eq!(
        file.read_at(&mut [0], 0).unwrap_err().raw_os_error(),
        Some(5)
    );
    let output = lxcri_fs().arg("verify").arg(&image).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("one piece"),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

/// `verify` reports what harms no reader.
#[test]
fn a_wrong_link_count_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("forged.bfc");
    let forged = forge::forge(&built(dir.path()), |section, header| {
        forge::inode(section, header, 3, |i| i.nlink = 2)
    });
    std::fs::write(&image, forged).unwrap();
    run(lxcri_fs().args(["ls", "-lR"]).arg(&image));
    let output = lxcri_fs().arg("verify").arg(&image).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("link count"),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
fn an_image_of_an_earlier_version_must_be_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("before.bfc");
    std::fs::write(
        &image,
        forge::forge(&built(dir.path()), |section, _| section[8..16].fill(0)),
    )
    .unwrap();
    for command in ["ls", "verify", "info"] {
        let output = lxcri_fs().arg(command).arg(&image).output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(1),
            "{command}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains("build it again"),
            "{command}: {}",
            stderr(&output)
        );
    }
}

/// Standard CRC-32C instead of the raw one: what the reference tool writes on machines without CRC
/// instructions.
#[test]
fn images_with_the_other_crc_flavour_are_read() {
    let standard = |b: &[u8]| crc32c::crc32c(b);
    let file = changed("plain.bfc", |b| {
        let (index_size, index_offset) = (footer_field(b, 8), footer_field(b, 20));
        let mut at = index_offset + 8;
        while at < index_offset + index_size {
            let path_len = u32::from_le_bytes(b[at..at + 4].try_into().unwrap()) as usize;
            let entry = at + 4 + path_len;
            let object =
                usize::try_from(u64::from_le_bytes(b[entry..entry + 8].try_into().unwrap()))
                    .unwrap();
            let size = usize::try_from(u64::from_le_bytes(
                b[entry + 36..entry + 44].try_into().unwrap(),
            ))
            .unwrap();
            let content = object + (40 + path_len).next_multiple_of(16);
            let crc = standard(&b[content..content + size]).to_le_bytes();
            b[entry + 44..entry + 48].copy_from_slice(&crc);
            b[object + 36..object + 40].copy_from_slice(&crc);
            at = entry + 48;
        }
        let crc = standard(&b[index_offset..index_offset + index_size]).to_le_bytes();
        let footer = b.len() - 56;
        b[footer + 16..footer + 20].copy_from_slice(&crc);
        let crc = standard(&b[12..4096]).to_le_bytes();
        b[8..12].copy_from_slice(&crc);
    });
    let dir = tempfile::tempdir().unwrap();
    run(lxcri_fs().arg("extract").arg(file.path()).arg(dir.path()));
    compare(dir.path(), "plain.bfc");
    assert!(run(lxcri_fs().arg("info").arg(file.path())).contains("CRC-32C, standard"));
    run(lxcri_fs().arg("verify").arg(file.path()));
}

/// Content larger than the cache goes through a temporary file, and comes out right from several
/// readers at once.
#[test]
fn content_larger_than_the_cache_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = golden("zstd.bfc").display().to_string();
    drop(Mounted::new(&["-o", "cache-size=1M", &path], dir.path()));
    let _mounted = Mounted::new(&["--cache-size", "1000", &path], dir.path());
    let expected = run(Command::new("sha256sum").arg(dir.path().join("tree/blob/mixed")));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let file = std::fs::File::open(dir.path().join("tree/blob/mixed")).unwrap();
                let mut buf = [0; 5000];
                for at in (0..280_000_u32).step_by(13_331) {
                    file.read_exact_at(&mut buf, (280_000 - at).into()).unwrap();
                }
            });
        }
    });
    compare(dir.path(), "zstd.bfc");
    assert_eq!(
        expected,
        run(Command::new("sha256sum").arg(dir.path().join("tree/blob/mixed")))
    );
}
