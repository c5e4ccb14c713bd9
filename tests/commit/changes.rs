//! Random changes of a tree, as a container may make them.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

const NAMES: [&str; 5] = ["x", "y", "linked", "new", "b"];
const DIRS: [&str; 9] = ["", "a", "a/b", "a/b/c", "d", "d/e", "f", "new", "a/new"];

/// A path: a directory and a name, or the directory itself.
fn path() -> impl Strategy<Value = String> {
    let file = (
        prop::sample::select(&DIRS[..]),
        prop::sample::select(&NAMES[..]),
    );
    prop_oneof![
        3 => file.prop_map(|(dir, name)| match dir {
            "" => name.to_owned(),
            dir => format!("{dir}/{name}"),
        }),
        1 => prop::sample::select(&DIRS[1..]).prop_map(str::to_owned),
    ]
}

#[derive(Debug, Clone)]
pub enum Op {
    Write(String, u16),
    Append(String),
    Truncate(String, u16),
    Chmod(String, u32),
    Chown(String, u32),
    Touch(String),
    SetXattr(String),
    RemoveXattr(String),
    Remove(String),
    RemoveTree(String),
    Mkdir(String),
    Rename(String, String),
    Link(String, String),
    Symlink(String),
    Mknod(String),
    Remount,
}

pub fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (path(), any::<u16>()).prop_map(|(p, n)| Op::Write(p, n)),
        2 => path().prop_map(Op::Append),
        1 => (path(), 0..3000_u16).prop_map(|(p, n)| Op::Truncate(p, n)),
        2 => (path(), 0..0o10000_u32).prop_map(|(p, m)| Op::Chmod(p, m)),
        2 => (path(), 0..70_000_u32).prop_map(|(p, u)| Op::Chown(p, u)),
        1 => path().prop_map(Op::Touch),
        1 => path().prop_map(Op::SetXattr),
        1 => path().prop_map(Op::RemoveXattr),
        2 => path().prop_map(Op::Remove),
        1 => path().prop_map(Op::RemoveTree),
        2 => path().prop_map(Op::Mkdir),
        5 => (path(), path()).prop_map(|(a, b)| Op::Rename(a, b)),
        3 => (path(), path()).prop_map(|(a, b)| Op::Link(a, b)),
        1 => path().prop_map(Op::Symlink),
        1 => path().prop_map(Op::Mknod),
        1 => Just(Op::Remount),
    ]
}

/// Applies it if it is possible; the kernel decides what it does.
pub fn apply(root: &Path, op: &Op) {
    let at = |p: &str| root.join(p);
    // A fifo or a device is not opened.
    let is_file = |p: &str| at(p).symlink_metadata().is_ok_and(|m| m.is_file());
    match op {
        Op::Write(p, n) if is_file(p) || !at(p).exists() => {
            drop(std::fs::write(at(p), vec![b'w'; usize::from(*n)]))
        }
        Op::Append(p) if is_file(p) => {
            use std::io::Write;
            let _ = std::fs::File::options()
                .append(true)
                .open(at(p))
                .and_then(|mut f| f.write_all(b"appended"));
        }
        Op::Truncate(p, n) if is_file(p) => {
            let _ = std::fs::File::options()
                .write(true)
                .open(at(p))
                .and_then(|f| f.set_len(u64::from(*n)));
        }
        Op::Write(..) | Op::Append(_) | Op::Truncate(..) | Op::Remount => {}
        Op::Chmod(p, m) if !at(p).is_symlink() => drop(std::fs::set_permissions(
            at(p),
            PermissionsExt::from_mode(*m),
        )),
        Op::Chmod(..) => {}
        Op::Chown(p, u) => drop(std::os::unix::fs::lchown(at(p), Some(*u), Some(u / 2))),
        Op::Touch(p) => drop(
            Command::new("touch")
                .args(["-h", "-c", "-d", "2010-01-01 00:00:00.25"])
                .arg(at(p))
                .output(),
        ),
        Op::SetXattr(p) => drop(rustix::fs::lsetxattr(
            at(p),
            "trusted.k",
            b"new",
            rustix::fs::XattrFlags::empty(),
        )),
        Op::RemoveXattr(p) => drop(rustix::fs::lremovexattr(at(p), "user.k")),
        Op::Remove(p) => drop(std::fs::remove_file(at(p)).or_else(|_| std::fs::remove_dir(at(p)))),
        Op::RemoveTree(p) => drop(std::fs::remove_dir_all(at(p))),
        Op::Mkdir(p) => drop(std::fs::create_dir(at(p))),
        Op::Rename(a, b) => drop(std::fs::rename(at(a), at(b))),
        Op::Link(a, b) => drop(std::fs::hard_link(at(a), at(b))),
        Op::Symlink(p) => drop(symlink("../somewhere", at(p))),
        Op::Mknod(p) => drop(
            Command::new("mknod")
                .arg(at(p))
                .args(["c", "5", "0"])
                .output(),
        ),
    }
}
