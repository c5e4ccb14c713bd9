//! How images are opened.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How to open images.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageOptions {
    /// Directory of the image that is to be the root.
    #[serde(with = "super::paths::optional_path")]
    pub subdir: Option<PathBuf>,
    /// Root digest that the image must have, hexadecimal; every byte is then checked against it.
    pub digest: Option<String>,
    /// Check stored bytes against their BLAKE3, besides the checksum of what is decoded; implied by
    /// `digest`.
    pub check_hash: bool,
    /// Bound of the cache of decoded content, bytes.
    pub cache_bytes: u64,
    /// Answer as if no inode had extended attributes: somebody else shows them.
    #[serde(default)]
    pub hide_xattrs: bool,
    /// Where content goes that does not fit the cache. A disk: the temporary directory of many
    /// hosts is in memory.
    #[serde(with = "super::paths::path")]
    pub temp_dir: PathBuf,
    /// What such content may take there at a time, bytes.
    #[serde(default = "max_spooled")]
    pub spool_bytes: u64,
}

/// What a mount takes for content that does not fit the cache, unless it is told otherwise, bytes.
fn max_spooled() -> u64 {
    4 << 30
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self {
            subdir: None,
            digest: None,
            check_hash: false,
            cache_bytes: 32 << 20,
            hide_xattrs: false,
            temp_dir: "/var/tmp".into(),
            spool_bytes: max_spooled(),
        }
    }
}
