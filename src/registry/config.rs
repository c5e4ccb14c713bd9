//! Settings of registries: `[registries."HOST[:PORT]"]`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The table `registries` of the configuration, by `HOST[:PORT]`; Docker Hub is `docker.io`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Registries {
    own: BTreeMap<String, Registry>,
    /// Whether certificates must be valid, if the command line says so.
    #[serde(skip)]
    verify: Option<bool>,
}

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
        let mut registry = self.own.get(host).cloned().unwrap_or_default();
        registry.insecure = self.verify.map_or(registry.insecure, |verify| !verify);
        registry
    }

    /// These settings, but with `insecure` for no registry if `verify` is true, and for all if it
    /// is false.
    #[must_use]
    pub fn with_verify(mut self, verify: Option<bool>) -> Self {
        self.verify = verify;
        self
    }
}
