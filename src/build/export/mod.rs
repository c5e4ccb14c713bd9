//! Exports images: the merged tree as a tar, or the layers as an OCI layout.

mod layer;
mod oci;
mod tree;

pub use layer::{WriteError, write_tar};
pub use oci::{BlobFile, MANIFEST, OciImage, oci_image, oci_layout, oci_layout_size};
pub use tree::{tree_tar, tree_tar_file};

/// How layers are compressed that are exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not.
    None,
    /// gzip, which every reader of images knows.
    Gzip,
    /// zstd.
    Zstd,
}
