//! Sources of images: directories, OCI layouts, archives, tars, other images.

mod archive;
mod attributes;
mod blob;
mod dir;
mod docker;
mod document;
mod image;
mod oci;
mod packed;
mod spec;
mod stdin;
pub mod upper;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

pub use blob::unpack;
pub use document::{MAX_DOCUMENT, Platform, is_for};
pub use oci::{Documents, FoundImage, FoundLayer, choose, digest_of, index_of};
pub use spec::{SourceKind, Spec};

use super::digest::Digest;
use super::error::Result;
use archive::Archive;

/// An image to build: its layers and its documents.
#[derive(Debug, Default)]
pub struct SourceImage {
    /// The layers, lowest first.
    pub layers: Vec<SourceLayer>,
    /// The OCI image configuration, JSON, unchanged; empty if the source has none.
    pub config: Vec<u8>,
    /// OCI manifest, likewise.
    pub manifest: Vec<u8>,
}

/// A layer to be read.
pub struct SourceLayer {
    /// What messages call it.
    pub name: String,
    /// `created_by` of its history entry.
    pub created_by: Vec<u8>,
    /// The digest that its tar must have.
    pub diff_id: Option<Digest>,
    /// How many bytes will be reported as progress.
    pub size: u64,
    /// Whether those are compressed bytes.
    pub compressed: bool,
    /// The tar.
    pub tar: Box<dyn TarSource>,
}

impl std::fmt::Debug for SourceLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layer")
            .field("name", &self.name)
            .field("diff_id", &self.diff_id)
            .field("size", &self.size)
            .field("compressed", &self.compressed)
            .finish_non_exhaustive()
    }
}

/// Something that makes a tar.
pub trait TarSource: Send {
    /// Writes the tar, telling `progress` how many bytes of [`SourceLayer::size`] were dealt with.
    ///
    /// # Errors
    /// On an error, nothing that was written may be used.
    fn write_to(
        self: Box<Self>,
        out: &mut dyn Write,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()>;
}

/// How to open sources.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// The image to choose from an index.
    pub platform: Platform,
    /// For images that are encrypted.
    pub secret: Option<bfc::Secret>,
    /// Directory for temporary files.
    pub temp_dir: PathBuf,
    /// Limit of all unpacked layers together, bytes.
    pub max_size: u64,
}

/// The history of a layer that had none. It must not contain the path of the source, which would
/// change the image.
fn created_by(kind: &str, path: &Path) -> Vec<u8> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!("lxcri-fs build {kind}:{name}").into_bytes()
}

/// Opens a source.
///
/// # Errors
/// If it does not exist, is not of the kind of its prefix, or has no matching image.
pub fn open(spec: &Spec, options: &SourceOptions) -> Result<SourceImage> {
    let path = &spec.path;
    match spec.kind {
        SourceKind::Dir if oci::is_skopeo_dir(path) => oci::open_skopeo_dir(path, options),
        SourceKind::Dir => dir::open(path),
        SourceKind::Oci => oci::open_dir(path, spec.reference.as_deref(), options),
        SourceKind::OciArchive => oci::open_archive(path, spec.reference.as_deref(), options),
        SourceKind::DockerArchive => docker::open(
            &Archive::open(path, options)?,
            spec.reference.as_deref(),
            options,
        ),
        SourceKind::Tar => blob::open_tar(path),
        SourceKind::Bfc => image::open(path, options),
    }
}

/// Reads the image of a docker archive with a single image, compressed or not, into a temporary
/// file. Messages name it `name`.
///
/// # Errors
/// As [`open`].
pub fn read_docker_archive(
    name: &str,
    input: impl Read + Send,
    options: &SourceOptions,
) -> Result<SourceImage> {
    let archive = Archive::read(name.as_ref(), input, options)?;
    docker::open(&archive, None, options)
}
