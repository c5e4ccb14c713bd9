//! Exports images: the merged tree as a tar, or the layers as an OCI layout.

mod layer;
mod oci;
mod tree;

pub use layer::{WriteError, write_tar};
pub use oci::{
    BlobFile, LayerBlob, MANIFEST, OciImage, OriginalLayer, oci_image, oci_image_size, oci_layout,
    oci_layout_size, original_layers,
};
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
