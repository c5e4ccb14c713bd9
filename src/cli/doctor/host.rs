//! What the host's security modules and its files about users allow.

use std::os::fd::AsFd;
use std::path::Path;

use crate::store::Location;
use crate::store::doctor::{Finding, Level};
use crate::sys::tree_copy::shares_blocks;

/// Fewer ids do not map a container whose files have the usual owners, up to `nobody`.
const IDS: u64 = 65_536;

/// Everything about the host whose root directory this is.
pub(super) fn host(root: &Path, uid: u32) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(apparmor(root));
    findings.extend(selinux(root));
    findings.push(ids(root, uid));
    findings
}

fn read(root: &Path, path: &str) -> Option<String> {
    std::fs::read_to_string(root.join(path)).ok()
}

/// Root mounts by itself; other users do it through fusermount3, which may have a profile.
fn apparmor(root: &Path) -> Option<Finding> {
    let enabled = read(root, "sys/module/apparmor/parameters/enabled")?;
    if enabled.trim() != "Y" {
        return None;
    }
    let about = "apparmor";
    // Only root can read which profiles are loaded, all users which there are.
    let loaded = read(root, "sys/kernel/security/apparmor/profiles");
    let has_profile = loaded.map_or_else(
        || root.join("etc/apparmor.d/fusermount3").exists(),
        |profiles| {
            profiles
                .lines()
                .any(|line| line.starts_with("fusermount3 "))
        },
    );
    let local = read(root, "etc/apparmor.d/local/fusermount3").unwrap_or_default();
    Some(match (has_profile, local.contains("lxcri-fs")) {
        (false, _) => Finding::new(
            about,
            Level::Good,
            "AppArmor has no profile for fusermount3",
            "users can mount images wherever they may write",
        ),
        (true, true) => Finding::new(
            about,
            Level::Good,
            "the profile of fusermount3 has a rule for lxcri-fs",
            "users can mount images wherever they may write",
        ),
        (true, false) => Finding::new(
            about,
            Level::Note,
            "AppArmor has a profile for fusermount3",
            "users who are not root can mount in few places only: put contrib/apparmor/fusermount3 \
             into /etc/apparmor.d/local/ and run `apparmor_parser -r /etc/apparmor.d/fusermount3`",
        ),
    })
}

fn selinux(root: &Path) -> Option<Finding> {
    let enforce = read(root, "sys/fs/selinux/enforce")?;
    Some(match enforce.trim() {
        "1" => Finding::new(
            "selinux",
            Level::Note,
            "SELinux is enforcing",
            "containers have not been tried under it: `ausearch -m avc -ts recent` lists what it \
             denies",
        ),
        _ => Finding::new(
            "selinux",
            Level::Good,
            "SELinux is permissive",
            "it denies nothing",
        ),
    })
}

/// Whether the user has ids to give to containers in user namespaces.
fn ids(root: &Path, uid: u32) -> Finding {
    let passwd = read(root, "etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        (id.parse() == Ok(uid)).then_some(name)
    });
    let number = uid.to_string();
    let name = name.unwrap_or(&number);
    let most = |file: &str| -> u64 {
        let text = read(root, file).unwrap_or_default();
        let of_user = |line: &str| {
            let mut fields = line.split(':');
            let owner = fields.next()?;
            let count = fields.nth(1)?.trim().parse().ok()?;
            (owner == name || owner == number).then_some(count)
        };
        text.lines().filter_map(of_user).max().unwrap_or_default()
    };
    let (uids, gids) = (most("etc/subuid"), most("etc/subgid"));
    if uids >= IDS && gids >= IDS {
        return Finding::new(
            "ids",
            Level::Good,
            format!("{name} has {uids} ids and {gids} groups in /etc/subuid and /etc/subgid"),
            "containers can run in a user namespace",
        );
    }
    Finding::new(
        "ids",
        Level::Note,
        format!("{name} has fewer than {IDS} ids in /etc/subuid or /etc/subgid"),
        format!(
            "LXC cannot start containers with --idmap: `usermod --add-subuids 100000-165535 \
             --add-subgids 100000-165535 {name}`, with a range that is free"
        ),
    )
}

/// Whether images in a store share the blocks of their layers.
pub(super) fn sharing(location: &Location) -> Option<Finding> {
    let Location::Directory(path) = location else {
        return None;
    };
    let dir = std::fs::File::open(path).ok()?;
    let shares = shares_blocks(dir.as_fd()).ok()?;
    Some(if shares {
        Finding::new(
            "store",
            Level::Good,
            "its file system shares blocks between files",
            "layers that several images have are stored once",
        )
    } else {
        Finding::new(
            "store",
            Level::Note,
            "its file system shares no blocks between files",
            "each image takes all of its size, and clones and snapshots of directories are \
             copies or refused: XFS, btrfs and ZFS can share",
        )
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A host with these files.
    fn found(files: &[(&str, &str)], uid: u32) -> Vec<(&'static str, Level, String)> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let findings = host(root.path(), uid).into_iter();
        findings.map(|f| (f.about, f.level, f.so)).collect()
    }

    #[test]
    fn what_modules_refuse_is_told() {
        let enabled = ("sys/module/apparmor/parameters/enabled", "Y\n");
        let profiles = "sys/kernel/security/apparmor/profiles";
        let of = |files: &[(&str, &str)]| {
            let all = found(files, 0);
            all.into_iter()
                .filter(|f| f.0 != "ids")
                .map(|f| (f.0, f.1))
                .collect::<Vec<_>>()
        };
        assert_eq!(of(&[]), []);
        assert_eq!(of(&[("sys/module/apparmor/parameters/enabled", "N\n")]), []);
        let other = (profiles, "lxc-start (enforce)\n");
        let own = (profiles, "fusermount3 (enforce)\nlxc-start (enforce)\n");
        let rule = (
            "etc/apparmor.d/local/fusermount3",
            "mount fstype=fuse.lxcri-fs -> /**/,\n",
        );
        assert_eq!(of(&[enabled, other]), [("apparmor", Level::Good)]);
        assert_eq!(of(&[enabled, own]), [("apparmor", Level::Note)]);
        assert_eq!(of(&[enabled, own, rule]), [("apparmor", Level::Good)]);
        let file = ("etc/apparmor.d/fusermount3", "");
        assert_eq!(of(&[enabled, file]), [("apparmor", Level::Note)]);
        for (enforce, level) in [("1", Level::Note), ("0", Level::Good)] {
            assert_eq!(
                of(&[("sys/fs/selinux/enforce", enforce)]),
                [("selinux", level)]
            );
        }
    }

    #[test]
    fn missing_ids_are_told_with_what_adds_them() {
        let passwd = (
            "etc/passwd",
            "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/:/bin/sh\n",
        );
        let of = |subuid: &str, subgid: &str, uid| {
            let files = [passwd, ("etc/subuid", subuid), ("etc/subgid", subgid)];
            let (_, level, so) = found(&files, uid).pop().unwrap();
            (level, so)
        };
        let ranges = "ann:100000:65536\n1001:200000:65536\n";
        assert_eq!(of(ranges, ranges, 1000).0, Level::Good);
        assert_eq!(of(ranges, ranges, 1001).0, Level::Good);
        for (subuid, subgid, uid, name) in [
            (ranges, ranges, 0, "root"),
            (ranges, "", 1000, "ann"),
            ("ann:100000:1000\n", ranges, 1000, "ann"),
            ("", "", 1002, "1002"),
        ] {
            let (level, so) = of(subuid, subgid, uid);
            assert!(
                level == Level::Note && so.contains(&format!("{name}`")),
                "{uid}: {so}"
            );
        }
    }
}
