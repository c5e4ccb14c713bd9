//! OCI image layouts, as a directory or in an archive.

use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, ImageIndex, ImageIndexBuilder, ImageManifest, MediaType};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::archive::Archive;
use super::blob::{Blob, FilePart};
use super::document::{Config, MAX_DOCUMENT, parse};
use super::{Platform, SourceImage, SourceOptions};
use crate::build::digest::Digest;
use crate::build::error::{Error, Mismatch, Result};
use crate::error::Io;
use crate::text::printable;

/// How deep indexes may be nested.
const MAX_DEPTH: usize = 8;
/// How many manifests are looked at in all of them.
const MAX_MANIFESTS: usize = 4096;
/// How many indexes are read in all.
const MAX_INDEXES: usize = 64;
/// Media types of layer tars; a suffix gives the compression.
const LAYERS: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];
/// The manifest, or the index, in a directory of skopeo's `dir:`.
const SKOPEO_MANIFEST: &str = "manifest.json";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// containerd's exporter writes the full reference here.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const DOCKER_MANIFEST_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// The fields that distinguish a manifest from an index.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
}

/// An index that contains only this document, a manifest or an index, and the media type that the
/// document gives itself.
///
/// # Errors
/// [`Error::Document`] if it is neither, or both.
pub fn index_of(name: &str, bytes: &[u8], digest: &Digest) -> Result<(ImageIndex, Option<String>)> {
    let failed = |e: &dyn ToString| Error::document(name, e.to_string());
    let Kind {
        media_type,
        manifests,
        layers,
    } = parse(name, bytes)?;
    // A document that is both would mean different things to different readers, with the same
    // digest.
    if manifests.is_some() && layers.is_some() {
        return Err(failed(&"it is both an index and a manifest"));
    }
    let kind = if manifests.is_some() {
        MediaType::ImageIndex
    } else {
        MediaType::ImageManifest
    };
    let digest = oci_spec::image::Digest::try_from(digest.to_string()).map_err(|e| failed(&e))?;
    let index = ImageIndexBuilder::default()
        .schema_version(oci_spec::image::SCHEMA_VERSION)
        .manifests(vec![Descriptor::new(kind, bytes.len() as u64, digest)]);
    Ok((index.build().map_err(|e| failed(&e))?, media_type))
}

/// Access to the documents of an image, in a layout or a registry.
pub trait Documents {
    /// What messages call it.
    fn name(&self) -> String;

    /// A document, checked against its descriptor.
    ///
    /// # Errors
    /// [`Error`].
    fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>>;
}

/// An image that was found.
#[derive(Debug)]
pub struct FoundImage {
    /// Its manifest, unchanged.
    pub manifest: Vec<u8>,
    /// Its configuration, unchanged.
    pub config: Vec<u8>,
    /// Its layers, lowest first.
    pub layers: Vec<FoundLayer>,
}

/// A layer of a manifest.
#[derive(Debug)]
pub struct FoundLayer {
    /// Digest of its blob.
    pub digest: Digest,
    /// Length of its blob, bytes.
    pub size: u64,
    /// Whether its blob is said to be compressed.
    pub compressed: bool,
    /// The digest that its tar must have.
    pub diff_id: Digest,
    /// `created_by` of its history entry.
    pub created_by: Vec<u8>,
}

/// Media types of images' configurations; the last is what some old registries say.
const CONFIGS: [&str; 3] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
    "application/octet-stream",
];
/// First words of the file `version` in a directory of skopeo's `dir:`.
const SKOPEO_DIR: &[u8] = b"Directory Transport Version";

/// A layout: a directory or an archive.
enum Layout {
    Dir(PathBuf),
    Archive(Archive),
    /// A directory of skopeo's `dir:`: blobs are named by their digests, and the manifest, whose
    /// digest this is, is `manifest.json`.
    Skopeo(PathBuf, Digest),
}

impl Layout {
    fn get(&self, path: &str) -> Result<FilePart> {
        match self {
            Self::Dir(dir) | Self::Skopeo(dir, _) => FilePart::whole(&dir.join(path)),
            Self::Archive(archive) => archive
                .get(path)
                .ok_or_else(|| Error::document(self.name(), format!("{path} is missing"))),
        }
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        let range = self.get(path)?;
        range.read_document(&format!("{path} of {}", self.name()))
    }

    /// A blob, once its length was found right.
    fn blob(&self, digest: &Digest, size: u64) -> Result<FilePart> {
        let hex = digest.hex();
        let range = match self {
            Self::Dir(_) | Self::Archive(_) => self.get(&format!("blobs/sha256/{hex}"))?,
            Self::Skopeo(_, manifest) if digest == manifest => self.get(SKOPEO_MANIFEST)?,
            Self::Skopeo(dir, _) if dir.join(&hex).is_file() => self.get(&hex)?,
            // One of the manifests in an index.
            Self::Skopeo(..) => self.get(&format!("{hex}.manifest.json"))?,
        };
        if range.len != size {
            let reason = Mismatch::Size {
                found: range.len,
                wanted: size,
            };
            return Err(Error::Mismatch {
                name: format!("blob {digest}"),
                reason,
            });
        }
        Ok(range)
    }
}

/// The digest of a descriptor.
pub fn digest_of(documents: &(impl Documents + ?Sized), descriptor: &Descriptor) -> Result<Digest> {
    let text = descriptor.digest().to_string();
    Digest::parse(&text).ok_or_else(|| {
        Error::document(
            documents.name(),
            format!("the digest {text} is not supported; sha256 is"),
        )
    })
}

impl Documents for Layout {
    fn name(&self) -> String {
        match self {
            Self::Dir(path) | Self::Skopeo(path, _) => path.display().to_string(),
            Self::Archive(archive) => archive.path().display().to_string(),
        }
    }

    fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let wanted = digest_of(self, descriptor)?;
        let range = self.blob(&wanted, descriptor.size())?;
        let bytes = range.read_document(&format!("blob {wanted} of {}", self.name()))?;
        let found = Digest::of(&bytes);
        if found != wanted {
            let reason = Mismatch::Digest {
                found: found.to_string(),
                wanted: wanted.to_string(),
            };
            return Err(Error::Mismatch {
                name: format!("blob {wanted}"),
                reason,
            });
        }
        Ok(bytes)
    }
}

impl FilePart {
    /// Reads all of it, if it is not too long for a document.
    pub(super) fn read_document(&self, name: &str) -> Result<Vec<u8>> {
        use std::io::Read;
        if self.len > MAX_DOCUMENT {
            return Err(Error::document(
                name,
                format!(
                    "it has {} bytes; at most {MAX_DOCUMENT} are allowed",
                    self.len
                ),
            ));
        }
        let mut bytes = Vec::new();
        self.reader()
            .read_to_end(&mut bytes)
            .map_err(Io::at("reading", &self.path))?;
        Ok(bytes)
    }
}

/// Opens a layout.
pub(super) fn open_dir(
    path: &Path,
    reference: Option<&str>,
    options: &SourceOptions,
) -> Result<SourceImage> {
    open(Layout::Dir(path.to_owned()), reference, options)
}

/// Opens a layout in an archive.
pub(super) fn open_archive(
    path: &Path,
    reference: Option<&str>,
    options: &SourceOptions,
) -> Result<SourceImage> {
    open(
        Layout::Archive(Archive::open(path, options)?),
        reference,
        options,
    )
}

/// Whether a directory is one of skopeo's `dir:`.
pub(super) fn is_skopeo_dir(path: &Path) -> bool {
    let version = path.join("version");
    // In a root file system, it may be a link to anything.
    if !version.symlink_metadata().is_ok_and(|m| m.is_file()) {
        return false;
    }
    let version = FilePart::whole(&version);
    let magic = version.and_then(|version| version.magic::<{ SKOPEO_DIR.len() }>());
    magic.is_ok_and(|magic| magic == SKOPEO_DIR)
}

/// Opens a directory of skopeo's `dir:`, which holds one image, or several of one name.
pub(super) fn open_skopeo_dir(path: &Path, options: &SourceOptions) -> Result<SourceImage> {
    let range = FilePart::whole(&path.join(SKOPEO_MANIFEST))?;
    let name = format!("{SKOPEO_MANIFEST} of {}", path.display());
    let bytes = range.read_document(&name)?;
    let digest = Digest::of(&bytes);
    let (index, _) = index_of(&name, &bytes, &digest)?;
    read(
        &Layout::Skopeo(path.to_owned(), digest),
        &index,
        None,
        options,
    )
}

fn open(layout: Layout, reference: Option<&str>, options: &SourceOptions) -> Result<SourceImage> {
    // This file only contains the version; without it, this is not a layout.
    layout.read("oci-layout")?;
    let index: ImageIndex = parse("index.json", &layout.read("index.json")?)?;
    read(&layout, &index, reference, options)
}

fn read(
    layout: &Layout,
    index: &ImageIndex,
    reference: Option<&str>,
    options: &SourceOptions,
) -> Result<SourceImage> {
    let found = choose(layout, index, reference, &options.platform)?;
    let mut layers = Vec::new();
    for FoundLayer {
        digest,
        size,
        diff_id,
        created_by,
        ..
    } in found.layers
    {
        let range = layout.blob(&digest, size)?;
        layers.push(
            Blob {
                name: digest.to_string(),
                range,
                digest: Some(digest),
            }
            .layer(created_by, Some(diff_id))?,
        );
    }
    Ok(SourceImage {
        layers,
        config: found.config,
        manifest: found.manifest,
    })
}

/// Chooses the image by reference and platform.
///
/// # Errors
/// [`Error::Source`] if none or several match; [`Error::Document`] and [`Error::Mismatch`] when a
/// document is wrong.
pub fn choose(
    documents: &dyn Documents,
    index: &ImageIndex,
    reference: Option<&str>,
    platform: &Platform,
) -> Result<FoundImage> {
    let descriptor = choose_manifest(documents, index, reference, platform)?;
    let manifest_bytes = documents.document(&descriptor)?;
    let manifest: ImageManifest = parse(
        &format!("manifest {}", descriptor.digest()),
        &manifest_bytes,
    )?;
    refuse_artifact(documents, &manifest)?;
    let config_bytes = documents.document(manifest.config())?;
    let config_name = format!("configuration {}", manifest.config().digest());
    let config: Config = parse(&config_name, &config_bytes)?;
    let known = config.layers(&config_name, manifest.layers().len())?;
    // An index says what its images are for, and has been searched for it.
    let is_asked = platform.is_asked && descriptor.platform().is_none();
    config.check_platform(&documents.name(), platform, is_asked)?;
    let layer = |(descriptor, (diff_id, created_by)): (&Descriptor, (Digest, Vec<u8>))| {
        let compressed = is_compressed(&documents.name(), descriptor.media_type().as_ref())?;
        Ok(FoundLayer {
            digest: digest_of(documents, descriptor)?,
            size: descriptor.size(),
            compressed,
            diff_id,
            created_by,
        })
    };
    let layers = manifest
        .layers()
        .iter()
        .zip(known)
        .map(layer)
        .collect::<Result<_>>()?;
    Ok(FoundImage {
        manifest: manifest_bytes,
        config: config_bytes,
        layers,
    })
}

/// Refuses what is no image: charts, signatures, and other artifacts, which have no layers of a
/// root file system.
fn refuse_artifact(documents: &dyn Documents, manifest: &ImageManifest) -> Result<()> {
    let config = manifest.config().media_type().to_string();
    let what = match manifest.artifact_type() {
        Some(artifact) => artifact.to_string(),
        None if CONFIGS.contains(&config.as_str()) => return Ok(()),
        None => config,
    };
    Err(Error::Source {
        name: documents.name(),
        reason: format!(
            "it is no image, but an artifact of the type {}",
            printable(what.as_bytes())
        ),
        hint: Some("name an image of a root file system".into()),
    })
}

/// Whether a layer of this media type is compressed.
fn is_compressed(name: &str, media_type: &str) -> Result<bool> {
    let tar = LAYERS.iter().find_map(|tar| media_type.strip_prefix(tar));
    match tar {
        Some("") => Ok(false),
        Some("+gzip" | "+zstd" | ".gzip" | ".zstd") => Ok(true),
        _ => Err(Error::Source {
            name: name.to_owned(),
            reason: format!(
                "a layer of it is of the type {media_type:?}, which is no layer of a file system \
                 that is known"
            ),
            hint: Some(
                "layers are tars as they are, or compressed by gzip or zstd; what is encrypted \
                 has to be decrypted first"
                    .into(),
            ),
        }),
    }
}

/// The manifest that reference and platform choose.
fn choose_manifest(
    documents: &dyn Documents,
    index: &ImageIndex,
    reference: Option<&str>,
    platform: &Platform,
) -> Result<Descriptor> {
    let named: Vec<&Descriptor> = index
        .manifests()
        .iter()
        .filter(|d| reference.is_none_or(|r| has_name(d, r)))
        .collect();
    let source = |reason: String, hint: Option<String>| Error::Source {
        name: documents.name(),
        reason,
        hint,
    };
    if named.is_empty() {
        return Err(Error::NoImage {
            name: documents.name(),
            reason: format!("it has no image named {}", reference.unwrap_or("anything")),
            hint: names(index),
        });
    }
    let (mut found, mut indexes) = (Vec::new(), 0);
    for descriptor in named {
        collect(documents, descriptor, 0, &mut indexes, &mut found)?;
    }
    let fit = |d: &Descriptor| match d.platform() {
        Some(p) => platform.fit(
            &p.os().to_string(),
            &p.architecture().to_string(),
            p.variant().as_deref(),
        ),
        // An image without a platform is taken if there is no better one.
        None => Some(0),
    };
    let best = found.iter().filter_map(fit).max();
    let mut fitting: Vec<&Descriptor> = found
        .iter()
        .filter(|d| fit(d) == best && best.is_some())
        .collect();
    fitting.dedup_by(|a, b| a.digest() == b.digest());
    match fitting[..] {
        [one] => Ok(one.clone()),
        [] => {
            let platforms: Vec<_> = found
                .iter()
                .filter_map(|d| d.platform().as_ref())
                .map(describe)
                .collect();
            Err(Error::NoImage {
                name: documents.name(),
                reason: format!("it has no image for {platform}"),
                hint: Some(format!(
                    "choose one with --platform: {}",
                    platforms.join(", ")
                )),
            })
        }
        _ => Err(source("it has several images".into(), names(index))),
    }
}

fn describe(platform: &oci_spec::image::Platform) -> String {
    let variant = platform
        .variant()
        .as_ref()
        .map(|v| format!("/{v}"))
        .unwrap_or_default();
    format!("{}/{}{variant}", platform.os(), platform.architecture())
}

fn has_name(descriptor: &Descriptor, reference: &str) -> bool {
    let annotation = |key| {
        descriptor
            .annotations()
            .as_ref()
            .and_then(|a| a.get(key))
            .map(String::as_str)
    };
    annotation(REF_NAME) == Some(reference)
        || annotation(CONTAINERD_NAME) == Some(reference)
        || descriptor.digest().to_string() == reference
}

fn names(index: &ImageIndex) -> Option<String> {
    let names: Vec<_> = index
        .manifests()
        .iter()
        .filter_map(|d| d.annotations().as_ref()?.get(REF_NAME))
        .map(String::as_str)
        .collect();
    (!names.is_empty()).then(|| format!("choose one with :TAG: {}", names.join(", ")))
}

/// The manifests that a descriptor leads to, through indexes of indexes.
fn collect(
    documents: &dyn Documents,
    descriptor: &Descriptor,
    depth: usize,
    indexes: &mut usize,
    found: &mut Vec<Descriptor>,
) -> Result<()> {
    let is_index = match descriptor.media_type() {
        MediaType::ImageIndex => true,
        MediaType::Other(other) => other == DOCKER_MANIFEST_LIST,
        _ => false,
    };
    if !is_index {
        if descriptor
            .platform()
            .as_ref()
            .is_none_or(|p| p.os().to_string() != "unknown")
        {
            // buildkit's attestations are manifests for unknown/unknown.
            found.push(descriptor.clone());
        }
        return Ok(());
    }
    *indexes += 1;
    if depth == MAX_DEPTH || *indexes > MAX_INDEXES || found.len() > MAX_MANIFESTS {
        return Err(Error::document(
            documents.name(),
            "its indexes are nested too deeply, or there are too many",
        ));
    }
    let name = format!("index {}", descriptor.digest());
    let index: ImageIndex = parse(&name, &documents.document(descriptor)?)?;
    for inner in index.manifests() {
        collect(documents, inner, depth + 1, indexes, found)?;
    }
    Ok(())
}
