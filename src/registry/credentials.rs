//! Credentials: those that `podman login`, `skopeo login` and `docker login` have saved, as
//! containers-auth.json(5) describes.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::OFlags;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use super::error::{Error, Result, harmless};
use crate::error::Io;
use crate::error::chain;

/// Longest file, and longest answer of a helper, bytes.
const MAX_FILE: u64 = 1 << 20;
/// The user name of an identity token, where there are only user names and passwords.
const TOKEN_USER: &str = "<token>";
const HUB: &str = "docker.io";
/// Docker's name for its registry in files of credentials.
const HUB_SERVER: &str = "https://index.docker.io/v1/";

/// Credentials.
#[derive(Clone)]
pub(super) enum Credential {
    /// A name and a password.
    Basic {
        /// The name.
        user: String,
        /// The password.
        password: Zeroizing<String>,
    },
    /// A refresh token of OAuth 2.
    Identity(Zeroizing<String>),
}

/// A file with credentials.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    #[serde(deserialize_with = "each_or_null")]
    auths: BTreeMap<String, AuthEntry>,
    #[serde(deserialize_with = "each_or_null")]
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AuthEntry {
    #[serde(deserialize_with = "or_null")]
    auth: Zeroizing<String>,
    #[serde(deserialize_with = "or_null")]
    identitytoken: Zeroizing<String>,
    /// Name and password, where there is no `auth`.
    #[serde(deserialize_with = "or_null")]
    username: String,
    #[serde(deserialize_with = "or_null")]
    password: Zeroizing<String>,
}

/// Null as Go writes and reads it: the empty value.
fn or_null<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// As [`or_null`], also of the values of a map.
fn each_or_null<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, T>, D::Error> {
    let map: BTreeMap<String, Option<T>> = or_null(deserializer)?;
    let or_empty = |(key, value): (String, Option<T>)| (key, value.unwrap_or_default());
    Ok(map.into_iter().map(or_empty).collect())
}

/// The credential for a repository of a registry, if there is one. Docker Hub is `docker.io`. Logs
/// what is wrong with a file or a helper: most images can be fetched without credentials.
pub(super) fn find(registry: &str, repository: &str) -> Option<Credential> {
    for (path, given) in files() {
        let found = read(&path, given).and_then(|file| match file {
            Some(file) => file.find(registry, repository, &path),
            None => Ok(None),
        });
        match found {
            Ok(Some(found)) => {
                tracing::debug!(registry, file = %path.display(), "credentials");
                return Some(found);
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(
                "going on without credentials of {}: {}",
                path.display(),
                chain(&error)
            ),
        }
    }
    None
}

/// The files that may contain credentials, and whether the user has named them.
fn files() -> Vec<(PathBuf, bool)> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    if let Some(path) = variable("REGISTRY_AUTH_FILE") {
        return vec![(path, true)];
    }
    let home = variable("HOME");
    let runtime = variable("XDG_RUNTIME_DIR");
    let uid = rustix::process::getuid();
    let containers = runtime.map_or_else(
        || format!("/run/containers/{uid}").into(),
        |dir| dir.join("containers"),
    );
    let config = variable("XDG_CONFIG_HOME").or_else(|| Some(home.as_ref()?.join(".config")));
    let docker = variable("DOCKER_CONFIG").or_else(|| Some(home?.join(".docker")));
    let mut files = vec![containers.join("auth.json")];
    files.extend(config.map(|dir| dir.join("containers/auth.json")));
    files.extend(docker.map(|dir| dir.join("config.json")));
    files.into_iter().map(|path| (path, false)).collect()
}

/// Reads a file, if there is one. What the user has named may be a pipe; a home may be another
/// user's, and a pipe in it would stop this process.
fn read(path: &Path, given: bool) -> Result<Option<File>> {
    let reading = || Io::at("reading credentials from", path);
    let flags = if given {
        OFlags::empty()
    } else {
        OFlags::NONBLOCK
    };
    let opened = std::fs::File::options()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path);
    let file = match opened {
        // After su, the home may be another user's.
        Err(e)
            if matches!(
                e.kind(),
                ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::PermissionDenied
            ) =>
        {
            return Ok(None);
        }
        opened => opened.map_err(reading())?,
    };
    if !given && !file.metadata().map_err(reading())?.is_file() {
        return Err(wrong(path.display(), "it is not a regular file"));
    }
    let mut text = Zeroizing::new(Vec::new());
    file.take(MAX_FILE)
        .read_to_end(&mut text)
        .map_err(reading())?;
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|e| wrong(path.display(), e))
}

fn wrong(from: impl ToString, reason: impl ToString) -> Error {
    Error::Credentials {
        from: from.to_string(),
        reason: reason.to_string(),
    }
}

impl File {
    fn find(&self, registry: &str, repository: &str, path: &Path) -> Result<Option<Credential>> {
        if let Some(helper) = self
            .cred_helpers
            .get(registry)
            .or_else(|| self.cred_helpers.get(server(registry)))
            .filter(|helper| !helper.is_empty())
        {
            return ask(helper, server(registry));
        }
        if let Some((key, entry)) = self.longest(registry, repository) {
            return entry
                .credential()
                .map(Some)
                .map_err(|reason| wrong(format!("{key} in {}", path.display()), reason));
        }
        match self.creds_store.as_deref() {
            None | Some("") => Ok(None),
            Some(helper) => ask(helper, server(registry)),
        }
    }

    /// The entry with the longest key that the repository is under.
    fn longest(&self, registry: &str, repository: &str) -> Option<(&str, &AuthEntry)> {
        let whole = format!("{registry}/{repository}");
        let is_over = |key: &str| {
            whole
                .strip_prefix(key)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let entries = self.auths.iter().filter(|(_, entry)| !entry.is_empty());
        let over = entries.filter(|(key, _)| is_over(&normalized(key)));
        over.max_by_key(|(key, _)| normalized(key).len())
            .map(|(key, entry)| (key.as_str(), entry))
    }
}

/// A key as `HOST[:PORT][/REPOSITORY]`. Docker has written URLs.
fn normalized(key: &str) -> String {
    let bare = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"));
    // Of a URL only the host says something.
    let key = bare.map_or(key, |rest| rest.split('/').next().unwrap_or(rest));
    let (host, rest) = key.split_at(key.find('/').unwrap_or(key.len()));
    let host = if matches!(host, "index.docker.io" | "registry-1.docker.io") {
        HUB
    } else {
        host
    };
    format!("{host}{rest}")
}

/// A registry's name for a helper.
fn server(registry: &str) -> &str {
    if registry == HUB {
        HUB_SERVER
    } else {
        registry
    }
}

impl AuthEntry {
    fn is_empty(&self) -> bool {
        self.auth.is_empty() && self.identitytoken.is_empty() && self.username.is_empty()
    }

    fn credential(&self) -> Result<Credential, &'static str> {
        if !self.identitytoken.is_empty() {
            return Ok(Credential::Identity(self.identitytoken.clone()));
        }
        if self.auth.is_empty() {
            return Ok(Credential::Basic {
                user: self.username.clone(),
                password: self.password.clone(),
            });
        }
        let decoded = STANDARD
            .decode(self.auth.trim().as_bytes())
            .map(Zeroizing::new)
            .map_err(|_| "it is not base64")?;
        let text = std::str::from_utf8(&decoded).map_err(|_| "it is not UTF-8")?;
        let (user, password) = text.split_once(':').ok_or("it is not USER:PASSWORD")?;
        // Docker pads with zeros.
        Ok(Credential::Basic {
            user: user.to_owned(),
            password: Zeroizing::new(password.trim_matches('\0').to_owned()),
        })
    }
}

/// Asks `docker-credential-NAME`.
fn ask(name: &str, server: &str) -> Result<Option<Credential>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: Zeroizing<String>,
    }
    let program = format!("docker-credential-{name}");
    if !name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    {
        return Err(wrong(&program, "not a valid name of a credential helper"));
    }
    let failed = |e: std::io::Error| wrong(&program, e);
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read it may know it anyway.
        let _ = writeln!(stdin, "{server}");
    }
    let mut output = Zeroizing::new(Vec::new());
    let read = child
        .stdout
        .take()
        .map(|stdout| stdout.take(MAX_FILE).read_to_end(&mut output));
    let status = child.wait().map_err(failed)?;
    read.transpose().map_err(failed)?;
    if !status.success() {
        let message = String::from_utf8_lossy(&output);
        // The protocol knows no other way to say this.
        if message.contains("credentials not found") {
            return Ok(None);
        }
        return Err(wrong(&program, format!("{status}: {}", harmless(&message))));
    }
    let answer: Answer = serde_json::from_slice(&output).map_err(|e| wrong(&program, e))?;
    Ok(Some(match answer.username.as_str() {
        TOKEN_USER => Credential::Identity(answer.secret),
        _ => Credential::Basic {
            user: answer.username,
            password: answer.secret,
        },
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn user(file: &File, registry: &str, repository: &str) -> Option<String> {
        match file
            .find(registry, repository, Path::new("auth.json"))
            .unwrap()
        {
            Some(Credential::Basic { user, password }) => {
                assert_eq!(&*password, "pass:word");
                Some(user)
            }
            Some(Credential::Identity(token)) => Some(format!("token {}", &*token)),
            None => None,
        }
    }

    #[test]
    fn the_longest_key_counts() {
        let auth = |user: &str| {
            format!(
                "{{\"auth\": \"{}\"}}",
                STANDARD.encode(format!("{user}:pass:word"))
            )
        };
        let text = format!(
            r#"{{ "auths": {{ "r.example": {}, "r.example/team": {},
                "r.example/team/app": {}, "https://index.docker.io/v1/": {},
               "https://old.example/v2/": {}, "empty.example": {{}},
                "named.example": {{ "username": "name", "password": "pass:word", "auth": null }},
                "r.example:5000": {{ "identitytoken": "t" }} }}, "credHelpers": null,
                "credsStore": "" }}"#,
            auth("host"),
            auth("team"),
            auth("app"),
            auth("hub"),
            auth("old"),
        );
        let file: File = serde_json::from_str(&text).unwrap();
        for (registry, repository, expected) in [
            ("r.example", "other", Some("host")),
            ("r.example", "teams", Some("host")),
            ("r.example", "team/x", Some("team")),
            ("r.example", "team/app", Some("app")),
            ("r.example", "team/app/x", Some("app")),
            ("r.example:5000", "team/app", Some("token t")),
            ("docker.io", "library/nginx", Some("hub")),
            ("old.example", "a", Some("old")),
            ("empty.example", "a", None),
            ("named.example", "a", Some("name")),
            ("example", "a", None),
        ] {
            assert_eq!(
                user(&file, registry, repository).as_deref(),
                expected,
                "{registry}/{repository}"
            );
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for bad in ["!", "dXNlcg==", "/w=="] {
            let entry = AuthEntry {
                auth: Zeroizing::new(bad.to_owned()),
                ..AuthEntry::default()
            };
            assert!(entry.credential().is_err(), "{bad}");
        }
        assert!(ask("../../bin/sh", "x").is_err());
    }
}
