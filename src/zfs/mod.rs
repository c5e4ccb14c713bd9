//! The commands `zfs` and `zpool` behind a small typed API.
//!
//! Names are checked before they are used, arguments are lists, the output is in the stable form
//! for scripts (`-Hp`, in the C locale), and errors distinguish causes, so that a caller can react
//! to them. With the feature `zfs-core`, snapshots are taken, cloned, rolled back and destroyed by
//! libzfs_core instead of the command.

mod by_command;
#[cfg(feature = "zfs-core")]
mod by_library;
mod command;
mod dataset;
mod error;
mod name;
mod property;
mod reach;
pub mod recorded;
mod snapshot;

#[cfg(not(feature = "zfs-core"))]
use by_command as change;
#[cfg(feature = "zfs-core")]
use by_library as change;

pub use dataset::{Children, Create, Space};
pub use error::{Cause, Error, Result};
pub use name::{Dataset, Snapshot};
pub use property::{Properties, Property, PropertySource};
pub use snapshot::{Info, Newer};

/// Versions of OpenZFS, such as `2.3.2-2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Of the commands.
    pub userland: String,
    /// Of the kernel module; absent when it is not loaded.
    pub kernel: Option<String>,
}

impl Version {
    /// Major and minor version of the kernel module.
    pub fn kernel_number(&self) -> Option<(u32, u32)> {
        let mut numbers = self.kernel.as_deref()?.split(|c: char| !c.is_ascii_digit());
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }

    fn parse(output: &str) -> Option<Self> {
        let mut lines = output.lines();
        let userland = lines.next()?.strip_prefix("zfs-")?.to_owned();
        let kernel = lines
            .next()
            .and_then(|line| line.strip_prefix("zfs-kmod-"))
            .map(str::to_owned);
        Some(Self { userland, kernel })
    }
}

/// The version of OpenZFS.
///
/// # Errors
/// [`Error::NotInstalled`], [`Error::Output`].
pub fn version() -> Result<Version> {
    // It fails when it cannot ask the kernel, having said its own version.
    let output = command::Command::zfs("version", "").run_anyway()?;
    Version::parse(&output).ok_or(Error::Output {
        command: "zfs version",
        output,
    })
}

/// The imported pools.
///
/// # Errors
/// [`Error::NotInstalled`], [`Error::Command`].
pub fn pools() -> Result<Vec<Dataset>> {
    let output = command::Command::zpool("list", "")
        .args(["-Hp", "-o", "name"])
        .run()?;
    output.lines().map(str::parse).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let version = Version::parse("zfs-2.3.9-0+deb13u1\nzfs-kmod-2.3.9-0+deb13u1\n").unwrap();
        assert_eq!(
            (version.userland.as_str(), version.kernel_number()),
            ("2.3.9-0+deb13u1", Some((2, 3)))
        );
        assert_eq!(
            Version::parse("zfs-2.1.11-1\n").unwrap().kernel_number(),
            None
        );
        assert_eq!(
            Version::parse("zfs-2.4-rc1\nzfs-kmod-2.4-rc1\n")
                .unwrap()
                .kernel_number(),
            Some((2, 4))
        );
        assert_eq!(Version::parse(""), None);
        assert_eq!(Version::parse("usage:\n"), None);
    }
}
