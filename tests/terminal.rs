//! Text of images, registries and containers controls no terminal: messages, tables, listings and
//! logs show escape sequences, bidirectional marks and invisible characters in escaped form. Needs
//! root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::{Command, Output};

use common::{Mounted, build_image, eventually, lxcri_fs, member, run};
use lxcri_fs::text::is_unseen;

/// Sets a terminal's title, clears it, goes back a line, turns the text round, hides itself, and
/// ends the line with one of its own.
const HOSTILE: &str =
    "a\x1b]0;x\x07\x1b[2J\u{9b}1A\u{202e}b\u{200b}\u{2066}\u{e0041}c\nlxcri-fs: d";

/// That all of it was said, and nothing of it unseen.
#[track_caller]
fn visible(what: &str, bytes: &[u8]) {
    let text = std::str::from_utf8(bytes).unwrap();
    let found: Vec<char> = text
        .chars()
        .filter(|&c| is_unseen(c) && c != '\n')
        .collect();
    assert!(found.is_empty(), "{what}: {found:?} in {text:?}");
    let own = text
        .lines()
        .filter(|line| line.contains(": d") && !line.contains("202e"));
    assert_eq!(own.count(), 0, "{what}: a line of its own in {text:?}");
    assert!(
        text.contains("202e") && text.contains("200b"),
        "{what}: it is not told in {text:?}"
    );
}

#[track_caller]
fn told(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let said = [&output.stdout[..], &output.stderr].concat();
    visible(&format!("{command:?}"), &said);
    output
}

#[test]
fn names_in_an_image_are_shown_escaped() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let name = HOSTILE.as_bytes();
    std::fs::write(
        at("tar"),
        [
            member(name, b'0', b"", b"content"),
            member(b"link", b'2', name, b""),
            vec![0; 1024],
        ]
        .concat(),
    )
    .unwrap();
    build_image(at("tar"), &at("image.bfc"));
    let image = at("image.bfc");
    told(lxcri_fs().arg("ls").arg(&image));
    told(lxcri_fs().arg("ls").arg("-lR").arg(&image));
    let listed = told(lxcri_fs().args(["ls", "-R", "--json"]).arg(&image));
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed
            .lines()
            .all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()),
        "{listed}"
    );
    // What is asked for by its name, and is not there.
    told(lxcri_fs().arg("cat").arg(&image).arg(format!("{HOSTILE}x")));
    told(
        lxcri_fs()
            .arg("extract")
            .arg(&image)
            .arg(at("out"))
            .arg(format!("{HOSTILE}x")),
    );
    // A content is a content.
    assert_eq!(
        run(lxcri_fs().arg("cat").arg(&image).arg(HOSTILE)),
        "content"
    );

    // A damaged content, and the keeper's log of it.
    let mut bytes = std::fs::read(&image).unwrap();
    let found = bytes.windows(7).position(|w| w == b"content").unwrap();
    bytes[found] ^= 1;
    std::fs::write(at("damaged.bfc"), bytes).unwrap();
    assert_eq!(
        told(lxcri_fs().arg("verify").arg(at("damaged.bfc")))
            .status
            .code(),
        Some(3)
    );
    told(lxcri_fs().args(["verify", "--json"]).arg(at("damaged.bfc")));
    std::fs::create_dir(at("mnt")).unwrap();
    let _mounted = Mounted::new(
        &[
            "--log-file",
            at("log").to_str().unwrap(),
            at("damaged.bfc").to_str().unwrap(),
        ],
        &at("mnt"),
    );
    assert!(std::fs::read(at("mnt").join(HOSTILE)).is_err());
    visible(
        "log",
        &eventually("line of the log", || {
            std::fs::read(at("log"))
                .ok()
                .filter(|log| log.windows(7).any(|w| w == b"damaged"))
        }),
    );
}

#[test]
fn messages_about_a_hostile_layer_are_shown_escaped() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |tar: Vec<u8>| {
        std::fs::write(dir.path().join("tar"), [tar, vec![0; 1024]].concat()).unwrap();
        let output = told(
            lxcri_fs()
                .arg("build")
                .arg(format!("tar:{}/tar", dir.path().display()))
                .args(["--force", "-o"])
                .arg(dir.path().join("image.bfc")),
        );
        assert!(!output.status.success());
    };
    // A hard link to nothing, under both names.
    refused(member(HOSTILE.as_bytes(), b'1', b"missing", b""));
    refused(member(b"link", b'1', HOSTILE.as_bytes(), b""));
}

#[test]
fn names_written_by_a_container_are_shown_escaped() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("root")).unwrap();
    build_image(at("root"), &at("image.bfc"));
    std::fs::create_dir(at("mnt")).unwrap();
    let _mounted = Mounted::new(
        &[
            "--upper",
            at("upper").to_str().unwrap(),
            at("image.bfc").to_str().unwrap(),
        ],
        &at("mnt"),
    );
    std::fs::write(at("mnt").join(HOSTILE), "x").unwrap();
    told(lxcri_fs().arg("diff").arg(at("mnt")));
    told(lxcri_fs().args(["diff", "--json"]).arg(at("mnt")));
}

#[test]
fn paths_and_arguments_are_shown_escaped() {
    let dir = tempfile::tempdir().unwrap();
    let hostile = dir.path().join(HOSTILE);
    std::fs::create_dir(&hostile).unwrap();
    let image = hostile.join("image.bfc");
    std::fs::copy(common::golden("plain.bfc"), &image).unwrap();
    let missing = hostile.join("missing");
    for command in ["ls", "info", "verify"] {
        told(lxcri_fs().arg(command).arg(&missing));
    }
    told(lxcri_fs().arg("info").arg(&image));
    told(lxcri_fs().arg("verify").arg(&image));
    told(lxcri_fs().arg("umount").arg(&missing));
    told(lxcri_fs().arg(HOSTILE));
    told(lxcri_fs().arg("ls").arg(&image).arg(format!("--{HOSTILE}")));
    told(
        lxcri_fs()
            .env("LXCRI_FS_STORE", &missing)
            .args(["config", "show"]),
    );
    let mountpoint = hostile.join("mnt");
    std::fs::create_dir(&mountpoint).unwrap();
    let _mounted = Mounted::new(&[image.to_str().unwrap()], &mountpoint);
    told(lxcri_fs().arg("ps"));
    told(lxcri_fs().args(["ps", "--json"]));
    told(lxcri_fs().arg("stats").arg(&mountpoint));
    told(lxcri_fs().args(["stats", "--prometheus"]).arg(&mountpoint));
    // Not UTF-8 either.
    let odd = Path::new(&dir.path()).join(OsString::from_vec(
        [b"\xff\x9b", HOSTILE.as_bytes()].concat(),
    ));
    told(lxcri_fs().arg("info").arg(odd));
}
