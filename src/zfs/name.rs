//! Names of datasets and snapshots, according to the rules of ZFS.
//!
//! A name begins with a letter, so no command can mistake it for an option.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::error::Error;

/// Longest name, of a dataset with its snapshot, in bytes.
const LONGEST: usize = 255;
/// Most components of a name.
const DEEPEST: usize = 50;

/// The name of a file system (or pool), such as `tank/containers/web`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dataset(String);

impl Dataset {
    /// The name as `zfs` takes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The pool that it is in.
    pub fn pool(&self) -> Dataset {
        Dataset(self.0.split('/').next().unwrap_or_default().to_owned())
    }

    /// The parent dataset; `None` for a pool.
    pub fn parent(&self) -> Option<Dataset> {
        self.0
            .rsplit_once('/')
            .map(|(parent, _)| Dataset(parent.to_owned()))
    }

    /// The last component.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// A dataset in this one.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn child(&self, name: &str) -> Result<Dataset, Error> {
        format!("{}/{name}", self.0).parse()
    }

    /// A snapshot of this dataset.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn at(&self, name: &str) -> Result<Snapshot, Error> {
        format!("{}@{name}", self.0).parse()
    }

    /// Whether `other` is this dataset or lies in it.
    pub fn contains(&self, other: &Dataset) -> bool {
        Path::new(&other.0).starts_with(&self.0)
    }
}

impl FromStr for Dataset {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        check(name).map_err(|why| Error::Name {
            name: name.to_owned(),
            why,
        })?;
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a snapshot, such as `tank/containers/web@before`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Snapshot {
    full: String,
    /// Position of the `@`.
    at: usize,
}

impl Snapshot {
    /// The name as `zfs` takes it.
    pub fn as_str(&self) -> &str {
        &self.full
    }

    /// The dataset that it is a snapshot of.
    pub fn dataset(&self) -> Dataset {
        Dataset(self.full[..self.at].to_owned())
    }

    /// The part after the `@`.
    pub fn name(&self) -> &str {
        &self.full[self.at + 1..]
    }
}

impl FromStr for Snapshot {
    type Err = Error;

    fn from_str(full: &str) -> Result<Self, Error> {
        let error = |why| Error::Name {
            name: full.to_owned(),
            why,
        };
        let (dataset, name) = full
            .split_once('@')
            .ok_or_else(|| error("a snapshot is named DATASET@NAME"))?;
        check(dataset)
            .and_then(|()| check_component(name))
            .map_err(error)?;
        if full.len() > LONGEST {
            return Err(error("it is longer than 255 bytes"));
        }
        Ok(Self {
            full: full.to_owned(),
            at: dataset.len(),
        })
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full)
    }
}

fn check(name: &str) -> Result<(), &'static str> {
    if name.len() > LONGEST {
        return Err("it is longer than 255 bytes");
    }
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Err("it begins with the name of a pool, which begins with a letter");
    }
    if name.split('/').count() > DEEPEST {
        return Err("it has more than 50 components");
    }
    name.split('/').try_for_each(check_component)
}

fn check_component(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("a component is empty");
    }
    if name == "." || name == ".." {
        return Err("a component is `.` or `..`");
    }
    if !name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "-_.: ".contains(c))
    {
        return Err("only letters, digits, blanks and `-_.:` may stand between the slashes");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn datasets() {
        let web: Dataset = "tank/containers/web.1-a_b:c d".parse().unwrap();
        assert_eq!(web.pool().as_str(), "tank");
        assert_eq!(web.parent().unwrap().as_str(), "tank/containers");
        assert_eq!(web.name(), "web.1-a_b:c d");
        assert_eq!(web.pool().parent(), None);
        assert_eq!(web.pool().child("-x").unwrap().as_str(), "tank/-x");
        assert!(
            web.parent().unwrap().contains(&web)
                && web.contains(&web)
                && !web.contains(&web.pool())
        );
        assert!(
            !"tank/a"
                .parse::<Dataset>()
                .unwrap()
                .contains(&"tank/ab".parse().unwrap())
        );
    }

    #[test]
    fn snapshots() {
        let snapshot: Snapshot = "tank/a@before 1".parse().unwrap();
        assert_eq!(
            (snapshot.dataset().as_str(), snapshot.name()),
            ("tank/a", "before 1")
        );
        assert_eq!(snapshot, snapshot.dataset().at("before 1").unwrap());
    }

    #[test]
    fn what_zfs_refuses_is_refused() {
        let long = format!("tank/{}", "x".repeat(251));
        let deep = vec!["t"; 51].join("/");
        for name in [
            "",
            "-x",
            "-rtank",
            "/tank",
            "tank/",
            "tank//a",
            "1tank",
            "tank/..",
            "tank/./a",
            "tank/a%b",
            "tank/a@b",
            "tank/a\nb",
            "tank/é",
        ] {
            assert!(name.parse::<Dataset>().is_err(), "{name:?}");
        }
        assert!(
            long.parse::<Dataset>().is_err()
                && long[1..].replace("ank/", "tank/")[..255]
                    .parse::<Dataset>()
                    .is_ok()
        );
        assert!(deep.parse::<Dataset>().is_err() && deep[2..].parse::<Dataset>().is_ok());
        for name in [
            "tank", "tank@", "@x", "tank@a/b", "tank@a@b", "tank@..", "-x@a",
        ] {
            assert!(name.parse::<Snapshot>().is_err(), "{name:?}");
        }
        assert!(format!("{}@x", &long[..254]).parse::<Snapshot>().is_err());
    }
}
