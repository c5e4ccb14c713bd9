//! Changes a container's configuration into that of its clone: its names, the paths that `create`
//! wrote, and hardware addresses. Everything else stays, also where it names files of the original.

use std::path::Path;

use serde_json::{Value, json};

use super::clone::Request;
use super::create::{CONTAINER, text};
use super::error::{Error, Result};
use super::lxc::{fstab_word, hook_line};
use super::record::{ContainerRecord, Runtime};
use super::volumes::VolumeRecord;
use super::{bundle, lxc_defaults};

/// The hardware addresses that LXC gives to containers.
const ADDRESS: &str = "00:16:3e:xx:xx:xx";

/// What is different in the clone.
struct Changes<'a> {
    name: &'a str,
    hostname: &'a str,
    root: String,
    /// Those whose places in the store have changed.
    volumes: Vec<(&'a VolumeRecord, String)>,
    /// LXC's hook.
    hook: String,
}

/// The configuration of the clone with this record, whose directory in the store is `dir`, from the
/// original's.
///
/// # Errors
/// [`Error::Document`], [`Error::Unfit`].
pub(super) fn rewritten(
    config: &[u8],
    record: &ContainerRecord,
    dir: &Path,
    request: &Request<'_>,
) -> Result<String> {
    let plain = |path: &Path| {
        let text = text(path)?;
        match text.contains(char::is_control) {
            true => Err(Error::unfit(format!("no configuration can name {text:?}"))),
            false => Ok(text),
        }
    };
    let hostname = request.hostname.unwrap_or(request.name);
    if hostname.is_empty() || hostname.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(Error::unfit(format!("{hostname:?} is not a host name")));
    }
    let volumes = record.volumes.iter().filter(|volume| volume.is_in_store());
    let changes = Changes {
        name: request.name,
        hostname,
        root: plain(&record.runtime.root())?,
        volumes: volumes
            .map(|volume| Ok((volume, plain(&volume.source)?)))
            .collect::<Result<_>>()?,
        hook: hook_line(&super::command_line(&["hook", "lxc", &plain(dir)?])?),
    };
    match record.runtime {
        Runtime::Bundle { .. } => {
            let config = serde_json::from_slice(config);
            in_bundle(config.map_err(Error::document("config.json"))?, &changes)
        }
        Runtime::Lxc { .. } => {
            let text = str::from_utf8(config)
                .map_err(|_| Error::unfit("the container's configuration is not UTF-8"))?;
            in_lxc(text, &changes)
        }
    }
}

fn in_bundle(mut config: Value, changes: &Changes<'_>) -> Result<String> {
    let object = config.as_object_mut().ok_or_else(bundle::malformed)?;
    let root = object.get_mut("root").and_then(Value::as_object_mut);
    let root = root.ok_or_else(bundle::malformed)?;
    root.insert("path".to_owned(), json!(changes.root));
    object.insert("hostname".to_owned(), json!(changes.hostname));
    if let Some(annotations) = object.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.insert(CONTAINER.to_owned(), json!(changes.name));
    }
    let mounts = object.get_mut("mounts").and_then(Value::as_array_mut);
    for mount in mounts
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
    {
        let destination = mount.get("destination").and_then(Value::as_str);
        let mut volumes = changes.volumes.iter();
        let volume = volumes.find(|(volume, _)| destination == Some(&volume.destination));
        if let Some((_, source)) = volume {
            mount.insert("source".to_owned(), json!(source));
        }
    }
    let text = serde_json::to_string_pretty(&config).map_err(Error::document("config.json"))?;
    Ok(text + "\n")
}

fn in_lxc(text: &str, changes: &Changes<'_>) -> Result<String> {
    let mut out = String::new();
    for line in text.lines() {
        let (key, value) = match line.split_once('=') {
            Some((key, value)) if !key.trim_start().starts_with('#') => (key.trim(), value.trim()),
            _ => ("", ""),
        };
        let changed = match key {
            "lxc.uts.name" => Some(changes.hostname.to_owned()),
            "lxc.rootfs.path" => Some(format!("dir:{}", changes.root)),
            "lxc.hook.pre-start" | "lxc.hook.post-stop" if value.contains(" hook lxc ") => {
                Some(changes.hook.clone())
            }
            "lxc.mount.entry" => mount_entry(value, changes),
            _ if key.ends_with(".hwaddr") => Some(lxc_defaults::address(ADDRESS)?),
            _ => None,
        };
        match changed {
            Some(value) => out.push_str(&format!("{key} = {value}")),
            None => out.push_str(line),
        }
        out.push('\n');
    }
    Ok(out)
}

/// The mount entry of a volume with its new source; `None` for another one.
fn mount_entry(value: &str, changes: &Changes<'_>) -> Option<String> {
    let (_, rest) = value.split_once(char::is_whitespace)?;
    let target = rest.split_whitespace().next()?;
    let is_of =
        |volume: &VolumeRecord| target == fstab_word(volume.destination.trim_start_matches('/'));
    let (_, source) = changes.volumes.iter().find(|(volume, _)| is_of(volume))?;
    Some(format!("{} {}", fstab_word(source), rest.trim_start()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn volume() -> VolumeRecord {
        VolumeRecord {
            source: "/s/c/volumes/a b".into(),
            name: None,
            own: true,
            destination: "/a b".to_owned(),
            read_only: false,
        }
    }

    fn changes(volume: &VolumeRecord) -> Changes<'_> {
        Changes {
            name: "c",
            hostname: "h",
            root: "/l/c/rootfs".to_owned(),
            volumes: vec![(volume, volume.source.to_str().unwrap().to_owned())],
            hook: "/bin/lxcri-fs hook lxc /s/c".to_owned(),
        }
    }

    #[test]
    fn lxc_gets_names_paths_and_an_address_of_its_own() {
        let text = "# lxc.uts.name = a\n\
                    lxc.uts.name = a\n\
                    lxc.rootfs.path=dir:/l/a/rootfs\n\
                    lxc.hook.pre-start = /bin/lxcri-fs hook lxc /s/a\n\
                    lxc.hook.pre-start = /my/own /s/a\n\
                    lxc.mount.entry = /s/a/volumes/a\\040b a\\040b none rbind,create=dir 0 0\n\
                    lxc.mount.entry = /l/a/resolv.conf etc/resolv.conf none bind 0 0\n\
                    lxc.environment = X=a=/l/a\n\
                    lxc.net.0.hwaddr = 00:16:3e:01:02:03\n";
        let volume = volume();
        let new = in_lxc(text, &changes(&volume)).unwrap();
        let lines: Vec<&str> = new.lines().collect();
        assert_eq!(
            lines[..8],
            [
                "# lxc.uts.name = a",
                "lxc.uts.name = h",
                "lxc.rootfs.path = dir:/l/c/rootfs",
                "lxc.hook.pre-start = /bin/lxcri-fs hook lxc /s/c",
                "lxc.hook.pre-start = /my/own /s/a",
                "lxc.mount.entry = /s/c/volumes/a\\040b a\\040b none rbind,create=dir 0 0",
                "lxc.mount.entry = /l/a/resolv.conf etc/resolv.conf none bind 0 0",
                "lxc.environment = X=a=/l/a",
            ]
        );
        assert!(lines[8].starts_with("lxc.net.0.hwaddr = 00:16:3e:"));
        assert_ne!(lines[8], "lxc.net.0.hwaddr = 00:16:3e:01:02:03");
    }

    #[test]
    fn a_bundle_gets_names_and_paths_of_its_own() {
        let old = json!({
            "hostname": "a",
            "root": { "path": "rootfs", "readonly": true },
            "process": { "args": ["sh", "-c", "echo /b/a"] },
            "annotations": { CONTAINER: "a", "x": "/b/a" },
            "mounts": [
                { "destination": "/a b", "source": "/s/a/volumes/a b", "options": ["rbind"] },
                { "destination": "/b/a", "source": "/b/a data" },
            ],
        });
        let volume = volume();
        let new = in_bundle(old, &changes(&volume)).unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(&new).unwrap(),
            json!({
                "hostname": "h",
                "root": { "path": "/l/c/rootfs", "readonly": true },
                "process": { "args": ["sh", "-c", "echo /b/a"] },
                "annotations": { CONTAINER: "c", "x": "/b/a" },
                "mounts": [
                    { "destination": "/a b", "source": "/s/c/volumes/a b", "options": ["rbind"] },
                    { "destination": "/b/a", "source": "/b/a data" },
                ],
            })
        );
    }
}
