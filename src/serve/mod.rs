//! Serves file systems over FUSE: the adapter, the mounts, and the processes that keep them.
//!
//! `mount` starts a [`keeper`], which mounts and starts a [`worker`], which serves. The keeper
//! parses nothing from an image; the worker has no privileges.

mod adapter;
pub mod answer;
mod attr;
mod channel;
pub mod confine;
pub(crate) mod daemon;
mod devices;
pub mod engine;
mod error;
pub mod fuse_mount;
mod in_hand;
pub mod keeper;
pub mod log;
pub mod mountpoint;
pub mod overview;
pub mod protocol;
mod requests;
mod resume;
pub mod rundir;
mod secrets;
pub mod shared;
mod split;
pub mod stats;
mod surplus;
pub mod unmount;
pub mod upgrade;
mod walk;
pub mod worker;

pub use error::{Error, Failure, Result};
