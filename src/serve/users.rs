//! Who uses a mount: processes with a directory, a file, a mapping or another mount in it.

use std::collections::HashSet;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use serde::{Deserialize, Serialize};

use super::mountinfo;

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

/// The processes that use the file system of device `dev` (major, minor), as far as this user may see them; `but` are left out.
pub fn of_device(dev: (u32, u32), but: &[u32]) -> Vec<User> {
    let mut users = Vec::new();
    let mut namespaces = HashSet::new();
    let Ok(entries) = std::fs::read_dir("/proc") else { return users };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()).filter(|p| !but.contains(p)) else { continue };
        let proc = entry.path();
        let how = use_of(&proc, dev).map(str::to_owned).or_else(|| overlay_of(&proc, dev, &mut namespaces));
        if let Some(how) = how {
            let name = std::fs::read_to_string(proc.join("comm")).unwrap_or_default().trim_end().to_owned();
            users.push(User { pid, name, how });
        }
    }
    users
}

fn use_of(proc: &Path, dev: (u32, u32)) -> Option<&'static str> {
    for (link, how) in [("cwd", "working directory"), ("root", "root directory"), ("exe", "program")] {
        if device_of(&proc.join(link)) == Some(dev) {
            return Some(how);
        }
    }
    if let Ok(fds) = std::fs::read_dir(proc.join("fd"))
        && fds.flatten().any(|fd| device_of(&fd.path()) == Some(dev))
    {
        return Some("open file");
    }
    let wanted = format!("{:02x}:{:02x}", dev.0, dev.1);
    let maps = std::fs::read_to_string(proc.join("maps")).unwrap_or_default();
    maps.lines().any(|line| line.split_ascii_whitespace().nth(3) == Some(&wanted)).then_some("mapped file")
}

/// The device of what a link in /proc leads to. It is told from what the kernel has in memory: no request is made, not even to a dead mount.
fn device_of(link: &Path) -> Option<(u32, u32)> {
    let flags = AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    statx(CWD, link, flags, StatxFlags::empty()).ok().map(|s| (s.stx_dev_major, s.stx_dev_minor))
}

/// An overlay mount over the file system, in a namespace that was not looked at yet.
fn overlay_of(proc: &Path, dev: (u32, u32), seen: &mut HashSet<u64>) -> Option<String> {
    let namespace = std::fs::metadata(proc.join("ns/mnt")).ok()?.ino();
    if !seen.insert(namespace) {
        return None;
    }
    let mounts = mountinfo::of_process(proc).ok()?;
    let ours: Vec<&PathBuf> = mounts.iter().filter(|m| m.dev == dev).map(|m| &m.mountpoint).collect();
    let overlay = mounts.iter().find(|m| m.fs_type == "overlay" && ours.iter().any(|path| has_lower(&m.super_options, path)))?;
    Some(format!("overlay on {}", overlay.mountpoint.display()))
}

/// Whether one of an overlay's lower directories is `path` or below it.
pub(super) fn has_lower(options: &str, path: &Path) -> bool {
    let lowers = options.split(',').filter_map(|o| o.strip_prefix("lowerdir=").or_else(|| o.strip_prefix("lowerdir+=")));
    lowers.flat_map(|l| l.split(':')).any(|lower| Path::new(lower).starts_with(path))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lower_directories_are_found_in_the_options() {
        let options = "ro,lowerdir=/a/b:/c,upperdir=/u,workdir=/w";
        assert!(has_lower(options, Path::new("/c")));
        assert!(has_lower(options, Path::new("/a")));
        assert!(!has_lower(options, Path::new("/u")));
        assert!(has_lower("rw,lowerdir+=/x", Path::new("/x")));
    }

    #[test]
    fn this_process_uses_its_root() {
        let dev = device_of(Path::new("/proc/self/root")).unwrap();
        assert!(of_device(dev, &[]).iter().any(|u| u.pid == std::process::id()));
        assert!(!of_device(dev, &[std::process::id()]).iter().any(|u| u.pid == std::process::id()));
    }
}
