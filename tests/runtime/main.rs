//! Containers of runc, crun, podman and LXC: how they are configured, made, run and removed.
//!
//! Needs root, crun, runc, podman, lxc, strace, umoci and busybox-static; `tests/run.sh` installs
//! them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod clones;
#[path = "../common/mod.rs"]
mod common;
mod config;
#[path = "../containers/mod.rs"]
mod containers;
mod create;
mod killed;
mod listed;
mod lxc;
mod oci;
mod podman;
mod races;
mod updates;
mod volumes;
