//! Images and containers in a store: the same tests on a directory and on ZFS.
//!
//! Needs root; those on ZFS need a pool, named by `LXCRI_FS_TEST_POOL`: `tests/zfs/run` makes one
//! in a VM.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/store.rs"]
mod bench;
#[path = "../common/mod.rs"]
mod common;
mod images;
mod keeps;
mod killed;
mod layers;
mod snapshots;
mod updates;
mod upkeep;
