//! A ZFS dataset as the place of an upper.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::error::{Error, Result};
use crate::zfs::{Cause, Children, Create, Dataset, Snapshot};

/// What a dataset made for an upper is given; the rest is inherited. Attributes are kept beside the
/// inode instead of in a directory of their own (overlayfs looks at some in every look-up), with
/// inodes large enough for them, and ACLs are possible.
pub const PROPERTIES: [(&str, &str); 3] = [
    ("xattr", "sa"),
    ("acltype", "posixacl"),
    ("dnodesize", "auto"),
];

/// Settings with which a container would not see what it is used to: what has to hold, and what
/// else happens.
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

/// How much room a dataset has, in bytes; what is not said stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// How much it may refer to: its `refquota`. Zero for no limit.
    pub quota: Option<u64>,
    /// How much is set aside for it: its `refreservation`. Zero for nothing.
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

/// Makes sure that the dataset is there, fit for an upper, and mounted; its directory.
///
/// # Errors
/// [`Error::Zfs`], and [`Error::Unfit`] with the property that stands in the way.
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
            // What cannot be used is not left.
            let place = dataset
                .reach()
                .inspect_err(|_| drop(dataset.destroy(Children::Keep)))?;
            // Programs with the set-user-id bit of a container are not for the host's users.
            std::fs::set_permissions(&place, PermissionsExt::from_mode(0o700))
                .map_err(Error::io("setting the mode of", &place))?;
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

/// Makes a dataset of a snapshot of an upper, and mounts it.
///
/// # Errors
/// [`Error::Zfs`]. Then there is none.
pub(super) fn clone(snapshot: &Snapshot, to: &Dataset, limits: Limits) -> Result<()> {
    let limits = limits.properties();
    // What is local to the origin is not the clone's.
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
