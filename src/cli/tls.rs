//! Whether certificates of registries must be valid.

use clap::Args;

use crate::registry::Registries;

/// How to connect to registries.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(super) struct TlsArgs {
    /// Whether registries must use https with a valid certificate. With =false, any certificate
    /// is accepted, and plain HTTP is used if there is no https (default: what the configuration
    /// says)
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    tls_verify: Option<bool>,
}

impl TlsArgs {
    /// The settings of registries, as far as the arguments leave them.
    pub(super) fn apply(self, registries: Registries) -> Registries {
        registries.with_verify(self.tls_verify)
    }
}
