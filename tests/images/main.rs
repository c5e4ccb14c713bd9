//! What images hold, what their mounts show, and how sources become images: one program, since none
//! of these tests needs a process of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

mod acl;
mod export;
mod golden;
mod hostile;
mod layer;
mod layer_round_trip;
mod merge;
mod merge_model;
mod mount_paths;
mod others;
mod read_ahead;
mod rootfs;
mod sources;
mod stack;
