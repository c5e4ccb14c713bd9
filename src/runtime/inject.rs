//! Adds a root file system to a container's configuration.

use std::path::Path;

use rustix::fs::Gid;
use serde_json::{Value, json};

use super::annotations::{Wanted, is_none};
use super::error::{Error, Result};
use super::{bundle, image_defaults, root_mount, roots};

/// Mounts the root file system that the annotations of a configuration in the directory `bundle`
/// name, for the container with this id, and changes the configuration to use it and what the image
/// says of its process (its working directory with `cwd` only), and to unmount it when the
/// container has ended. Returns whether the annotations name one.
///
/// # Errors
/// [`Error`]; nothing is mounted then.
pub(super) fn root(config: &mut Value, bundle: &Path, id: &str, cwd: bool) -> Result<bool> {
    let annotations = config.get("annotations").cloned().unwrap_or_default();
    let own_root = bundle.join(
        config
            .pointer("/root/path")
            .and_then(Value::as_str)
            .unwrap_or_default(),
    );
    let Some(mut wanted) = Wanted::of(
        |name| annotations.get(name).and_then(Value::as_str),
        &own_root,
    )?
    else {
        return Ok(false);
    };
    if config.pointer("/root/readonly").and_then(Value::as_bool) == Some(true)
        && annotations.get(super::annotations::UPPER).is_none()
    {
        wanted.read_only();
    }
    let group = group_of_root(config).or_else(|| {
        wanted
            .idmap()
            .and_then(root_mount::root_of)
            .map(|(_, group)| group)
    });
    // Beside an image of its own, the engine has applied that image's configuration.
    if is_none(&own_root) {
        image_defaults::apply(config, &wanted.open()?, cwd)?;
    }
    let root = roots::make(id, group)?;
    let path = root
        .to_str()
        .ok_or_else(|| Error::unfit("a directory's name is not UTF-8"))?;
    let edited = add(config, path);
    edited
        .and_then(|()| wanted.mount(&root))
        .inspect_err(|_| drop(roots::remove(&root)))?;
    Ok(true)
}

/// The group that the container's root has on the host, if the container has a user namespace.
fn group_of_root(config: &Value) -> Option<Gid> {
    let mappings = config
        .pointer("/linux/gidMappings")
        .and_then(Value::as_array)?;
    let root = mappings
        .iter()
        .find(|m| m.get("containerID").and_then(Value::as_u64) == Some(0))?;
    let group = root
        .get("hostID")
        .and_then(Value::as_u64)
        .and_then(|id| u32::try_from(id).ok());
    // No group has this number.
    group.filter(|&id| id != u32::MAX).map(Gid::from_raw)
}

fn add(config: &mut Value, root: &str) -> Result<()> {
    let program = super::command_line(&["hook", "oci", "poststop", "--root", root])?;
    let hook = json!({ "path": program[0], "args": program, "timeout": bundle::HOOK_TIMEOUT });
    let object = config.as_object_mut().ok_or_else(bundle::malformed)?;
    object
        .entry("root")
        .or_insert_with(|| json!({}))
        .as_object_mut()
        .ok_or_else(bundle::malformed)?
        .insert("path".into(), json!(root));
    let hooks = object
        .entry("hooks")
        .or_insert_with(|| json!({}))
        .as_object_mut()
        .ok_or_else(bundle::malformed)?;
    let poststop = hooks
        .entry("poststop")
        .or_insert_with(|| json!([]))
        .as_array_mut()
        .ok_or_else(bundle::malformed)?;
    // A bundle may run again under another id.
    let is_ours = |hook: &Value| {
        hook.get("path") == Some(&json!(program[0]))
            && hook.pointer("/args/3") == Some(&json!("poststop"))
    };
    poststop.retain(|hook| !is_ours(hook));
    poststop.push(hook);
    Ok(())
}
