//! Operations on snapshots with the `zfs` command.
#![cfg_attr(feature = "zfs-core", allow(dead_code))]

use super::command::Command;
use super::dataset::Children;
use super::error::Result;
use super::name::{Dataset, Snapshot};
use super::property;
use super::snapshot::Newer;

pub(super) fn snapshot(snapshot: &Snapshot) -> Result<()> {
    Command::zfs("snapshot", snapshot.as_str()).run().map(drop)
}

pub(super) fn rollback(snapshot: &Snapshot, newer: Newer) -> Result<()> {
    let destroy = (newer == Newer::Destroy).then_some("-r");
    Command::zfs("rollback", snapshot.as_str())
        .args(destroy)
        .run()
        .map(drop)
}

pub(super) fn clone(
    snapshot: &Snapshot,
    target: &Dataset,
    properties: &[(&str, &str)],
) -> Result<()> {
    target.mounted_by(
        Command::zfs("clone", target.as_str())
            .args(property::options(properties)?)
            .args([snapshot.as_str()]),
    )
}

pub(super) fn destroy_snapshot(snapshot: &Snapshot) -> Result<()> {
    Command::zfs("destroy", snapshot.as_str()).run().map(drop)
}

pub(super) fn destroy_dataset(dataset: &Dataset, children: Children) -> Result<()> {
    let recursive = (children == Children::Destroy).then_some("-r");
    Command::zfs("destroy", dataset.as_str())
        .args(recursive)
        .run()
        .map(drop)
}
