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
    /// Answer as if no inode had extended attributes, because another layer shows them.
    #[serde(default)]
    pub hide_xattrs: bool,
    /// Directory for content that does not fit the cache. It should be on a disk; the temporary
    /// directory of many hosts is in memory.
    #[serde(with = "super::paths::path")]
    pub temp_dir: PathBuf,
    /// The limit for such content at a time, bytes.
    #[serde(default = "max_spooled")]
    pub spool_bytes: u64,
}

/// Default limit of a mount for content that does not fit the cache, bytes.
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
