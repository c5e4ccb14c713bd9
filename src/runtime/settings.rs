//! What a user asked `create` for, as far as another configuration of the same container needs it:
//! one for another image.

use std::path::PathBuf;

use oci_spec::runtime::LinuxSeccomp;
use serde::{Deserialize, Serialize};

use super::create::{Request, Target};
use super::error::{Error, Result};
use super::process::Overrides;
use super::volumes::Volume;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// What to run instead of the image's command.
    pub overrides: Overrides,
    /// Host name; `None` for the container's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Volumes besides those that the image declares.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// Whether its root file system is read-only in the container.
    #[serde(default)]
    pub read_only: bool,
    /// What only its runtime knows.
    pub runtime: ForRuntime,
}

/// What only one kind of runtime knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForRuntime {
    /// LXC.
    Lxc {
        /// Keys and values of LXC's default configuration.
        copied: Vec<(String, String)>,
        /// Configurations to include last.
        includes: Vec<PathBuf>,
    },
    /// An OCI runtime.
    Bundle {
        /// Whether it gets a terminal.
        terminal: bool,
        /// Seccomp filter, as the runtime specification defines it.
        seccomp: Option<serde_json::Value>,
        /// Whether set-user-id programs gain privileges.
        new_privileges: bool,
    },
}

impl Settings {
    /// Those of a request.
    ///
    /// # Errors
    /// [`Error::Document`] for a seccomp filter that cannot be written.
    pub fn of(request: &Request<'_>) -> Result<Self> {
        let runtime = match &request.target {
            Target::Lxc {
                copied, includes, ..
            } => ForRuntime::Lxc {
                copied: copied.clone(),
                includes: includes.clone(),
            },
            Target::Bundle {
                terminal,
                seccomp,
                new_privileges,
                ..
            } => ForRuntime::Bundle {
                terminal: *terminal,
                seccomp: seccomp
                    .as_ref()
                    .map(serde_json::to_value)
                    .transpose()
                    .map_err(Error::document("the seccomp filter"))?,
                new_privileges: *new_privileges,
            },
        };
        Ok(Self {
            overrides: request.overrides.clone(),
            hostname: request.hostname.clone(),
            volumes: request.volumes.clone(),
            read_only: request.read_only,
            runtime,
        })
    }
}

/// A seccomp filter from a record.
pub(super) fn seccomp(filter: &serde_json::Value) -> Result<LinuxSeccomp> {
    serde_json::from_value(filter.clone()).map_err(Error::document("the recorded seccomp filter"))
}
