//! The format of files with credentials, as containers-auth.json(5) describes it.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use super::{Credential, HUB, helper, server, wrong};
use crate::registry::error::Result;

/// A file with credentials.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct File {
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

impl File {
    /// Parses the text of the file at `path`; an empty one has no credentials.
    pub(super) fn parse(text: &[u8], path: &Path) -> Result<Self> {
        if text.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_slice(text).map_err(|e| wrong(path.display(), e))
    }

    /// The credential for a repository of a registry; messages name the file `path`.
    pub(super) fn find(
        &self,
        registry: &str,
        repository: &str,
        path: &Path,
    ) -> Result<Option<Credential>> {
        if let Some(helper) = self.helper(registry) {
            return helper::get(helper, server(registry));
        }
        if let Some((key, entry)) = self.longest(registry, repository) {
            return entry
                .credential()
                .map(Some)
                .map_err(|reason| wrong(format!("{key} in {}", path.display()), reason));
        }
        match self.creds_store.as_deref() {
            None | Some("") => Ok(None),
            Some(helper) => helper::get(helper, server(registry)),
        }
    }

    /// The helper that has the credentials for a registry.
    pub(super) fn helper(&self, registry: &str) -> Option<&str> {
        let helper = self
            .cred_helpers
            .get(registry)
            .or_else(|| self.cred_helpers.get(server(registry)));
        helper.map(String::as_str).filter(|name| !name.is_empty())
    }

    /// All registries that have helpers, and the helpers.
    pub(super) fn helpers(&self) -> impl Iterator<Item = (&str, &str)> {
        let helpers = self
            .cred_helpers
            .iter()
            .filter(|(_, name)| !name.is_empty());
        helpers.map(|(registry, name)| (registry.as_str(), name.as_str()))
    }

    /// The entry with the longest key that the repository is under. Of two keys for the same, one
    /// of Docker's URLs comes last: podman and `login` write the other.
    fn longest(&self, registry: &str, repository: &str) -> Option<(&str, &AuthEntry)> {
        let whole = format!("{registry}/{repository}");
        let is_over = |key: &str| {
            whole
                .strip_prefix(key)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let entries = self.auths.iter().filter(|(_, entry)| !entry.is_empty());
        let over = entries.filter(|(key, _)| is_over(&normalized(key)));
        over.max_by_key(|(key, _)| (normalized(key).len(), normalized(key) == **key))
            .map(|(key, entry)| (key.as_str(), entry))
    }
}

/// A key as `HOST[:PORT][/REPOSITORY]`. Docker has written URLs.
pub(in crate::registry) fn normalized(key: &str) -> String {
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
        assert!(helper::get("../../bin/sh", "x").is_err());
    }
}
