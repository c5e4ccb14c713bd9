//! EROFS metadata of images, mounted by the kernel: what they show is what the FUSE mount of the
//! same image shows.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation
)]

#[path = "../common/mod.rs"]
mod common;
mod compare;
mod hostile;
mod kernel;
mod oddities;
mod property;
mod support;
mod tools;
