//! Snapshots: taking, listing, rolling back, cloning, destroying.

use super::command::Command;
use super::error::{Error, Result};
use super::name::{Dataset, Snapshot};
use super::property::Properties;
use super::{change, dataset};

/// What a rollback does with snapshots younger than the one that it goes back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Newer {
    /// They prevent it.
    Keep,
    /// They are destroyed; a clone of one of them still prevents it.
    Destroy,
}

/// A snapshot as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Its name.
    pub snapshot: Snapshot,
    /// When it was taken, in seconds of the epoch.
    pub creation: u64,
    /// What destroying it would free, in bytes.
    pub used: u64,
    /// What it shows, in bytes.
    pub referenced: u64,
    /// The datasets that were cloned from it.
    pub clones: Vec<Dataset>,
    /// How often it is held (`zfs hold`): as long as it is, it cannot be destroyed.
    pub holds: u64,
}

impl Snapshot {
    /// Whether it exists.
    ///
    /// # Errors
    /// [`Error::NotInstalled`], [`Error::Command`].
    pub fn exists(&self) -> Result<bool> {
        dataset::exists(self.as_str(), "snapshot")
    }

    /// The properties of these names that are set.
    ///
    /// # Errors
    /// [`Error::Command`], [`Error::Property`] for a name that cannot be one, [`Error::Output`].
    pub fn properties(&self, names: &[&str]) -> Result<Properties> {
        dataset::properties(self.as_str(), names)
    }

    /// Takes it.
    ///
    /// # Errors
    /// [`Error::Command`].
    pub fn take(&self) -> Result<()> {
        change::snapshot(self)
    }

    /// Has its dataset go back to it. What is open in the dataset is lost to its users, so unmount
    /// what stands on it first.
    ///
    /// # Errors
    /// [`Error::Command`], with [`Cause::NewerSnapshots`](super::Cause::NewerSnapshots) where those
    /// prevent it.
    pub fn rollback(&self, newer: Newer) -> Result<()> {
        change::rollback(self, newer)
    }

    /// Makes a dataset of it that can be written to, and mounts it where its properties say.
    ///
    /// # Errors
    /// [`Error::Command`], [`Error::Property`].
    pub fn clone_to(&self, target: &Dataset, properties: &[(&str, &str)]) -> Result<()> {
        change::clone(self, target, properties)
    }

    /// Gives it another name.
    ///
    /// # Errors
    /// [`Error::Command`].
    pub fn rename(&self, to: &str) -> Result<()> {
        let to = self.dataset().at(to)?;
        Command::zfs("rename", to.as_str())
            .args([self.as_str()])
            .run()
            .map(drop)
    }

    /// Destroys it as soon as it has no clones and no holds.
    ///
    /// # Errors
    /// [`Error::Command`].
    pub fn destroy_when_unused(&self) -> Result<()> {
        Command::zfs("destroy", self.as_str())
            .args(["-d"])
            .run()
            .map(drop)
    }

    /// Destroys it.
    ///
    /// # Errors
    /// [`Error::Command`], with [`Cause::HasClones`](super::Cause::HasClones) where those prevent
    /// it.
    pub fn destroy(&self) -> Result<()> {
        change::destroy_snapshot(self)
    }
}

impl Dataset {
    /// Its snapshots, the oldest first.
    ///
    /// # Errors
    /// [`Error::Command`], [`Error::Output`].
    pub fn snapshots(&self) -> Result<Vec<Info>> {
        let columns = "name,creation,used,referenced,clones,userrefs";
        let output = Command::zfs("list", self.as_str())
            .args([
                "-Hp",
                "-d",
                "1",
                "-t",
                "snapshot",
                "-s",
                "createtxg",
                "-o",
                columns,
            ])
            .run()?;
        output.lines().map(parse).collect()
    }
}

/// A line of `zfs list -Hp -t snapshot`.
fn parse(line: &str) -> Result<Info> {
    let malformed = || Error::Output {
        command: "zfs list",
        output: line.to_owned(),
    };
    let fields: Vec<&str> = line.split('\t').collect();
    let [name, creation, used, referenced, clones, holds] = fields[..] else {
        return Err(malformed());
    };
    let number = |field: &str| field.parse().map_err(|_| malformed());
    let clones = clones
        .split(',')
        .filter(|clone| !clone.is_empty() && *clone != "-");
    Ok(Info {
        snapshot: name.parse()?,
        creation: number(creation)?,
        used: number(used)?,
        referenced: number(referenced)?,
        clones: clones.map(str::parse).collect::<Result<_>>()?,
        holds: number(holds)?,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let info = parse("tank/a@s1\t1795257717\t0\t24576\ttank/cl,tank/c 2\t1").unwrap();
        assert_eq!(
            (
                info.snapshot.name(),
                info.creation,
                info.used,
                info.referenced
            ),
            ("s1", 1_795_257_717, 0, 24576)
        );
        assert_eq!(
            info.clones.iter().map(Dataset::as_str).collect::<Vec<_>>(),
            ["tank/cl", "tank/c 2"]
        );
        assert_eq!(info.holds, 1);
        assert!(
            parse("tank/a@s1\t1795257717\t0\t24576\t\t0")
                .unwrap()
                .clones
                .is_empty()
        );
        assert!(
            parse("tank/a@s1\t1795257717\t0\t24576\t-\t0")
                .unwrap()
                .clones
                .is_empty()
        );
        for broken in [
            "",
            "tank/a@s1",
            "tank/a@s1\tnow\t0\t0\t",
            "tank/a\t1\t0\t0\t",
            "tank/a@s1\t1\t0\t0\t\t",
            "tank/a@s1\t1\t0\t0\t\t0\t",
        ] {
            assert!(parse(broken).is_err(), "{broken}");
        }
    }
}
