//! LXC's default configuration, which new containers get a copy of, as lxc-create gives it to
//! them.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::Result;
use crate::error::Io;
use crate::sys::files;

/// LXC's directory for containers, if `lxc-config` does not say otherwise.
const PATH: &str = "/var/lib/lxc";
/// Its default configuration, likewise.
const DEFAULT: &str = "/etc/lxc/default.conf";
/// Longest default configuration that is read, bytes.
const MAX_LEN: u64 = 1 << 20;
/// Beginnings of keys that `create` decides itself.
const OWN: [&str; 8] = [
    "lxc.rootfs",
    "lxc.uts",
    "lxc.idmap",
    "lxc.id_map",
    "lxc.signal.halt",
    "lxc.hook.version",
    "lxc.init.",
    "lxc.execute.",
];

/// LXC's directory for containers.
pub fn container_directory() -> PathBuf {
    asked("lxc.lxcpath").unwrap_or_else(|| PATH.into())
}

/// LXC's default configuration.
pub fn default_config() -> PathBuf {
    asked("lxc.default_config").unwrap_or_else(|| DEFAULT.into())
}

/// What `lxc-config` prints, if it is a path.
fn asked(key: &str) -> Option<PathBuf> {
    let output = Command::new("lxc-config").arg(key).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(PathBuf::from(text.trim())).filter(|path| output.status.success() && path.is_absolute())
}

/// The keys and values of a default configuration that a new container gets; none if there is no
/// such file. Each `x` of a hardware address becomes a random digit, the same at every start.
///
/// # Errors
/// [`Io`] if it cannot be read.
pub fn settings(path: &Path) -> Result<Vec<(String, String)>> {
    let text = match files::read(path, MAX_LEN) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let text = String::from_utf8_lossy(&text);
    let mut settings = Vec::new();
    for line in text
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
    {
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        let (key, value) = (key.trim(), value.trim());
        if OWN.iter().any(|own| key.starts_with(own)) {
            tracing::warn!(
                "{}: {key} is left out, because `create` decides it",
                path.display()
            );
            continue;
        }
        let value = if key.ends_with(".hwaddr") {
            address(value)?
        } else {
            value.to_owned()
        };
        settings.push((key.to_owned(), value));
    }
    Ok(settings)
}

/// A hardware address with random digits in place of each `x`.
pub(super) fn address(template: &str) -> Result<String> {
    let mut random = [0; 32];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(Io::doing("making a hardware address"))?;
    let digits = random.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    let mut digits = digits.filter_map(|digit| char::from_digit(digit.into(), 16));
    let complete = |(at, c): (usize, char)| match (at, c) {
        // An odd first octet is that of a group.
        (1, 'x' | 'X') => '2',
        (_, 'x' | 'X') => digits.next().unwrap_or('0'),
        (_, c) => c,
    };
    Ok(template.chars().enumerate().map(complete).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_default_configuration_is_copied() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("default.conf");
        assert_eq!(settings(&path).unwrap(), []);
        let text = "# a comment\n\nlxc.net.0.type = veth\n lxc.net.0.hwaddr=00:16:3e:xx:xx:xx\n\
                    lxc.idmap = u 0 100000 65536\nlxc.apparmor.profile = a = b\nnonsense\n";
        std::fs::write(&path, text).unwrap();
        let found = settings(&path).unwrap();
        let keys: Vec<&str> = found.iter().map(|(key, _)| &**key).collect();
        assert_eq!(
            keys,
            ["lxc.net.0.type", "lxc.net.0.hwaddr", "lxc.apparmor.profile"]
        );
        let (_, address) = &found[1];
        assert!(address.starts_with("00:16:3e:") && !address.contains('x'));
        assert_eq!(address.len(), 17);
        assert_ne!(*address, settings(&path).unwrap()[1].1);
        assert_eq!(found[2].1, "a = b");
        for _ in 0..20 {
            let any = super::address("xx:xx:xx:xx:xx:xx").unwrap();
            let first = u8::from_str_radix(&any[..2], 16).unwrap();
            assert_eq!(first & 3, 2, "{any} is of one device, and not of a maker");
        }
    }
}
