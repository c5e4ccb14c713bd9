//! Databases of package managers. What both sides changed is never mixed: one side's database is
//! taken as a whole.

use super::tree::is_within;

/// The database of a package manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Database {
    /// The package manager.
    pub(super) name: &'static str,
    /// Its files and directories.
    pub(super) parts: &'static [&'static str],
    /// What to do about a conflict.
    pub(super) advice: &'static str,
}

/// All that are known.
pub(super) const DATABASES: [Database; 3] = [
    Database {
        name: "dpkg",
        // What else is in its directory, such as alternatives, is merged like other files.
        parts: &[
            "var/lib/dpkg/status",
            "var/lib/dpkg/status-old",
            "var/lib/dpkg/status.d",
            "var/lib/dpkg/available",
            "var/lib/dpkg/info",
        ],
        advice: "in the container, `apt-get update && apt-get upgrade` makes packages and database \
                 agree",
    },
    Database {
        name: "rpm",
        parts: &["var/lib/rpm", "usr/lib/sysimage/rpm", "usr/share/rpm"],
        advice: "in the container, `dnf distro-sync` makes packages and database agree",
    },
    Database {
        name: "apk",
        parts: &["lib/apk/db", "usr/lib/apk/db"],
        advice: "in the container, `apk update && apk fix && apk upgrade` makes packages and \
                 database agree",
    },
];

/// Names of files that programs change when they only read the database.
const UNIMPORTANT: [&[u8]; 4] = [b"lock", b"-shm", b"-wal", b"status-old"];

impl Database {
    /// Whether a path belongs to it.
    pub(super) fn has(&self, path: &[u8]) -> bool {
        self.parts
            .iter()
            .any(|part| is_within(path, part.as_bytes()))
    }

    /// Whether a change of a path shows that the packages changed.
    pub(super) fn counts(&self, path: &[u8]) -> bool {
        self.has(path) && !UNIMPORTANT.iter().any(|end| path.ends_with(end))
    }
}
