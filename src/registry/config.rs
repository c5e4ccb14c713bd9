//! Settings of registries: `[registries."HOST[:PORT]"]`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The table `registries` of the configuration, by `HOST[:PORT]`; Docker Hub is `docker.io`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Registries(BTreeMap<String, Registry>);

/// Settings of one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Whether its certificate need not be valid, and it may speak plain HTTP.
    pub insecure: bool,
    /// Mirrors to ask first when pulling, in this order: `HOST[:PORT][/PREFIX]`.
    pub mirrors: Vec<String>,
}

impl Registries {
    /// The settings of a registry, or the defaults.
    pub fn get(&self, host: &str) -> Registry {
        self.0.get(host).cloned().unwrap_or_default()
    }
}
