//! The image's own configuration for a container that an engine configured without an image: user,
//! variables, working directory, and command, as podman would have applied them.

use serde_json::{Value, json};

use super::bundle;
use super::error::Result;
use super::image::ContainerImage;
use super::process::{DEFAULT_PATH, Overrides, Process};
use super::user::User;
use crate::fs::Rootfs;

/// The one word of a command that stands for the image's own, since engines demand a command for a
/// container without an image.
const OWN_COMMAND: &str = "-";
/// What engines set without being asked to, and an image may set otherwise. HOME follows the user.
const UNASKED: [(&str, &str); 4] = [
    ("PATH", DEFAULT_PATH),
    ("TERM", "xterm"),
    ("HOME", "/"),
    ("HOME", "/root"),
];

/// Changes the process of a configuration: what has the value that engines give it without being
/// asked becomes the image's, and the words of the command follow the image's entrypoint. The
/// working directory does so with `cwd` only.
///
/// # Errors
/// [`Error::Unfit`](super::Error::Unfit) if the image's configuration cannot be applied, such as
/// for a user that it does not know; the errors of reading the image.
pub(super) fn apply(config: &mut Value, rootfs: &Rootfs, cwd: bool) -> Result<()> {
    let image = ContainerImage::open(rootfs)?;
    let Some(process) = config.get_mut("process") else {
        return Ok(());
    };
    let given = process.as_object_mut().ok_or_else(bundle::malformed)?;
    let id = |name| {
        let id = given.get("user").and_then(|user| user.get(name));
        id.and_then(Value::as_u64).unwrap_or(0)
    };
    let (uid, gid) = (id("uid"), id("gid"));
    let is_asked_user = (uid, gid) != (0, 0);
    let given_cwd = given.get("cwd").and_then(Value::as_str).unwrap_or("/");
    let given_env = words(given.get("env"));
    let command = words(given.get("args"));
    let own = Process::of(
        &image,
        &Overrides {
            command: if command == [OWN_COMMAND] {
                Vec::new()
            } else {
                command
            },
            env: given_env
                .iter()
                .filter(|word| is_asked(word))
                .cloned()
                .collect(),
            user: is_asked_user.then(|| format!("{uid}:{gid}")),
            cwd: (!cwd || given_cwd != "/").then(|| given_cwd.to_owned()),
            ..Overrides::default()
        },
    )?;
    given.insert("args".into(), json!(own.args));
    given.insert("env".into(), json!(variables(&own, given_env)));
    given.insert("cwd".into(), json!(own.cwd));
    if is_asked_user {
        return Ok(());
    }
    let User {
        uid, gid, groups, ..
    } = own.user;
    let user = given.entry("user").or_insert_with(|| json!({}));
    let user = user.as_object_mut().ok_or_else(bundle::malformed)?;
    user.insert("uid".into(), json!(uid));
    user.insert("gid".into(), json!(gid));
    // As after a login, and in podman, the group itself is among them.
    let groups: Vec<u32> = [gid].into_iter().chain(groups).collect();
    user.insert("additionalGids".into(), json!(groups));
    // As in podman, only root has capabilities beyond the bounding set.
    if uid != 0
        && let Some(sets) = given.get_mut("capabilities").and_then(Value::as_object_mut)
    {
        for set in ["effective", "permitted", "inheritable", "ambient"] {
            sets.remove(set);
        }
    }
    Ok(())
}

fn words(value: Option<&Value>) -> Vec<String> {
    let list = value.and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Whether somebody asked for a variable, as far as its value tells.
fn is_asked(word: &str) -> bool {
    let pair = word.split_once('=').unwrap_or((word, ""));
    !UNASKED.contains(&pair)
}

/// The variables of the process. A user whom the image does not know keeps the engine's HOME.
fn variables(process: &Process, given: Vec<String>) -> Vec<String> {
    let pairs = process.env.iter();
    let mut words: Vec<String> = pairs
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    if process.variable("HOME").is_none() {
        words.extend(given.into_iter().find(|word| word.starts_with("HOME=")));
    }
    words
}
