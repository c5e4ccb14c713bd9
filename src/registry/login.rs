//! Logs in to registries, and out of them: checks credentials, and saves or removes them.

use std::path::Path;

use reqwest::StatusCode;
use zeroize::Zeroizing;

use super::config::Registries;
use super::credentials::{self, Credential};
use super::endpoint::Endpoint;
use super::error::{Error, Result};
use super::session::{expect, runtime};
use crate::reference;

/// What credentials are for: a registry, or repositories of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    host: String,
    /// Empty for the whole registry.
    repository: String,
}

impl Account {
    /// Parses `HOST[:PORT][/REPOSITORY]`; of a URL, only the host counts.
    ///
    /// # Errors
    /// [`Error::Registry`].
    pub fn parse(text: &str) -> Result<Self> {
        let key = credentials::normalized(text.trim_end_matches('/'));
        let (host, repository) = key.split_once('/').unwrap_or((&key, ""));
        let image = format!(
            "{host}/{}",
            if repository.is_empty() {
                "x"
            } else {
                repository
            }
        );
        let wrong = |reason: &str| Error::Registry {
            text: text.to_owned(),
            reason: reason.to_owned(),
        };
        let parsed = reference::parse(&image).map_err(wrong)?;
        if parsed.registry() != host || parsed.digest().is_some() || repository.contains(':') {
            return Err(wrong("it is not HOST[:PORT][/REPOSITORY]"));
        }
        Ok(Self {
            host: host.to_owned(),
            repository: repository.to_owned(),
        })
    }

    /// Its key in files of credentials.
    pub fn key(&self) -> String {
        if self.repository.is_empty() {
            self.host.clone()
        } else {
            format!("{}/{}", self.host, self.repository)
        }
    }

    /// Asks the registry whether it accepts name and password, and saves them in `file`, or else
    /// where podman saves them.
    ///
    /// # Errors
    /// [`Error::Login`] if it does not; [`Error::UserName`]; [`Error`]. Nothing is saved then.
    pub fn log_in(
        &self,
        user: &str,
        password: Zeroizing<String>,
        registries: &Registries,
        file: Option<&Path>,
    ) -> Result<()> {
        if user.is_empty() || user.contains([':', '\0']) {
            return Err(Error::UserName(user.to_owned()));
        }
        self.check(user, &password, registries)?;
        credentials::save(&credentials::place(file), &self.key(), user, &password)
    }

    fn check(
        &self,
        user: &str,
        password: &Zeroizing<String>,
        registries: &Registries,
    ) -> Result<()> {
        let place = registries.as_named(&self.host, &self.repository);
        let credential = Credential::Basic {
            user: user.to_owned(),
            password: password.clone(),
        };
        let endpoint = Endpoint::new(place, Vec::new())?.with_credential(credential);
        let asked = async { expect(endpoint.ping().await?, &[StatusCode::OK]).await };
        match runtime()?.block_on(asked) {
            Err(Error::Denied { reason, .. }) => Err(Error::Login {
                registry: self.key(),
                reason,
            }),
            other => other.map(drop),
        }
    }

    /// Removes the credentials from `file`, or else from where podman saves them.
    ///
    /// # Errors
    /// [`Error::NotLoggedIn`] if there are none; [`Error`].
    pub fn log_out(&self, file: Option<&Path>) -> Result<()> {
        let place = credentials::place(file);
        if credentials::remove(&place, &self.key())? {
            return Ok(());
        }
        let elsewhere = || credentials::source(&self.host, &self.repository);
        Err(Error::NotLoggedIn {
            registry: self.key(),
            other: if file.is_some() { None } else { elsewhere() },
            file: place,
        })
    }
}

/// Removes the credentials of all registries from `file`, or else from where podman saves them.
///
/// # Errors
/// [`Error`].
pub fn log_out_of_all(file: Option<&Path>) -> Result<()> {
    credentials::remove_all(&credentials::place(file))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_registries_and_repositories_of_them() {
        for (text, key) in [
            ("docker.io", "docker.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("r.example:5000/", "r.example:5000"),
            ("localhost", "localhost"),
            ("http://r.example/v2/", "r.example"),
            ("r.example/team/app", "r.example/team/app"),
        ] {
            assert_eq!(Account::parse(text).unwrap().key(), key);
        }
        for text in [
            "",
            "nginx",
            "r.example/app:tag",
            "r.example/App",
            "-:1",
            "a b.example",
        ] {
            assert!(Account::parse(text).is_err(), "{text}");
        }
    }
}
