//! Images come from registries, are kept and shared, and go there again: out of Debian's
//! docker-registry, and in spite of one that breaks, lies or refuses.
//!
//! Needs root, and the tools that `tests/run.sh` installs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;
#[path = "../common/mod.rs"]
mod common;
mod credentials;
mod fake;
mod login;
mod plain;
mod policy;
mod progress;
mod pull;
mod push;
mod registries_conf;
mod room;
mod server;
mod transfer;
mod trust;
