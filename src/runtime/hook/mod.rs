//! Hooks that runtimes call when a container starts and ends.
//!
//! A hook may find an empty environment, and may run twice, or without the hook before it. No hook
//! leaves a process behind that its caller could take for its own: see
//! [`super::root_mount::RootMount::mount`].

mod lxc;
mod oci;
mod podman;

pub use lxc::{HookVariables, lxc};
pub use oci::{Moment, oci};
pub use podman::podman_precreate;
