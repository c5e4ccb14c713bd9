//! Mounts as their users see them: shared, unmounted only when idle, and alive whatever happens to
//! the processes that serve them. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod failures;
mod mounts;
mod split;
