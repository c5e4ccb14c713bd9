//! Additional certificates of registries, from `certs.d` as containers-certs.d(5) describes it.

use std::path::{Path, PathBuf};

use reqwest::{Certificate, ClientBuilder, Identity};
use zeroize::Zeroizing;

use super::error::{Error, Result};
use crate::error::Io;

/// Adds the CAs (`*.crt`) of `certs.d/HOST[:PORT]`, and the client's certificate (`*.cert` with its
/// `*.key`). The first directory that exists counts.
///
/// # Errors
/// [`Error::Certificate`] if a file is not a certificate, [`Error::Io`].
pub(super) fn add(mut builder: ClientBuilder, host: &str) -> Result<ClientBuilder> {
    let Some(dir) = directories()
        .into_iter()
        .map(|dir| dir.join(host))
        .find(|dir| dir.is_dir())
    else {
        return Ok(builder);
    };
    let mut paths = std::fs::read_dir(&dir)
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|e| e.path()))
                .collect::<std::io::Result<Vec<_>>>()
        })
        .map_err(Io::at("reading", &dir))?;
    paths.sort();
    for path in &paths {
        let wrong = |e: reqwest::Error| Error::Certificate {
            path: path.clone(),
            reason: crate::error::chain(&e),
        };
        match path.extension().and_then(|e| e.to_str()) {
            Some("crt") => {
                builder = builder
                    .tls_certs_merge(Certificate::from_pem_bundle(&read(path)?).map_err(wrong)?)
            }
            Some("cert") => {
                let mut pem = read(path)?;
                pem.push(b'\n');
                pem.extend_from_slice(&read(&path.with_extension("key"))?);
                builder = builder.identity(Identity::from_pem(&pem).map_err(wrong)?);
            }
            _ => {}
        }
    }
    Ok(builder)
}

fn directories() -> Vec<PathBuf> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    let config = variable("XDG_CONFIG_HOME").or_else(|| Some(variable("HOME")?.join(".config")));
    let mut directories: Vec<_> = config
        .map(|dir| dir.join("containers/certs.d"))
        .into_iter()
        .collect();
    directories.extend(["/etc/containers/certs.d", "/etc/docker/certs.d"].map(PathBuf::from));
    directories
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let bytes = std::fs::read(path).map_err(Io::at("reading", path))?;
    Ok(Zeroizing::new(bytes))
}
