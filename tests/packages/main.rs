//! What is installed beside the program, and how: manual pages, completions, packages.
//!
//! Needs root, and the tools that `tests/run.sh` installs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod manual;
#[path = "../common/store.rs"]
mod store;
