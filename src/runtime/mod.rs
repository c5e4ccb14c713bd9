//! Containers: what an image says of its process, as runtimes want it told, and the hooks and the
//! wrapper that runtimes call.
//!
//! [`image`] reads an image's own configuration, [`process`] makes of it and of what was asked for
//! what is to run; [`bundle`] and [`lxc`] write that down for the two kinds of runtimes. [`create`]
//! and [`delete`] make and take away whole containers, with a [`record`] of each.

pub mod annotations;
pub mod bundle;
pub mod create;
pub mod delete;
mod error;
pub mod hook;
pub mod image;
mod inject;
mod left;
pub mod lxc;
pub mod mount;
pub mod process;
pub mod record;
mod rootpath;
mod roots;
pub mod signal;
pub mod steps;
pub mod user;
pub mod wrapper;

pub use error::{Error, Result};

/// What the names of our annotations begin with.
pub const ANNOTATION: &str = "org.lxcri-fs.";

/// A command line of this program, for a runtime that calls it later: its absolute path, and
/// arguments.
fn command_line(args: &[&str]) -> Result<Vec<String>> {
    let path = std::env::current_exe()
        .map_err(Error::io("finding", std::path::Path::new("this program")))?;
    let path = path
        .into_os_string()
        .into_string()
        .map_err(|_| Error::unfit("the path of this program is not UTF-8"))?;
    Ok(std::iter::once(path)
        .chain(args.iter().map(|&arg| arg.to_owned()))
        .collect())
}
