//! Containers: an image's configuration in the form that runtimes take, and the hooks and the
//! wrapper that runtimes call.
//!
//! [`image`] reads an image's own configuration, and [`process`] combines it with the options of
//! `create`; [`bundle`] and [`lxc`] write the result for the two kinds of runtimes. [`create`] and
//! [`delete`] create and remove containers, with a [`record`] of each. [`status`] says what they
//! are doing.

pub mod annotations;
pub mod bundle;
mod carry;
pub mod clone;
mod configuration;
pub mod create;
pub mod delete;
mod directory;
mod error;
pub mod hook;
pub mod image;
mod image_defaults;
mod inject;
mod left;
pub mod lxc;
pub mod lxc_defaults;
pub mod process;
mod reconfigure;
pub mod record;
pub mod restart;
pub mod root_mount;
mod rootpath;
mod roots;
pub mod settings;
pub mod signal;
pub mod status;
pub mod steps;
pub mod update;
pub mod user;
pub mod volumes;
pub mod wrapper;

pub use error::{Error, Result};

use crate::error::Io;

/// Prefix of the names of lxcri-fs's annotations.
pub const ANNOTATION: &str = "org.lxcri-fs.";

/// A command line that a runtime can call later: the absolute path of this program, and arguments.
fn command_line(args: &[&str]) -> Result<Vec<String>> {
    let path =
        std::env::current_exe().map_err(Io::at("finding", std::path::Path::new("this program")))?;
    let path = path
        .into_os_string()
        .into_string()
        .map_err(|_| Error::unfit("the path of this program is not UTF-8"))?;
    Ok(std::iter::once(path)
        .chain(args.iter().map(|&arg| arg.to_owned()))
        .collect())
}
