//! A tree of everything that a file system can hold and few trees have.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, mknodat, utimensat};

use crate::common::run;

/// Length of a frame, bytes.
const FRAME: usize = 64 << 10;

/// Bytes that do not compress, the same in every run.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed | 1;
    let next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(next)
        .take(len.div_ceil(8))
        .flatten()
        .collect();
    bytes.truncate(len);
    bytes
}

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

fn special(path: &Path, kind: FileType, mode: u32, device: u64) {
    mknodat(CWD, path, kind, Mode::from_raw_mode(mode), device).unwrap();
}

/// Makes the tree below an empty directory.
pub fn make(root: &Path) {
    names(&root.join("names"));
    files(&root.join("files"));
    kinds(&root.join("kinds"));
    attributes(&root.join("attributes"));
    let mut deep = root.join("deep");
    for level in 0..60 {
        fs::create_dir(&deep).unwrap();
        fs::write(deep.join("file"), level.to_string()).unwrap();
        deep.push(format!("level-{level}"));
    }
    // A directory whose entries fill blocks exactly, and ones about as long as a block.
    for count in [1, 15, 16, 17, 31, 32, 33, 64] {
        let dir = root.join(format!("full-{count}"));
        fs::create_dir(&dir).unwrap();
        for number in 0..count {
            let name = format!("{number:0244}");
            fs::write(dir.join(name), "").unwrap();
        }
    }
    set_time(root, 1_234_567_890, 123_456_789);
}

fn names(dir: &Path) {
    fs::create_dir(dir).unwrap();
    for byte in (1..=255_u8).filter(|b| *b != b'/') {
        let name = [byte; 255];
        fs::write(dir.join(std::ffi::OsStr::from_bytes(&name)), [byte]).unwrap();
    }
    for name in ["!", "-", ".a", "..a", "...", "a", "a.", "ab", "\u{fffd}"] {
        fs::write(dir.join(name), name).unwrap();
    }
}

fn files(dir: &Path) {
    fs::create_dir(dir).unwrap();
    for len in [
        0,
        1,
        5,
        4095,
        4096,
        4097,
        FRAME - 1,
        FRAME,
        FRAME + 1,
        3 << 20,
    ] {
        let text: Vec<u8> = (0..len).map(|at| b'a' + (at / 97 % 23) as u8).collect();
        fs::write(dir.join(format!("text-{len}")), text).unwrap();
        fs::write(dir.join(format!("noise-{len}")), noise(len, 7)).unwrap();
    }
    fs::write(dir.join("large"), noise(17 << 20, 9)).unwrap();
    let sparse = File::create(dir.join("sparse")).unwrap();
    sparse.set_len((20 << 20) + 5).unwrap();
    sparse.write_all_at(b"data", 3 << 20).unwrap();
    sparse.write_all_at(&noise(100_000, 3), 18 << 20).unwrap();
    File::create(dir.join("hole"))
        .unwrap()
        .set_len(300_000)
        .unwrap();
    for (at, name) in ["one", "two", "three"].into_iter().enumerate() {
        let other = dir.join(format!("dir-{at}"));
        fs::create_dir(&other).unwrap();
        fs::hard_link(dir.join("text-4097"), other.join(name)).unwrap();
    }
}

fn kinds(dir: &Path) {
    fs::create_dir(dir).unwrap();
    for len in [1, 50, 2000, 3990, 4000, 4095] {
        symlink("x".repeat(len), dir.join(format!("link-{len}"))).unwrap();
    }
    fs::hard_link(dir.join("link-50"), dir.join("link-again")).unwrap();
    special(&dir.join("fifo"), FileType::Fifo, 0o600, 0);
    special(&dir.join("socket"), FileType::Socket, 0o640, 0);
    let device = rustix::fs::makedev;
    special(
        &dir.join("null"),
        FileType::CharacterDevice,
        0o666,
        device(1, 3),
    );
    special(
        &dir.join("far"),
        FileType::CharacterDevice,
        0o600,
        device(4095, 1_048_575),
    );
    special(
        &dir.join("disk"),
        FileType::BlockDevice,
        0o660,
        device(259, 300),
    );
    fs::hard_link(dir.join("null"), dir.join("zero")).unwrap();
}

fn attributes(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let file = |name: &str| {
        let path = dir.join(name);
        fs::write(&path, name).unwrap();
        path
    };
    for mode in [0, 0o4755, 0o2711, 0o1777, 0o7777] {
        let path = file(&format!("mode-{mode:o}"));
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    for id in [65_535, 65_536, 4_294_967_294] {
        let path = file(&format!("id-{id}"));
        std::os::unix::fs::lchown(&path, Some(id), Some(id - 1)).unwrap();
    }
    for (name, seconds, nanoseconds) in [
        ("1960", -315_360_000, 123_456_789),
        ("1970", 0, 1),
        ("2106", 4_294_967_295, 0),
        ("2106-later", 4_294_967_296, 999_999_999),
        ("2242", 1 << 33, 0),
    ] {
        set_time(&file(name), seconds, nanoseconds);
    }
    let many = file("many");
    for number in 0..40 {
        set_xattr(&many, &format!("user.number-{number}"), &noise(number, 5));
    }
    let long = file("long");
    set_xattr(&long, "user.value", &noise(3000, 1));
    set_xattr(&file("name"), &format!("user.{}", "n".repeat(245)), b"long");
    let all = file("all");
    for space in ["user", "trusted", "security"] {
        set_xattr(&all, &format!("{space}.a"), b"");
        set_xattr(&all, &format!("{space}.b"), b"\0\xff");
    }
    let link = dir.join("link");
    symlink("nowhere", &link).unwrap();
    set_xattr(&link, "trusted.link", b"a symlink's");
    // The same set, and one that shares a part of it.
    for number in 0..5 {
        let path = file(&format!("label-{number}"));
        set_xattr(&path, "security.selinux", b"system_u:object_r:bin_t:s0\0");
        if number > 2 {
            set_xattr(&path, "user.own", &[number]);
        }
    }
    run(Command::new("setcap")
        .arg("cap_net_raw+ep")
        .arg(file("capable")));
    let listed = dir.join("listed");
    fs::create_dir(&listed).unwrap();
    run(Command::new("setfacl")
        .args(["-m", "u:1000:rwx,g:2000:r-x", "-m", "d:u:1000:rw-"])
        .arg(&listed));
    run(Command::new("setfacl")
        .args(["-m", "u:12345:r--"])
        .arg(file("listed-file")));
    set_xattr(dir, "user.directory", b"too");
}
