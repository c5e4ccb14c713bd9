//! Credentials: those that `login`, `podman login`, `skopeo login` and `docker login` have saved,
//! as containers-auth.json(5) describes.

mod file;
mod helper;
mod save;

use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use super::error::{Error, Result};
use crate::error::{Io, chain};
use file::File;
pub(super) use file::normalized;
pub(super) use save::{place, remove, remove_all, save};

/// Longest file, and longest answer of a helper, bytes.
const MAX_FILE: u64 = 1 << 20;
/// The user name of an identity token, where there are only user names and passwords.
const TOKEN_USER: &str = "<token>";
/// Environment variable with the path of the only file.
const FILE_VARIABLE: &str = "REGISTRY_AUTH_FILE";
/// Environment variable with the user's directory that lasts as long as their session.
const RUNTIME_VARIABLE: &str = "XDG_RUNTIME_DIR";
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

/// The credential for a repository of a registry, if there is one. Docker Hub is `docker.io`. Logs
/// what is wrong with a file or a helper: most images can be fetched without credentials.
pub(super) fn find(registry: &str, repository: &str) -> Option<Credential> {
    for (path, given) in files() {
        match find_in(&path, given, registry, repository) {
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

/// The credential that a file has for a repository of a registry.
fn find_in(
    path: &Path,
    given: bool,
    registry: &str,
    repository: &str,
) -> Result<Option<Credential>> {
    let Some(text) = read(path, given)? else {
        return Ok(None);
    };
    File::parse(&text, path)?.find(registry, repository, path)
}

/// The file, among those that are read, that has a credential for a registry.
pub(super) fn source(registry: &str, repository: &str) -> Option<PathBuf> {
    let has = |(path, given): &(PathBuf, bool)| {
        matches!(find_in(path, *given, registry, repository), Ok(Some(_)))
    };
    files().into_iter().find(has).map(|(path, _)| path)
}

/// The files that may contain credentials, and whether the user has named them.
fn files() -> Vec<(PathBuf, bool)> {
    if let Some(path) = variable(FILE_VARIABLE) {
        return vec![(path, true)];
    }
    let home = variable("HOME");
    let config = variable("XDG_CONFIG_HOME").or_else(|| Some(home.as_ref()?.join(".config")));
    let docker = variable("DOCKER_CONFIG").or_else(|| Some(home?.join(".docker")));
    let mut files = vec![primary()];
    files.extend(config.map(|dir| dir.join("containers/auth.json")));
    files.extend(docker.map(|dir| dir.join("config.json")));
    files.into_iter().map(|path| (path, false)).collect()
}

/// The file that logins are saved in, unless the user names another.
fn primary() -> PathBuf {
    let uid = rustix::process::getuid();
    let directory = variable(RUNTIME_VARIABLE).map_or_else(
        || format!("/run/containers/{uid}").into(),
        |dir| dir.join("containers"),
    );
    directory.join("auth.json")
}

/// The path in an environment variable, which counts as not set if it is empty.
fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|v| !v.is_empty())
        .map(PathBuf::from)
}

/// Reads a file, if there is one. What the user has named may be a pipe; a home may be another
/// user's, and a pipe in it would stop this process.
fn read(path: &Path, given: bool) -> Result<Option<Zeroizing<Vec<u8>>>> {
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
    Ok(Some(text))
}

/// A registry's name for a helper.
fn server(registry: &str) -> &str {
    if registry == HUB {
        HUB_SERVER
    } else {
        registry
    }
}

fn wrong(from: impl ToString, reason: impl ToString) -> Error {
    Error::Credentials {
        from: from.to_string(),
        reason: reason.to_string(),
    }
}
