//! A ZFS dataset as the place of an upper.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::error::{Error, Result};
use crate::error::Io;
use crate::zfs::{Cause, Children, Create, Dataset, Snapshot};

/// Properties of a new dataset for an upper; the others are inherited. Attributes are kept beside
/// the inode instead of in a directory of their own (overlayfs reads some at every lookup), inodes
/// are large enough for them, and ACLs are possible.
pub const PROPERTIES: [(&str, &str); 3] = [
    ("xattr", "sa"),
    ("acltype", "posixacl"),
    ("dnodesize", "auto"),
];

/// Properties that an upper needs: allowed values, and the problem with other values.
const NEEDED: [(&str, &[&str], &str); 4] = [
    (
        "xattr",
        &["sa", "on", "dir"],
        "has no extended attributes (xattr=off), which overlayfs needs",
    ),
    (
        "acltype",
        &["posix", "posixacl"],
        "has no POSIX ACLs (acltype), so files of the image that have ACLs could not be changed",
    ),
    (
        "casesensitivity",
        &["sensitive"],
        "ignores case in names (casesensitivity)",
    ),
    (
        "utf8only",
        &["off"],
        "allows only names in UTF-8 (utf8only)",
    ),
];

/// Limits of a dataset, in bytes; `None` leaves a limit unchanged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Its `refquota`. Zero for no limit.
    pub quota: Option<u64>,
    /// Its `refreservation`. Zero for none.
    pub reservation: Option<u64>,
}

impl Limits {
    fn properties(self) -> Vec<(&'static str, String)> {
        let number = |name, value: Option<u64>| {
            value.map(|v| {
                (
                    name,
                    if v == 0 {
                        "none".to_owned()
                    } else {
                        v.to_string()
                    },
                )
            })
        };
        number("refquota", self.quota)
            .into_iter()
            .chain(number("refreservation", self.reservation))
            .collect()
    }
}

/// Makes sure that the dataset exists, is suitable for an upper, and is mounted. Returns its
/// directory.
///
/// # Errors
/// [`Error::Zfs`], and [`Error::Unfit`] with the unsuitable property.
pub fn ready(dataset: &Dataset, limits: Limits) -> Result<PathBuf> {
    let limits = limits.properties();
    let limits: Vec<(&str, &str)> = limits
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let wanted: Vec<(&str, &str)> = PROPERTIES
        .into_iter()
        .chain(limits.iter().copied())
        .collect();
    match dataset.create(&Create {
        properties: &wanted,
        parents: false,
    }) {
        Ok(()) => {
            // A dataset that cannot be used does not stay.
            let place = dataset
                .reach()
                .inspect_err(|_| drop(dataset.destroy(Children::Keep)))?;
            // Users of the host must not reach a container's set-user-id programs.
            std::fs::set_permissions(&place, PermissionsExt::from_mode(0o700))
                .map_err(Io::at("setting the mode of", &place))?;
            return Ok(place);
        }
        Err(error) if error.cause() == Some(Cause::Exists) => {}
        Err(error) => return Err(error.into()),
    }
    check(dataset)?;
    if !limits.is_empty() {
        dataset.set(&limits)?;
    }
    Ok(dataset.reach()?)
}

/// Clones a snapshot of an upper, and mounts the clone.
///
/// # Errors
/// [`Error::Zfs`]. The clone does not exist then.
pub(super) fn clone(snapshot: &Snapshot, to: &Dataset, limits: Limits) -> Result<()> {
    let limits = limits.properties();
    // A clone does not inherit the local properties of its origin.
    let wanted: Vec<(&str, &str)> = PROPERTIES
        .into_iter()
        .chain(limits.iter().map(|(name, value)| (*name, value.as_str())))
        .collect();
    snapshot.clone_to(to, &wanted)?;
    match to.mountpoint() {
        Ok(_) => Ok(()),
        Err(error) => {
            let _ = to.destroy(Children::Keep);
            Err(error.into())
        }
    }
}

fn check(dataset: &Dataset) -> Result<()> {
    let found = dataset.properties(&NEEDED.map(|(name, ..)| name))?;
    let unfit = NEEDED
        .iter()
        .find(|(name, values, _)| found.get(name).is_none_or(|value| !values.contains(&value)));
    match unfit {
        Some((property, _, reason)) => Err(Error::Unfit {
            dataset: dataset.clone(),
            property,
            reason,
        }),
        None => Ok(()),
    }
}
