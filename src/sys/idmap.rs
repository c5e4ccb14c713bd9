//! Maps of user and group ids for mounts, and the user namespaces that pass them to the kernel.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;

use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use super::Result;
use crate::error::Io;

/// The kernel's limit of ranges (user_namespaces(7)).
const MAX_RANGES: usize = 340;
/// This program, even if its file has been replaced or removed.
const SELF: &str = "/proc/self/exe";
/// The hidden command that runs [`namespace_main`].
pub const NAMESPACE_COMMAND: &str = "user-namespace";

/// A range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    /// First id in the container, and in the image.
    inside: u32,
    /// First id on the host.
    outside: u32,
    /// How many.
    count: u32,
}

impl Range {
    fn overlaps(&self, other: &Self) -> bool {
        let meet =
            |a: u32, b: u32| a < b.saturating_add(other.count) && b < a.saturating_add(self.count);
        meet(self.inside, other.inside) || meet(self.outside, other.outside)
    }
}

/// Maps ids of an image to ids on the host, like the `uid_map` and `gid_map` of a container's user
/// namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMap {
    uids: Vec<Range>,
    gids: Vec<Range>,
}

/// An invalid map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` {reason}")]
pub struct BadMap {
    /// The map, or the range of it that is wrong.
    text: String,
    /// What is wrong with it.
    reason: &'static str,
}

impl FromStr for IdMap {
    type Err = BadMap;

    /// Parses ranges `INSIDE:OUTSIDE:COUNT`, separated by commas. A range is for users and groups,
    /// unless `uid:` or `gid:` stands before it.
    fn from_str(text: &str) -> Result<Self, BadMap> {
        let mut map = Self {
            uids: Vec::new(),
            gids: Vec::new(),
        };
        for part in text.split(',') {
            let bad = |reason| BadMap {
                text: part.to_owned(),
                reason,
            };
            let (uid, gid, numbers) = match (part.strip_prefix("uid:"), part.strip_prefix("gid:")) {
                (Some(rest), _) => (true, false, rest),
                (_, Some(rest)) => (false, true, rest),
                _ => (true, true, part),
            };
            let numbers: Option<Vec<u32>> = numbers.split(':').map(|n| n.parse().ok()).collect();
            let Some(&[inside, outside, count]) = numbers.as_deref() else {
                return Err(bad("is not INSIDE:OUTSIDE:COUNT"));
            };
            // The last id, 2^32 - 1, means "none".
            if count == 0
                || inside.checked_add(count).is_none()
                || outside.checked_add(count).is_none()
            {
                return Err(bad("is no range of ids"));
            }
            let range = Range {
                inside,
                outside,
                count,
            };
            for (wanted, ranges) in [(uid, &mut map.uids), (gid, &mut map.gids)] {
                if wanted && ranges.iter().any(|r| r.overlaps(&range)) {
                    return Err(bad("overlaps another range"));
                }
                if wanted {
                    ranges.push(range);
                }
            }
        }
        let bad = |reason| BadMap {
            text: text.to_owned(),
            reason,
        };
        if map.uids.is_empty() || map.gids.is_empty() {
            return Err(bad("maps only users, or only groups"));
        }
        if map.uids.len() > MAX_RANGES || map.gids.len() > MAX_RANGES {
            return Err(bad("has more than 340 ranges"));
        }
        Ok(map)
    }
}

impl fmt::Display for IdMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |prefix: &str, ranges: &[Range]| {
            let ranges = ranges
                .iter()
                .map(|r| format!("{prefix}{}:{}:{}", r.inside, r.outside, r.count));
            ranges.collect::<Vec<_>>().join(",")
        };
        if self.uids == self.gids {
            return f.write_str(&text("", &self.uids));
        }
        write!(
            f,
            "{},{}",
            text("uid:", &self.uids),
            text("gid:", &self.gids)
        )
    }
}

impl Serialize for IdMap {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for IdMap {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl IdMap {
    /// User ids, as INSIDE, OUTSIDE, COUNT.
    pub fn uids(&self) -> impl Iterator<Item = (u32, u32, u32)> {
        self.uids.iter().map(|r| (r.inside, r.outside, r.count))
    }

    /// Group ids, likewise.
    pub fn gids(&self) -> impl Iterator<Item = (u32, u32, u32)> {
        self.gids.iter().map(|r| (r.inside, r.outside, r.count))
    }

    /// The inverse map, which shows files that are stored with the host's ids with the container's.
    /// The host's root, which owns overlayfs's own files, becomes the last id: even root could not
    /// read files whose owner is not mapped.
    #[must_use]
    pub fn inverse(&self) -> Self {
        let turn = |ranges: &[Range]| {
            let mut turned: Vec<Range> = ranges
                .iter()
                .map(|r| Range {
                    inside: r.outside,
                    outside: r.inside,
                    ..*r
                })
                .collect();
            let root = Range {
                inside: 0,
                outside: u32::MAX - 1,
                count: 1,
            };
            if !turned.iter().any(|r| r.overlaps(&root)) {
                turned.push(root);
            }
            turned
        };
        Self {
            uids: turn(&self.uids),
            gids: turn(&self.gids),
        }
    }

    /// Makes a user namespace with this map.
    ///
    /// # Errors
    /// [`Io`], for instance if this process may not map these ids.
    pub fn namespace(&self) -> Result<OwnedFd> {
        let failed = "making a user namespace";
        let child = Command::new(SELF)
            .arg(NAMESPACE_COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Io::doing(failed))?;
        let mut child = Ended(child);
        let mut ready = [0];
        child
            .0
            .stdout
            .take()
            .map_or(Ok(()), |mut out| out.read_exact(&mut ready))
            .map_err(Io::doing(failed))?;
        let proc = PathBuf::from(format!("/proc/{}", child.0.id()));
        for (name, ranges) in [("uid_map", &self.uids), ("gid_map", &self.gids)] {
            let lines: String = ranges
                .iter()
                .map(|r| format!("{} {} {}\n", r.inside, r.outside, r.count))
                .collect();
            let path = proc.join(name);
            // The kernel accepts a map only in one write.
            std::fs::write(&path, lines).map_err(Io::at("mapping ids by", &path))?;
        }
        let path = proc.join("ns/user");
        Ok(File::open(&path).map_err(Io::at("opening", &path))?.into())
    }
}

/// A child process that ends when this is dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The process from which [`IdMap::namespace`] takes a namespace: only a process can make one.
///
/// # Errors
/// If the kernel refuses to make a user namespace.
pub fn namespace_main() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER)?;
    rustix::io::write(rustix::stdio::stdout(), b"\n")?;
    io::copy(&mut io::stdin(), &mut io::sink()).map(drop)
}

/// Whether this process is in a user namespace other than the host's.
pub fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let fields: Vec<&str> = map.split_ascii_whitespace().collect();
    !matches!(fields[..], ["0", "0", "4294967295"] | [])
}

/// The id of this process's user outside its user namespace, as far as it is visible.
pub(crate) fn host_uid() -> u32 {
    let uid = rustix::process::geteuid().as_raw();
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let outside = map.lines().find_map(|line| {
        let numbers: Vec<u32> = line
            .split_ascii_whitespace()
            .filter_map(|n| n.parse().ok())
            .collect();
        let &[inside, outside, count] = &numbers[..] else {
            return None;
        };
        (uid.checked_sub(inside)? < count).then(|| outside + (uid - inside))
    });
    outside.unwrap_or(uid)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_read_and_shown() {
        for text in [
            "0:100000:65536",
            "0:100000:1000,1000:1000:1,1001:101001:64535",
            "uid:0:1:2,gid:0:3:4",
        ] {
            assert_eq!(text.parse::<IdMap>().unwrap().to_string(), text);
        }
        let map: IdMap = "0:100000:65536".parse().unwrap();
        assert_eq!(map.inverse().to_string(), "100000:0:65536,0:4294967294:1");
        assert_eq!(
            "0:0:10".parse::<IdMap>().unwrap().inverse().to_string(),
            "0:0:10"
        );
    }

    #[test]
    fn bad_maps_are_refused() {
        for text in [
            "",
            "0:1",
            "0:1:0",
            "a:b:c",
            "0:0:4294967295,5:5:1",
            "uid:0:1:2",
            "4294967295:0:1",
            "0:10:5,2:30:1",
            "0:10:5,10:14:1",
        ] {
            assert!(text.parse::<IdMap>().is_err(), "{text}");
        }
    }
}
