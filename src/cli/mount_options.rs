//! Mount options: the list after `-o`, on the command line and in fstab.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::error::{Error, Exit};
use crate::sys::mount_attr::{FlagChanges, MountFlags};

/// Options that change nothing: those for mount(8) itself, and those that describe what lxcri-fs
/// does anyway.
const IGNORED: [&str; 21] = [
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "async",
    "relatime",
    "norelatime",
    "noatime",
    "nodiratime",
    "strictatime",
    "lazytime",
    "nolazytime",
    "default_permissions",
    "silent",
    "loud",
];

/// What the kernel shows of a mount of FUSE: mount(8) repeats it when it changes one.
const SHOWN: [&str; 4] = ["user_id", "group_id", "max_read", "blksize"];

/// Parsed options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MountOptions {
    /// Flags of the mount.
    pub(super) flags: MountFlags,
    /// Only the flags that are named, if they are to be changed where it is mounted.
    pub(super) remount: Option<FlagChanges>,
    values: Vec<(String, OsString)>,
}

impl MountOptions {
    /// Parses options.
    pub(super) fn parse(options: &[OsString]) -> Result<Self, Error> {
        Self::parse_as(options, rustix::process::geteuid().is_root())
    }

    fn parse_as(options: &[OsString], root: bool) -> Result<Self, Error> {
        let mut flags = MountFlags::plain(root);
        let (mut changes, mut remount, mut shown) = (FlagChanges::default(), false, None);
        let mut values = Vec::new();
        for option in options.iter().flat_map(|o| split(o)) {
            let (name, value) = match option.iter().position(|&b| b == b'=') {
                Some(at) => (
                    &option[..at],
                    Some(OsString::from_vec(option[at + 1..].to_vec())),
                ),
                None => (&option[..], None),
            };
            let name = String::from_utf8_lossy(name).into_owned();
            match (name.as_str(), value) {
                ("nosuid" | "suid", None) => changes.nosuid = Some(name == "nosuid" || !root),
                ("nodev" | "dev", None) => changes.nodev = Some(name == "nodev" || !root),
                ("noexec" | "exec", None) => changes.noexec = Some(name == "noexec"),
                ("rw", None) => changes.read_only = Some(false),
                ("remount", None) => remount = true,
                ("allow_other", None) => flags.allow_other = true,
                ("ro", None) => {
                    changes.read_only = Some(true);
                    values.push((name, OsString::new()));
                }
                ("ephemeral", None) => values.push((name, OsString::new())),
                (
                    "ephemeral" | "upper" | "quota" | "reservation" | "idmap" | "subdir" | "digest"
                    | "engine" | "password-file" | "key-file" | "cache-size",
                    Some(value),
                ) => values.push((name, value)),
                (name, _)
                    if IGNORED.contains(&name) || name.starts_with("x-") || name == "comment" => {}
                (name, Some(_)) if SHOWN.contains(&name) => shown = Some(name.to_owned()),
                (name, _) => return Err(unknown(name)),
            }
        }
        if let Some(name) = shown.as_ref().filter(|_| !remount) {
            return Err(unknown(name));
        }
        if shown.is_some() {
            // mount(8) names all that shall be: `suid` is that there is no `nosuid`.
            for flag in [&mut changes.nosuid, &mut changes.nodev, &mut changes.noexec] {
                flag.get_or_insert(false);
            }
        }
        flags.nosuid = changes.nosuid.unwrap_or(flags.nosuid);
        flags.nodev = changes.nodev.unwrap_or(flags.nodev);
        flags.noexec = changes.noexec.unwrap_or(flags.noexec);
        let remount = remount.then_some(changes);
        Ok(Self {
            flags,
            remount,
            values,
        })
    }

    /// The other options, by name, with their values.
    pub(super) fn values(&self) -> &[(String, OsString)] {
        &self.values
    }
}

fn unknown(name: &str) -> Error {
    Error::Other {
        message: format!("unknown mount option {name:?}"),
        hint: Some("`lxcri-fs mount --help` lists the options".to_owned()),
        exit: Exit::Usage,
    }
}

/// Splits a list of options at its commas; a backslash before a comma keeps it in the option.
fn split(list: &OsStr) -> Vec<Vec<u8>> {
    let mut options = vec![Vec::new()];
    let mut bytes = list.as_bytes().iter();
    while let Some(&b) = bytes.next() {
        match (b, options.last_mut()) {
            (b',', _) => options.push(Vec::new()),
            (b'\\', Some(option)) => option.extend(bytes.next()),
            (_, Some(option)) => option.push(b),
            (_, None) => {}
        }
    }
    options.retain(|o| !o.is_empty());
    options
}

/// The value of an option, as text.
pub(super) fn option_text(name: &str, value: &OsStr) -> Result<String, Error> {
    value
        .to_str()
        .map(str::to_owned)
        .ok_or_else(|| bad_option(name, value))
}

/// The error for an invalid value of an option.
pub(super) fn bad_option(name: &str, value: &OsStr) -> Error {
    Error::Other {
        message: format!("{value:?} is not a valid value of mount option {name}"),
        hint: None,
        exit: Exit::Usage,
    }
}

/// Translates the command line of mount(8) to that of `lxcri-fs mount`. mount(8) starts this
/// program as `mount.fuse.lxcri-fs`, or through `mount.fuse` as `lxcri-fs IMAGE DIR -o OPTIONS`.
/// `None` if mount(8) did not start it.
pub(super) fn helper_arguments(
    args: &[OsString],
    is_command: impl Fn(&OsStr) -> bool,
) -> Option<Vec<OsString>> {
    let (program, rest) = args.split_first()?;
    let name = program.as_bytes().rsplit(|&b| b == b'/').next()?;
    let first = rest.first()?;
    let bare = !is_command(first)
        && !first.as_bytes().starts_with(b"-")
        && rest.iter().any(|a| a.as_bytes().starts_with(b"-o"));
    if !name.starts_with(b"mount.") && !bare {
        return None;
    }
    let mut paths = Vec::new();
    let mut ours: Vec<OsString> = vec![program.clone(), "mount".into()];
    let mut rest = rest.iter();
    while let Some(arg) = rest.next() {
        match arg.as_bytes() {
            // The file system type, and the namespace, which mount(8) has entered already.
            b"-t" | b"-N" => drop(rest.next()),
            b"-o" => {
                ours.push("-o".into());
                ours.extend(rest.next().cloned());
            }
            b"-f" => ours.push("--fake".into()),
            // -s, -n, -v: sloppy, no mtab, verbose.
            [b'-', flags @ ..] if !flags.is_empty() && flags.iter().all(|f| b"snv".contains(f)) => {
            }
            [b'-', ..] => ours.push(arg.clone()),
            _ => paths.push(arg.clone()),
        }
    }
    ours.push("--".into());
    ours.extend(paths);
    Some(ours)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn os(args: &[&str]) -> Vec<OsString> {
        args.iter().map(OsString::from).collect()
    }

    #[test]
    fn defaults_follow_who_mounts() {
        let root = MountOptions::parse_as(&[], true).unwrap().flags;
        assert_eq!(
            (root.nosuid, root.nodev, root.noexec, root.allow_other),
            (true, true, false, true)
        );
        let asked = MountOptions::parse_as(&os(&["defaults,suid", "dev"]), true)
            .unwrap()
            .flags;
        assert_eq!((asked.nosuid, asked.nodev), (false, false));
        let user = MountOptions::parse_as(&os(&["rw,suid,dev"]), false)
            .unwrap()
            .flags;
        assert_eq!(
            (user.nosuid, user.nodev, user.noexec, user.allow_other),
            (true, true, false, false)
        );
        let strict = MountOptions::parse_as(&os(&["nosuid,nodev", "noexec"]), true)
            .unwrap()
            .flags;
        assert_eq!(
            (strict.nosuid, strict.nodev, strict.noexec),
            (true, true, true)
        );
    }

    #[test]
    fn fstab_options_are_ignored_and_unknown_ones_are_not() {
        let options = os(&["defaults,noauto,_netdev,x-systemd.automount,nofail,comment=z,user"]);
        assert!(MountOptions::parse_as(&options, true).is_ok());
        assert!(MountOptions::parse_as(&os(&["subdri=x"]), true).is_err());
    }

    #[test]
    fn values_may_have_commas_and_equal_signs() {
        let options = MountOptions::parse_as(&os(&[r"subdir=a\,b=c,cache-size=5"]), true).unwrap();
        assert_eq!(
            options.values,
            [
                ("subdir".to_owned(), "a,b=c".into()),
                ("cache-size".to_owned(), "5".into())
            ]
        );
    }

    #[test]
    fn helper_command_lines() {
        let is_command = |a: &OsStr| a == "mount";
        let helper = |args: &[&str]| helper_arguments(&os(args), is_command);
        let expected = os(&[
            "/sbin/mount.fuse.lxcri-fs",
            "mount",
            "-o",
            "rw",
            "--",
            "i.bfc",
            "/mnt",
        ]);
        assert_eq!(
            helper(&[
                "/sbin/mount.fuse.lxcri-fs",
                "i.bfc",
                "/mnt",
                "-sn",
                "-t",
                "fuse.lxcri-fs",
                "-o",
                "rw"
            ]),
            Some(expected)
        );
        let expected = os(&["lxcri-fs", "mount", "-o", "ro,dev", "--", "i.bfc", "/mnt"]);
        assert_eq!(
            helper(&["lxcri-fs", "i.bfc", "/mnt", "-o", "ro,dev"]),
            Some(expected)
        );
        assert_eq!(
            helper(&["lxcri-fs", "mount", "-o", "ro", "i.bfc", "/mnt"]),
            None
        );
        assert_eq!(helper(&["lxcri-fs", "--help"]), None);
        assert_eq!(helper(&["lxcri-fs", "muont", "i.bfc"]), None);
    }
}
