//! Removes datasets of the store, and nothing else: foreign datasets below them, and snapshots that
//! are held, are reported by name first.

use super::SNAPSHOT;
use super::facts::ROOT_DIGEST;
use crate::store::error::{Error, Result};
use crate::zfs::{self, Cause, Children, Dataset, Info, Snapshot};

/// What keeps a dataset from being removed: datasets below it, which the store never creates, and
/// snapshots that are held.
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

/// Destroys a dataset with its snapshots, but no datasets below it. Promotes its clones first,
/// which keep what they need. Returns how many bytes are freed.
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
    // Each promotion moves at least one snapshot from this dataset to the promoted clone, on which
    // the other clones then depend.
    while let Some(clone) = dataset
        .snapshots()?
        .into_iter()
        .flat_map(|info| info.clones)
        .next()
    {
        clone.promote()?;
    }
    // Without clones, everything that it uses is its own.
    let zfs::Space {
        origin,
        used: mut freed,
        ..
    } = dataset.space()?;
    // One by one: a recursive destroy would also destroy what is created in it meanwhile.
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

/// How many bytes a snapshot keeps uselessly, if it came with a promotion and has no clones any
/// more.
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
