//! Podman's precreate hook, which edits the configuration before podman calls the runtime.

use std::io::{Read, Write};
use std::path::Path;

use serde_json::Value;

use super::super::bundle::MAX_CONFIG;
use super::super::error::{Error, Result};
use super::super::inject;
use crate::error::Io;
use crate::sys::files;

/// Number of digits in podman's ids.
const ID: usize = 64;

/// Runs the hook: mounts what the annotations name, and makes the runtime use it and unmount it
/// later. A configuration without such annotations is written unchanged.
///
/// # Errors
/// [`Error`]: podman then does not start the container.
pub fn podman_precreate(input: impl Read, mut output: impl Write) -> Result<()> {
    let stdin = Path::new("standard input");
    let text = files::take(input, MAX_CONFIG)
        .map_err(Io::at("reading the container's configuration from", stdin))?;
    let mut config: Value = serde_json::from_slice(&text).map_err(Error::document(
        "the container's configuration on standard input",
    ))?;
    let id = id(&config).unwrap_or_else(|| blake3::hash(&text).to_hex().to_string());
    // Podman looks for the working directory in the root file system that it knows.
    let edited = inject::root(&mut config, Path::new(""), &id, false)?;
    let text = if edited {
        serde_json::to_vec(&config).map_err(Error::document("the container's configuration"))?
    } else {
        text
    };
    let written = output.write_all(&text).and_then(|()| output.flush());
    Ok(written.map_err(Io::at(
        "writing the container's configuration to",
        Path::new("standard output"),
    ))?)
}

/// The container's id, which appears only in the paths that podman makes for it.
fn id(config: &Value) -> Option<String> {
    let mounts = config
        .get("mounts")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|m| m.get("source"));
    let paths = config
        .pointer("/linux/cgroupsPath")
        .into_iter()
        .chain(mounts)
        .filter_map(Value::as_str);
    let is_id = |part: &&str| part.len() == ID && part.bytes().all(|b| b.is_ascii_hexdigit());
    paths
        .flat_map(|path| path.split(['/', ':', '-', '.']))
        .find(is_id)
        .map(str::to_owned)
}
