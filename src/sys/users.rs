//! Finds users of a mount: processes with a directory, a file, a mapping or another mount in it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Statx, StatxFlags, statx};
use serde::{Deserialize, Serialize};

use super::mountinfo::{self, DirectoryId, MountInfo};

/// A process that uses a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// How it uses the mount.
    pub how: String,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}: {})", self.name, self.pid, self.how)
    }
}

/// What is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Used {
    /// A file system, wherever it is mounted: major and minor number of its device.
    Device((u32, u32)),
    /// One mount: its number in mountinfo.
    Mount(u32),
}

/// Name of a process of this program that only examines mounts, each for a moment.
const LOOKER: &str = "lxcri-fs-look";

/// From now on, other processes of this program do not count this process as a user of the mounts
/// that it examines.
pub fn only_look() {
    let _ = std::fs::write("/proc/self/comm", LOOKER);
}

/// Whether a process only examines mounts. Any process can take the name, so its program must be
/// this one.
fn only_looks(proc: &Path) -> bool {
    let program = |proc: &Path| {
        let program = std::fs::metadata(proc.join("exe")).ok()?;
        Some((program.dev(), program.ino()))
    };
    std::fs::read(proc.join("comm")).is_ok_and(|name| name.trim_ascii_end() == LOOKER.as_bytes())
        && program(proc).is_some_and(|its| program(Path::new("/proc/self")) == Some(its))
}

/// How many processes use each file system, by device, as far as this user may see them.
pub fn count_by_device() -> HashMap<(u32, u32), usize> {
    let mut counts = HashMap::new();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return counts;
    };
    for entry in entries
        .flatten()
        .filter(|e| e.file_name().as_bytes().iter().all(u8::is_ascii_digit))
    {
        let devices: HashSet<(u32, u32)> = links(&entry.path())
            .filter_map(|(link, _)| look(&link))
            .map(|s| (s.stx_dev_major, s.stx_dev_minor))
            .collect();
        for device in devices {
            *counts.entry(device).or_default() += 1;
        }
    }
    counts
}

/// The processes that use it, as far as this user may see them, except those in `but` and those
/// that [`only_look`].
pub fn of(used: Used, but: &[u32]) -> Vec<User> {
    let mut users = Vec::new();
    let mut namespaces = HashSet::new();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return users;
    };
    for entry in entries.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
            .filter(|p| !but.contains(p))
        else {
            continue;
        };
        let proc = entry.path();
        let overlay = |namespaces: &mut HashSet<u64>| {
            if let Used::Device(dev) = used {
                overlay_of(&proc, dev, namespaces)
            } else {
                None
            }
        };
        let how = use_of(&proc, used)
            .map(str::to_owned)
            .or_else(|| overlay(&mut namespaces));
        // Who has ended since has no name any more, and is no user either.
        let still_uses = || use_of(&proc, used).is_some() || overlay(&mut HashSet::new()).is_some();
        if let Some(how) = how.filter(|_| !only_looks(&proc) && still_uses()) {
            let name = std::fs::read_to_string(proc.join("comm"))
                .unwrap_or_default()
                .trim_end()
                .to_owned();
            users.push(User { pid, name, how });
        }
    }
    users
}

fn use_of(proc: &Path, used: Used) -> Option<&'static str> {
    let is_of = |link: &Path| {
        look(link).is_some_and(|s| match used {
            Used::Device(dev) => (s.stx_dev_major, s.stx_dev_minor) == dev,
            Used::Mount(id) => s.stx_mnt_id == u64::from(id),
        })
    };
    links(proc)
        .find(|(link, _)| is_of(link))
        .map(|(_, how)| how)
}

/// The links in /proc to all files that a process uses, and how it uses each.
fn links(proc: &Path) -> impl Iterator<Item = (PathBuf, &'static str)> {
    let single = [
        ("cwd", "working directory"),
        ("root", "root directory"),
        ("exe", "program"),
    ]
    .map(|(name, how)| (proc.join(name), how));
    let all_of = |name: &str, how| {
        let entries = std::fs::read_dir(proc.join(name))
            .into_iter()
            .flatten()
            .flatten();
        entries.map(move |entry| (entry.path(), how))
    };
    single
        .into_iter()
        .chain(all_of("fd", "open file"))
        .chain(all_of("map_files", "mapped file"))
}

/// The target of a link in /proc, from the kernel's memory: no request goes to the mount, which may
/// be dead.
fn look(link: &Path) -> Option<Statx> {
    let flags = AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    statx(CWD, link, flags, StatxFlags::MNT_ID).ok()
}

/// An overlay mount over the file system, in a namespace that was not examined yet.
fn overlay_of(proc: &Path, dev: (u32, u32), seen: &mut HashSet<u64>) -> Option<String> {
    let namespace = std::fs::metadata(proc.join("ns/mnt")).ok()?.ino();
    if !seen.insert(namespace) {
        return None;
    }
    let mounts = mountinfo::of_process(proc).ok()?;
    let ours: Vec<&PathBuf> = mounts
        .iter()
        .filter(|m| m.dev == dev)
        .map(|m| &m.mountpoint)
        .collect();
    let overlay = mounts
        .iter()
        .find(|m| is_over(m, dev) || ours.iter().any(|path| has_lower(m, path)))?;
    Some(format!("overlay on {}", overlay.mountpoint.display()))
}

/// A process in another mount namespace where this upper directory is mounted, as far as this user
/// may see.
pub fn of_upper(upper: DirectoryId) -> Option<User> {
    let mut seen = HashSet::from([std::fs::metadata("/proc/self/ns/mnt").ok()?.ino()]);
    let pids = std::fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let namespace = std::fs::metadata(proc.join("ns/mnt")).map(|m| m.ino());
        if !namespace.is_ok_and(|number| seen.insert(number)) {
            continue;
        }
        let mounts = mountinfo::of_process(&proc).unwrap_or_default();
        if let Some(mount) = mounts
            .iter()
            .find(|m| m.overlay().is_some_and(|o| o.is_over(upper)))
        {
            let name = std::fs::read_to_string(proc.join("comm"))
                .unwrap_or_default()
                .trim_end()
                .to_owned();
            return Some(User {
                pid,
                name,
                how: format!("overlay on {}", mount.mountpoint.display()),
            });
        }
    }
    None
}

/// Whether a mount is an overlay of lxcri-fs over the file system with this device.
pub(crate) fn is_over(mount: &MountInfo, dev: (u32, u32)) -> bool {
    mount.overlay().is_some_and(|overlay| overlay.lower == dev)
}

/// Whether a mount is an overlay one of whose lower directories is `path` or below it.
pub(crate) fn has_lower(mount: &MountInfo, path: &Path) -> bool {
    mount.lowers().any(|lower| lower.starts_with(path))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_its_root() {
        let root = mountinfo::at(Path::new("/")).unwrap().unwrap();
        let own = std::process::id();
        for used in [Used::Device(root.dev), Used::Mount(root.id)] {
            assert!(of(used, &[]).iter().any(|u| u.pid == own), "{used:?}");
            assert!(!of(used, &[own]).iter().any(|u| u.pid == own));
        }
        assert!(count_by_device()[&root.dev] > 0);
    }
}
