//! Operations on datasets.

use std::path::PathBuf;

use super::change;
use super::command::Command;
use super::error::{Cause, Error, Result};
use super::name::{Dataset, Snapshot};
use super::property::{self, Properties};

/// How a dataset is made.
#[derive(Debug, Clone, Copy, Default)]
pub struct Create<'a> {
    /// Properties of the new dataset, not of its parents.
    pub properties: &'a [(&'a str, &'a str)],
    /// Make missing parents too; then nothing is wrong when the dataset exists already.
    pub parents: bool,
}

/// Whether to destroy a dataset's children with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Children {
    /// A dataset with children or snapshots is left alone.
    Keep,
    /// Destroys its children and all snapshots too. Fails if one of them has a clone, which is
    /// never destroyed.
    Destroy,
}

/// Space of a dataset, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    /// Taken by it, its snapshots and children.
    pub used: u64,
    /// Everything that it references, including blocks that it shares with its origin.
    pub referenced: u64,
    /// Space that is left, according to pool, quota and reservations.
    pub available: u64,
    /// The snapshot from which it was cloned.
    pub origin: Option<Snapshot>,
}

impl Dataset {
    /// Whether it exists.
    ///
    /// # Errors
    /// [`Error::NotInstalled`], [`Error::Command`].
    pub fn exists(&self) -> Result<bool> {
        exists(self.as_str(), "filesystem")
    }

    /// The properties of these names that are set.
    ///
    /// # Errors
    /// [`Error::Command`], [`Error::Property`] for a name that cannot be one, [`Error::Output`].
    pub fn properties(&self, names: &[&str]) -> Result<Properties> {
        properties(self.as_str(), names)
    }

    /// Sets properties, atomically if the running version can.
    ///
    /// # Errors
    /// [`Error::Command`], [`Error::Property`].
    pub fn set(&self, properties: &[(&str, &str)]) -> Result<()> {
        Command::zfs("set", self.as_str())
            .args(property::assignments(properties)?)
            .run()
            .map(drop)
    }

    /// Resets a property to its inherited or default value.
    ///
    /// # Errors
    /// [`Error::Command`], [`Error::Property`].
    pub fn unset(&self, property: &str) -> Result<()> {
        Command::zfs("inherit", self.as_str())
            .args([property::names(&[property])?])
            .run()
            .map(drop)
    }

    /// The datasets in it, of whatever type.
    ///
    /// # Errors
    /// [`Error::Command`], [`Error::Output`].
    pub fn below(&self) -> Result<Vec<Dataset>> {
        let output = Command::zfs("list", self.as_str())
            .args(["-H", "-r", "-o", "name", "-t", "filesystem,volume"])
            .run()?;
        let all: Vec<Dataset> = output.lines().map(str::parse).collect::<Result<_>>()?;
        Ok(all.into_iter().filter(|dataset| dataset != self).collect())
    }

    /// It and the file systems in it, to a depth (0: only it; `None`: all), with those of the named
    /// properties that are set.
    ///
    /// # Errors
    /// [`Error::Command`], [`Error::Property`], [`Error::Output`].
    pub fn list(&self, depth: Option<u32>, names: &[&str]) -> Result<Vec<(Dataset, Properties)>> {
        // The command needs at least one property.
        let asked = if names.is_empty() {
            "type".to_owned()
        } else {
            property::names(names)?
        };
        let mut command = Command::zfs("get", self.as_str()).args([
            "-Hp",
            "-t",
            "filesystem",
            "-o",
            property::COLUMNS,
        ]);
        command = match depth {
            Some(depth) => command.args(["-d", &depth.to_string()]),
            None => command.args(["-r"]),
        };
        let output = command.args([asked]).run()?;
        property::parse(&output)?
            .into_iter()
            .map(|(name, properties)| Ok((name.parse()?, properties)))
            .collect()
    }

    /// Makes the dataset, and mounts it where its properties say.
    ///
    /// # Errors
    /// [`Error::Command`], [`Error::Property`].
    pub fn create(&self, how: &Create<'_>) -> Result<()> {
        let parents = how.parents.then_some("-p");
        self.mounted_by(
            Command::zfs("create", self.as_str())
                .args(parents)
                .args(property::options(how.properties)?),
        )
    }

    /// Mounts it where its properties say. Nothing is wrong when it is mounted already.
    ///
    /// # Errors
    /// [`Error::Command`].
    pub fn mount(&self) -> Result<()> {
        match self.mounted_by(Command::zfs("mount", self.as_str())) {
            Err(error) if error.cause() == Some(Cause::Mounted) => Ok(()),
            other => other,
        }
    }

    /// Runs a command that mounts this dataset as its last step.
    ///
    /// Another process can be quicker with that step: `zfs mount -a` mounts everything that it
    /// finds. The command then reports that the dataset is busy, although its work is done.
    pub(super) fn mounted_by(&self, command: Command) -> Result<()> {
        match command.run() {
            Err(error) if error.cause() == Some(Cause::Busy) && self.is_mounted() => Ok(()),
            other => other.map(drop),
        }
    }

    /// Whether it exists and is mounted in this mount namespace.
    fn is_mounted(&self) -> bool {
        self.properties(&["mounted"])
            .is_ok_and(|found| found.get("mounted") == Some("yes"))
    }

    /// Unmounts it. Nothing is wrong when it is not mounted.
    ///
    /// # Errors
    /// [`Error::Command`].
    pub fn unmount(&self) -> Result<()> {
        match Command::zfs("unmount", self.as_str()).run() {
            Err(error) if error.cause() == Some(Cause::NotMounted) => Ok(()),
            other => other.map(drop),
        }
    }

    /// The directory that it is mounted on in this mount namespace.
    ///
    /// # Errors
    /// [`Error::NotMounted`], [`Error::NoDirectory`] if its properties give it none;
    /// [`Error::Command`].
    pub fn mountpoint(&self) -> Result<PathBuf> {
        let found = self.properties(&["mountpoint", "mounted", "canmount"])?;
        let none = |why, hint: String| {
            Err(Error::NoDirectory {
                dataset: self.to_string(),
                why,
                hint,
            })
        };
        let set = format!("`zfs set mountpoint=/somewhere {self}` gives it one");
        match (
            found.get("mountpoint").unwrap_or("-"),
            found.get("mounted"),
            found.get("canmount"),
        ) {
            ("none", ..) => none("its mountpoint is none", set),
            ("legacy", ..) => none(
                "its mountpoint is legacy",
                format!("name the directory that it is mounted on, or: {set}"),
            ),
            (path, Some("yes"), _) if path.starts_with('/') => Ok(PathBuf::from(path)),
            (path, _, Some("off")) if path.starts_with('/') => {
                none("canmount is off", format!("`zfs set canmount=on {self}`"))
            }
            (path, ..) if path.starts_with('/') => Err(Error::NotMounted {
                dataset: self.to_string(),
            }),
            _ => none(
                "it is not a file system",
                "a volume cannot be used here".to_owned(),
            ),
        }
    }

    /// Its space.
    ///
    /// # Errors
    /// [`Error::Command`], [`Error::Output`].
    pub fn space(&self) -> Result<Space> {
        let found = self.properties(&["used", "referenced", "available", "origin"])?;
        let number = |name| {
            found.number(name).ok_or_else(|| Error::Output {
                command: "zfs get",
                output: format!("no {name} of {self}"),
            })
        };
        Ok(Space {
            used: number("used")?,
            referenced: number("referenced")?,
            available: number("available")?,
            origin: found.get("origin").map(str::parse).transpose()?,
        })
    }

    /// Swaps roles with the origin of this clone: the snapshot becomes this dataset's own, and the
    /// origin can be destroyed.
    ///
    /// # Errors
    /// [`Error::Command`].
    pub fn promote(&self) -> Result<()> {
        Command::zfs("promote", self.as_str()).run().map(drop)
    }

    /// Renames it within its pool. An inherited mount point changes with it.
    ///
    /// # Errors
    /// [`Error::Command`].
    pub fn rename(&self, to: &Dataset) -> Result<()> {
        to.mounted_by(Command::zfs("rename", to.as_str()).args([self.as_str()]))
    }

    /// Destroys it. A clone elsewhere is never destroyed along.
    ///
    /// # Errors
    /// [`Error::Command`], with [`Cause::HasChildren`], [`Cause::HasClones`] or [`Cause::Busy`]
    /// where those prevent it.
    pub fn destroy(&self, children: Children) -> Result<()> {
        change::destroy_dataset(self, children)
    }
}

/// Whether there is a dataset or snapshot of this name.
pub(super) fn exists(name: &str, kind: &'static str) -> Result<bool> {
    match Command::zfs("list", name)
        .args(["-H", "-o", "name", "-t", kind])
        .run()
    {
        Ok(_) => Ok(true),
        Err(error) if error.cause() == Some(Cause::NotFound) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The properties of one dataset or snapshot.
pub(super) fn properties(name: &str, names: &[&str]) -> Result<Properties> {
    let output = Command::zfs("get", name)
        .args(["-Hp", "-o", property::COLUMNS, &property::names(names)?])
        .run()?;
    let mut all = property::parse(&output)?;
    match (all.pop(), all.is_empty()) {
        (Some((found, properties)), true) if found == name => Ok(properties),
        _ => Err(Error::Output {
            command: "zfs get",
            output,
        }),
    }
}
