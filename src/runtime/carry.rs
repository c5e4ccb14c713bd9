//! Carries what a user changed by hand in a container's configuration over to the one for another
//! image. `base` is what `create` wrote for the old image, `mine` what is there now, `theirs` what
//! `create` would write for the new image.

use serde_json::{Map, Value};

use super::error::{Error, Result};
use super::lxc::MARKER;
use super::record::Runtime;

/// Keys of a configuration whose lists are one value.
const WHOLE: [&str; 1] = ["args"];

/// The new configuration.
///
/// # Errors
/// [`Error::Document`], [`Error::Unfit`] if what is there now cannot be read.
pub(super) fn carried(runtime: &Runtime, base: &str, mine: &[u8], theirs: &str) -> Result<String> {
    match runtime {
        Runtime::Bundle { .. } => {
            let parsed = |text: &[u8]| -> Result<Value> {
                serde_json::from_slice(text).map_err(Error::document("config.json"))
            };
            let (base, mine) = (parsed(base.as_bytes())?, parsed(mine)?);
            let merged = merge(&base, mine, parsed(theirs.as_bytes())?, false);
            let text = serde_json::to_string_pretty(&merged);
            Ok(text.map_err(Error::document("config.json"))? + "\n")
        }
        Runtime::Lxc { .. } => {
            let mine = str::from_utf8(mine)
                .map_err(|_| Error::unfit("the container's configuration is not UTF-8"))?;
            Ok(lines(base, mine, theirs))
        }
    }
}

/// Merges JSON: objects by key, lists by element, everything else as a whole. What was changed on
/// both sides stays as it was changed by hand.
fn merge(base: &Value, mine: Value, theirs: Value, whole: bool) -> Value {
    match (base, mine, theirs) {
        (_, mine, theirs) if mine == *base || mine == theirs => theirs,
        (base, mine, theirs) if theirs == *base => mine,
        (Value::Object(base), Value::Object(mine), Value::Object(theirs)) => {
            Value::Object(keys(base, mine, theirs))
        }
        (Value::Array(base), Value::Array(mine), Value::Array(theirs)) if !whole => {
            let removed = |element: &Value| base.contains(element) && !mine.contains(element);
            let mut merged = theirs;
            merged.retain(|element| !removed(element));
            for element in &mine {
                if !base.contains(element) && !merged.contains(element) {
                    merged.push(element.clone());
                }
            }
            Value::Array(merged)
        }
        (_, mine, _) => mine,
    }
}

fn keys(
    base: &Map<String, Value>,
    mut mine: Map<String, Value>,
    theirs: Map<String, Value>,
) -> Map<String, Value> {
    let mut merged = Map::new();
    for (key, new) in theirs {
        match (base.get(&key), mine.remove(&key)) {
            (Some(old), Some(own)) => {
                let value = merge(old, own, new, WHOLE.contains(&key.as_str()));
                merged.insert(key, value);
            }
            // Removed by hand, unless the image changed it since.
            (Some(old), None) if *old == new => {}
            (None, Some(own)) => drop(merged.insert(key, own)),
            _ => drop(merged.insert(key, new)),
        }
    }
    // What only the old image had goes, what was added by hand stays.
    merged.extend(
        mine.into_iter()
            .filter(|(key, own)| base.get(key) != Some(own)),
    );
    merged
}

/// The key of a line of LXC's configuration; none of a comment.
fn key(line: &str) -> Option<&str> {
    let (key, _) = line.split_once('=')?;
    let key = key.trim();
    (!key.starts_with('#')).then_some(key)
}

/// Whether a line is one of `create`'s whatever its value: a path of this program, or an address
/// that was made up.
fn is_ours(line: &str) -> bool {
    match key(line) {
        Some("lxc.hook.pre-start" | "lxc.hook.post-stop") => line.contains(" hook lxc "),
        Some(key) => key.ends_with(".hwaddr"),
        None => line.starts_with("# Written by lxcri-fs"),
    }
}

/// LXC's configuration: what is below the marker, and lines above it that `create` did not write.
fn lines(base: &str, mine: &str, theirs: &str) -> String {
    let (above, below) = match mine.split_once(MARKER) {
        Some((above, below)) => (above, below.trim_start_matches('\n')),
        None => (mine, ""),
    };
    let written: Vec<&str> = base.lines().collect();
    let added = above
        .lines()
        .filter(|line| !line.trim().is_empty() && !written.contains(line) && !is_ours(line));
    let mut out = String::new();
    for line in theirs.lines() {
        // The container keeps its addresses.
        let address = key(line).filter(|key| key.ends_with(".hwaddr"));
        let kept = address.and_then(|name| above.lines().find(|line| key(line) == Some(name)));
        out.push_str(kept.unwrap_or(line));
        out.push('\n');
    }
    for line in added {
        out.push_str(line);
        out.push('\n');
    }
    out.push_str(below);
    if !out.ends_with('\n') {
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_changed_by_hand_in_a_bundle_stays() {
        let base = json!({
            "process": { "args": ["nginx", "-v"], "env": ["A=1", "V=1"], "cwd": "/" },
            "mounts": [{ "destination": "/proc" }],
            "linux": { "namespaces": [{ "type": "network" }, { "type": "pid" }] },
            "gone": 1,
        });
        let mine = json!({
            "process": { "args": ["nginx", "-x"], "env": ["A=1", "V=1", "MINE=1"], "cwd": "/" },
            "mounts": [{ "destination": "/proc" }, { "destination": "/mine" }],
            "linux": {
                "namespaces": [{ "type": "network", "path": "/run/n" }, { "type": "pid" }],
                "cgroupsPath": "/mine",
            },
            "gone": 1,
        });
        let theirs = json!({
            "process": { "args": ["nginx", "-n"], "env": ["A=1", "V=2"], "cwd": "/srv" },
            "mounts": [{ "destination": "/proc" }, { "destination": "/new" }],
            "linux": { "namespaces": [{ "type": "network" }, { "type": "pid" }] },
        });
        let expected = json!({
            "process": { "args": ["nginx", "-x"], "env": ["A=1", "V=2", "MINE=1"], "cwd": "/srv" },
            "mounts": [
                { "destination": "/proc" }, { "destination": "/new" }, { "destination": "/mine" },
            ],
            "linux": {
                "namespaces": [{ "type": "network", "path": "/run/n" }, { "type": "pid" }],
                "cgroupsPath": "/mine",
            },
        });
        assert_eq!(merge(&base, mine, theirs, false), expected);
    }

    #[test]
    fn own_lines_for_lxc_stay_and_come_last() {
        let base = format!(
            "# Written by lxcri-fs create.\nlxc.uts.name = a\nlxc.environment = V=1\n\
             lxc.hook.pre-start = /old/lxcri-fs hook lxc /s\nlxc.net.0.hwaddr = 00:01\n{MARKER}\n"
        );
        let mine = format!(
            "# Written by lxcri-fs create.\nlxc.uts.name = a\nlxc.cgroup2.memory.max = 1G\n\
             lxc.environment = V=1\nlxc.hook.pre-start = /old/lxcri-fs hook lxc /s\n\
             lxc.net.0.hwaddr = 00:02\n{MARKER}\n\n# note\nlxc.start.auto = 1\n"
        );
        let theirs = format!(
            "# Written by lxcri-fs create.\nlxc.uts.name = a\nlxc.environment = V=2\n\
             lxc.hook.pre-start = /new/lxcri-fs hook lxc /s\nlxc.net.0.hwaddr = 00:01\n{MARKER}\n"
        );
        let expected = format!(
            "# Written by lxcri-fs create.\nlxc.uts.name = a\nlxc.environment = V=2\n\
             lxc.hook.pre-start = /new/lxcri-fs hook lxc /s\nlxc.net.0.hwaddr = 00:02\n{MARKER}\n\
             lxc.cgroup2.memory.max = 1G\n# note\nlxc.start.auto = 1\n"
        );
        assert_eq!(lines(&base, &mine, &theirs), expected);
        // A configuration of an earlier version has no marker.
        let old = mine.replace(MARKER, "");
        assert_eq!(
            lines(&base, &old, &theirs).lines().count(),
            expected.lines().count()
        );
    }
}
