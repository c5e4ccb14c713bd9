//! Makes the directory of a dataset accessible: mounts the dataset if necessary, after the datasets
//! above it.

use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::command::Command;
use super::error::{Cause, Error, Result};
use super::name::Dataset;
use super::property::{self, Properties};

/// The properties that determine whether and where a dataset can be mounted.
const ASKED: [&str; 5] = [
    "mounted",
    "mountpoint",
    "canmount",
    "keystatus",
    "encryptionroot",
];

impl Dataset {
    /// The directory that the dataset is mounted on in this mount namespace. When it is not
    /// mounted, it is mounted, and before it those of the datasets around it that `zfs mount -a`
    /// would mount: mounted later, they would hide it.
    ///
    /// # Errors
    /// [`Error::Locked`] when its key is not loaded, [`Error::NoDirectory`] when its properties
    /// give it no directory, [`Error::Hidden`] when something else is mounted there,
    /// [`Error::Command`].
    pub fn reach(&self) -> Result<PathBuf> {
        let around = self.with_parents();
        let (names, last) = around.split_at(around.len() - 1);
        let last = last.first().map_or(self.as_str(), Dataset::as_str);
        let output = Command::zfs("get", last)
            .args(["-Hp", "-o", property::COLUMNS, &property::names(&ASKED)?])
            .args(names.iter().map(Dataset::as_str))
            .run()?;
        let mut found = property::parse(&output)?;
        let (_, own) = found.pop().ok_or(Error::Output {
            command: "zfs get",
            output,
        })?;
        if own.get("mounted") != Some("yes") {
            unlocked(self, &own)?;
            let path = match own.get("mountpoint") {
                Some(path) if path.starts_with('/') => Path::new(path),
                _ => return self.mountpoint(),
            };
            for (name, properties) in &found {
                if would_hide(path, properties) {
                    let parent: Dataset = name.parse()?;
                    unlocked(&parent, properties)?;
                    parent.mount()?;
                }
            }
            self.mount()?;
        }
        let path = self.mountpoint()?;
        self.refuse_hidden(&path)?;
        Ok(path)
    }

    /// The file systems whose directory this is, whether they are mounted or not.
    ///
    /// # Errors
    /// [`Error::NotInstalled`], [`Error::Command`], [`Error::Output`].
    pub fn of_directory(dir: &Path) -> Result<Vec<Dataset>> {
        let output = Command::zfs("list", "")
            .args(["-H", "-t", "filesystem", "-o", "name,mountpoint"])
            .run()?;
        let is_there = |line: &&str| {
            line.split_once('\t')
                .is_some_and(|(_, at)| Path::new(at) == dir)
        };
        output
            .lines()
            .filter(is_there)
            .filter_map(|line| line.split('\t').next())
            .map(str::parse)
            .collect()
    }

    /// Refuses a directory where something else is seen than this dataset.
    ///
    /// # Errors
    /// [`Error::Hidden`].
    pub fn refuse_hidden(&self, path: &Path) -> Result<()> {
        match source_of(path) {
            Some(source) if source != self.as_str() => Err(Error::Hidden {
                dataset: self.to_string(),
                path: path.to_owned(),
                by: source,
            }),
            _ => Ok(()),
        }
    }

    /// The pool, the datasets between it and this dataset, and the dataset itself.
    fn with_parents(&self) -> Vec<Dataset> {
        let mut all: Vec<Dataset> =
            std::iter::successors(Some(self.clone()), Dataset::parent).collect();
        all.reverse();
        all
    }
}

/// Fails if a dataset cannot be mounted because its key is not loaded.
fn unlocked(dataset: &Dataset, properties: &Properties) -> Result<()> {
    if properties.get("keystatus") != Some("unavailable") {
        return Ok(());
    }
    let root = properties
        .get("encryptionroot")
        .unwrap_or(dataset.as_str())
        .to_owned();
    Err(Error::Locked {
        dataset: dataset.to_string(),
        root,
    })
}

/// Whether a dataset that is not mounted would hide `path` when it is.
fn would_hide(path: &Path, properties: &Properties) -> bool {
    let at = properties
        .get("mountpoint")
        .filter(|at| at.starts_with('/'));
    properties.get("mounted") == Some("no")
        && properties.get("canmount") == Some("on")
        && at.is_some_and(|at| path.starts_with(at))
}

/// The source of the mount that a path leads to, as in mountinfo; `None` if it is unknown.
fn source_of(path: &Path) -> Option<String> {
    let seen = statx(CWD, path, AtFlags::NO_AUTOMOUNT, StatxFlags::MNT_ID)
        .ok()?
        .stx_mnt_id
        .to_string();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts
        .lines()
        .find(|line| line.split(' ').next() == Some(&seen))?;
    // A blank is the only character of a dataset's name that is escaped there.
    Some(
        line.split_once(" - ")?
            .1
            .split(' ')
            .nth(1)?
            .replace("\\040", " "),
    )
}

impl Error {
    /// Whether a dataset is inaccessible, so that nothing is known about its contents.
    pub fn is_out_of_reach(&self) -> bool {
        let cause = matches!(self.cause(), Some(Cause::Locked));
        let mounting = matches!(self, Error::Command { doing: "mount", .. });
        cause
            || mounting
            || matches!(
                self,
                Error::Locked { .. }
                    | Error::NotMounted { .. }
                    | Error::NoDirectory { .. }
                    | Error::Hidden { .. }
            )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_datasets_around_come_first() {
        let all: Vec<String> = "tank/a/b"
            .parse::<Dataset>()
            .unwrap()
            .with_parents()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(all, ["tank", "tank/a", "tank/a/b"]);
    }

    #[test]
    fn only_what_would_be_mounted_over_it_is_mounted_before() {
        let of = |mounted: &str, at: &str, can: &str| {
            let output = format!(
                "tank\tmounted\t{mounted}\t-\n\
                 tank\tmountpoint\t{at}\tlocal\n\
                 tank\tcanmount\t{can}\tlocal\n"
            );
            property::parse(&output).unwrap().remove(0).1
        };
        let path = Path::new("/tank/images");
        assert!(
            would_hide(path, &of("no", "/tank", "on")) && would_hide(path, &of("no", "/", "on"))
        );
        for other in [
            of("yes", "/tank", "on"),
            of("no", "/tank", "noauto"),
            of("no", "none", "on"),
            of("no", "/tan", "on"),
        ] {
            assert!(!would_hide(path, &other), "{other:?}");
        }
    }

    #[test]
    fn what_is_mounted_is_told() {
        assert!(source_of(Path::new("/proc/self")).is_some());
        assert_eq!(source_of(Path::new("/no/such/place")), None);
    }
}
