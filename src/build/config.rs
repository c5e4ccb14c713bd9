//! The image configuration: kept unchanged, or adapted to layers that were added.

use serde_json::{Map, Value, json};

use super::config_change::ConfigChange;
use super::digest::Digest;
use super::error::{Error, Result};
use super::sources::Platform;

/// A layer, for the configuration.
pub(super) struct LayerFact<'a> {
    /// Its diff_id.
    pub diff_id: Digest,
    /// Comment for its entry in the history.
    pub created_by: &'a [u8],
}

/// The configuration of an image with these layers. `found` is the source's, which is returned
/// unchanged if it names the same layers and nothing is to be changed.
///
/// # Errors
/// [`Error::Document`] if `found` is not a JSON object.
pub(super) fn config(
    found: &[u8],
    layers: &[LayerFact<'_>],
    platform: &Platform,
    changes: &[ConfigChange],
) -> Result<Vec<u8>> {
    let name = "image configuration";
    let mut document: Map<String, Value> = if found.is_empty() {
        let mut fresh = Map::new();
        fresh.insert("architecture".into(), json!(platform.architecture));
        fresh.insert("os".into(), json!(platform.os));
        if let Some(variant) = &platform.variant {
            fresh.insert("variant".into(), json!(variant));
        }
        fresh.insert("config".into(), json!({}));
        fresh
    } else {
        serde_json::from_slice(found).map_err(|e| Error::document(name, e))?
    };
    let diff_ids: Vec<Value> = layers
        .iter()
        .map(|l| json!(l.diff_id.to_string()))
        .collect();
    let known = document
        .get("rootfs")
        .and_then(|r| r.get("diff_ids"))
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    if !found.is_empty() && known == diff_ids && changes.is_empty() {
        return Ok(found.to_vec());
    }
    if !diff_ids.starts_with(&known) {
        return Err(Error::document(
            name,
            "its diff_ids differ from those of the layers",
        ));
    }
    let mut history = document
        .get("history")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    // The same sources make the same image, so this is no clock's; some tools need a value.
    let created = document
        .get("created")
        .filter(|created| created.is_string())
        .cloned()
        .unwrap_or_else(|| json!("1970-01-01T00:00:00Z"));
    // Tools take the entries for those of the layers, one by one.
    let is_layer = |entry: &&Value| entry.get("empty_layer") != Some(&json!(true));
    let told = history.iter().filter(is_layer).count().min(known.len());
    for layer in &layers[told..] {
        history.push(json!({
            "created": created,
            "created_by": String::from_utf8_lossy(layer.created_by),
        }));
    }
    document.insert("history".into(), Value::Array(history));
    document.insert(
        "rootfs".into(),
        json!({ "type": "layers", "diff_ids": diff_ids }),
    );
    for change in changes {
        change.apply(&mut document);
    }
    serde_json::to_vec(&document).map_err(|e| Error::document(name, e))
}
