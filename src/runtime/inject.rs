//! Putting a root file system of ours into a container's configuration.

use serde_json::{Value, json};

use super::annotations::Wanted;
use super::error::{Error, Result};
use super::{bundle, roots};

/// Mounts what the annotations of a configuration name, for the container with this id, and has the configuration use it, and unmount it when the container has ended.
/// Whether there was anything to do.
///
/// # Errors
/// [`Error`]; nothing is mounted then.
pub fn root(config: &mut Value, id: &str) -> Result<bool> {
    let annotations = config.get("annotations").cloned().unwrap_or_default();
    let Some(mut wanted) = Wanted::of(|name| annotations.get(name).and_then(Value::as_str))? else { return Ok(false) };
    if config.pointer("/root/readonly").and_then(Value::as_bool) == Some(true) && annotations.get(super::annotations::UPPER).is_none() {
        wanted.read_only();
    }
    let root = roots::make(id)?;
    let path = root.to_str().ok_or_else(|| Error::unfit("a directory's name is not UTF-8"))?;
    let edited = add(config, path);
    edited.and_then(|()| wanted.mount(&root)).inspect_err(|_| drop(roots::remove(&root)))?;
    Ok(true)
}

fn add(config: &mut Value, root: &str) -> Result<()> {
    let program = super::command_line(&["hook", "oci", "poststop", "--root", root])?;
    let hook = json!({ "path": program[0], "args": program, "timeout": bundle::HOOK_TIMEOUT });
    let malformed = || Error::unfit("the container's configuration is not one that the OCI runtime specification has");
    let object = config.as_object_mut().ok_or_else(malformed)?;
    object.entry("root").or_insert_with(|| json!({})).as_object_mut().ok_or_else(malformed)?.insert("path".into(), json!(root));
    let hooks = object.entry("hooks").or_insert_with(|| json!({})).as_object_mut().ok_or_else(malformed)?;
    let poststop = hooks.entry("poststop").or_insert_with(|| json!([])).as_array_mut().ok_or_else(malformed)?;
    // A bundle may be run again, by another id.
    let is_ours = |hook: &Value| hook.get("path") == Some(&json!(program[0])) && hook.pointer("/args/3") == Some(&json!("poststop"));
    poststop.retain(|hook| !is_ours(hook));
    poststop.push(hook);
    Ok(())
}
