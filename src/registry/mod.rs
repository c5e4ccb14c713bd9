//! Registries: pulls and pushes images with the OCI distribution protocol.
//!
//! The interface is synchronous. A `Session` owns the only async runtime, in which requests run: on
//! the caller's thread for documents, and on a thread of its own for blobs, which go to files that
//! grow while they are read (`Spool`).
//!
//! The client is written for lxcri-fs, on reqwest. The oci-client crate (0.18) reads manifests,
//! tokens and error messages of any length into memory, panics on a token that is no header value,
//! drops the reason of a failed login, does not answer a challenge twice, knows no identity tokens,
//! and does not pass on `Retry-After`. A registry is a stranger, and none of this can be mended
//! from outside of it.

mod answer;
pub mod artifact;
mod auth;
mod certificates;
mod challenge;
pub mod config;
mod credentials;
mod download;
mod endpoint;
mod error;
pub mod login;
pub mod pull;
pub mod push;
mod rate;
mod registries_conf;
mod retry;
mod session;
mod signatures;
mod spool;

pub use config::Registries;
pub use download::{Blobs, Observer, Wanted};
pub use error::{Error, Result};
pub use oci_spec::distribution::Reference;
pub(crate) use spool::DIRECTORY as BLOBS;
