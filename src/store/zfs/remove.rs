//! Removing datasets of the store, and nothing else: what somebody else made below them, or holds,
//! is told by name first.

use super::SNAPSHOT;
use super::facts::ROOT_DIGEST;
use crate::store::error::{Error, Result};
use crate::zfs::{self, Cause, Children, Dataset, Info, Snapshot};

/// What keeps a dataset from being removed: datasets in it, which the store does not make, and
/// snapshots that somebody holds.
pub(super) fn in_the_way(dataset: &Dataset, snapshots: &[Info]) -> Result<Vec<String>> {
    let below = dataset
        .below()?
        .into_iter()
        .map(|other| format!("it contains the dataset {other}"));
    let held = snapshots
        .iter()
        .filter(|info| info.holds > 0)
        .map(|info| format!("snapshot {} is held (zfs holds)", info.snapshot));
    Ok(below.chain(held).collect())
}

/// Destroys a dataset with its snapshots, but nothing that is in it. What was cloned from it takes
/// over what it needs, and continues; says how many bytes are freed.
pub(super) fn destroy(dataset: &Dataset) -> Result<u64> {
    let failed = |e: zfs::Error| match e.cause() {
        Some(Cause::Busy) => Error::InUse {
            kind: "dataset",
            name: dataset.to_string(),
            users: vec!["a process has one of its files open".to_owned()],
        },
        _ => e.into(),
    };
    let users = in_the_way(dataset, &dataset.snapshots()?)?;
    if !users.is_empty() {
        return Err(Error::InUse {
            kind: "dataset",
            name: dataset.to_string(),
            users,
        });
    }
    // Each promotion makes another clone depend on the promoted one, and ends this dataset's share
    // in one snapshot at least.
    while let Some(clone) = dataset
        .snapshots()?
        .into_iter()
        .flat_map(|info| info.clones)
        .next()
    {
        clone.promote()?;
    }
    // Without clones, all that it uses is its own.
    let zfs::Space {
        origin,
        used: mut freed,
        ..
    } = dataset.space()?;
    // One by one: recursively, what somebody makes in it meanwhile would go too.
    dataset.unmount().map_err(failed)?;
    for info in dataset.snapshots()? {
        info.snapshot.destroy()?;
    }
    dataset.destroy(Children::Keep).map_err(failed)?;
    if let Some(origin) = origin
        && let Some(left) = is_left_over(&origin)?
    {
        freed += left;
        origin.destroy()?;
    }
    Ok(freed)
}

/// How many bytes a snapshot keeps for nobody: one that came along with a promotion, and has no
/// clones any more.
fn is_left_over(snapshot: &Snapshot) -> Result<Option<u64>> {
    let Some(digits) = snapshot.name().strip_prefix(SNAPSHOT) else {
        return Ok(None);
    };
    let dataset = snapshot.dataset();
    let of_it = dataset
        .properties(&[ROOT_DIGEST])?
        .get(ROOT_DIGEST)
        .is_some_and(|digest| digest.starts_with(digits));
    let info = dataset
        .snapshots()?
        .into_iter()
        .find(|info| info.snapshot == *snapshot);
    Ok(info
        .filter(|info| !of_it && info.clones.is_empty())
        .map(|info| info.used))
}
