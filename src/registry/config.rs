//! What the configuration says of registries: `[registries."HOST[:PORT]"]`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The table `registries` of the configuration, by `HOST[:PORT]`; Docker Hub is `docker.io`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Registries(BTreeMap<String, Registry>);

/// What is said of one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Whether its certificate need not be valid, and it may speak plain HTTP.
    pub insecure: bool,
    /// Who is asked before it when something is pulled, in this order: `HOST[:PORT][/PREFIX]`.
    pub mirrors: Vec<String>,
}

impl Registries {
    /// What is said of a registry, which may be nothing.
    pub fn get(&self, host: &str) -> Registry {
        self.0.get(host).cloned().unwrap_or_default()
    }
}
