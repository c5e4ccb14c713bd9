//! OCI image layouts, as a directory or in an archive.

use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};

use super::archive::Archive;
use super::blob::{Blob, Range};
use super::document::{Config, MAX_DOCUMENT, parse};
use super::{Image, Options};
use crate::build::digest::Digest;
use crate::build::error::{Error, Mismatch, Result};

/// How deep indexes may be nested.
const MAX_DEPTH: usize = 8;
/// How many manifests are looked at in all of them.
const MAX_MANIFESTS: usize = 4096;
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// containerd's exporter writes the full reference here.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const DOCKER_MANIFEST_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Where the files of a layout are.
enum Layout {
    Dir(PathBuf),
    Archive(Archive),
}

impl Layout {
    fn name(&self) -> String {
        match self {
            Self::Dir(path) => path.display().to_string(),
            Self::Archive(archive) => archive.path().display().to_string(),
        }
    }

    fn get(&self, path: &str) -> Result<Range> {
        match self {
            Self::Dir(dir) => Range::whole(&dir.join(path)),
            Self::Archive(archive) => archive.get(path).ok_or_else(|| Error::document(self.name(), format!("{path} is not in it"))),
        }
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        let range = self.get(path)?;
        range.read_document(&format!("{path} of {}", self.name()))
    }

    /// The blob of a descriptor, once its length was found right.
    fn blob(&self, descriptor: &Descriptor) -> Result<(Range, Digest)> {
        let text = descriptor.digest().to_string();
        let digest = Digest::parse(&text)
            .ok_or_else(|| Error::document(self.name(), format!("the digest {text} is none that is supported (sha256)")))?;
        let range = self.get(&format!("blobs/sha256/{}", digest.hex()))?;
        if range.len != descriptor.size() {
            let reason = Mismatch::Size { found: range.len, wanted: descriptor.size() };
            return Err(Error::Mismatch { name: format!("blob {digest}"), reason });
        }
        Ok((range, digest))
    }

    /// A document, checked against its descriptor.
    fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let (range, wanted) = self.blob(descriptor)?;
        let bytes = range.read_document(&format!("blob {wanted} of {}", self.name()))?;
        let found = Digest::of(&bytes);
        if found != wanted {
            let reason = Mismatch::Digest { found: found.to_string(), wanted: wanted.to_string() };
            return Err(Error::Mismatch { name: format!("blob {wanted}"), reason });
        }
        Ok(bytes)
    }
}

impl Range {
    /// Reads all of it, if it is not too long for a document.
    pub fn read_document(&self, name: &str) -> Result<Vec<u8>> {
        use std::io::Read;
        if self.len > MAX_DOCUMENT {
            return Err(Error::document(name, format!("it has {} bytes; at most {MAX_DOCUMENT} are read", self.len)));
        }
        let mut bytes = Vec::new();
        self.reader().read_to_end(&mut bytes).map_err(Error::io("reading", &self.path))?;
        Ok(bytes)
    }
}

/// Opens a layout.
pub fn open_dir(path: &Path, reference: Option<&str>, options: &Options) -> Result<Image> {
    open(Layout::Dir(path.to_owned()), reference, options)
}

/// Opens a layout in an archive.
pub fn open_archive(path: &Path, reference: Option<&str>, options: &Options) -> Result<Image> {
    open(Layout::Archive(Archive::open(path, options)?), reference, options)
}

fn open(layout: Layout, reference: Option<&str>, options: &Options) -> Result<Image> {
    // Its version is all that this file says; without it this is no layout.
    layout.read("oci-layout")?;
    let index: ImageIndex = parse("index.json", &layout.read("index.json")?)?;
    let descriptor = choose(&layout, &index, reference, options)?;
    let manifest_bytes = layout.document(&descriptor)?;
    let manifest: ImageManifest = parse(&format!("manifest {}", descriptor.digest()), &manifest_bytes)?;
    let config_bytes = layout.document(manifest.config())?;
    let config_name = format!("configuration {}", manifest.config().digest());
    let config: Config = parse(&config_name, &config_bytes)?;
    let known = config.layers(&config_name, manifest.layers().len())?;
    config.warn_of_platform(&layout.name(), &options.platform);
    let mut layers = Vec::new();
    for (descriptor, (diff_id, created_by)) in manifest.layers().iter().zip(known) {
        let (range, digest) = layout.blob(descriptor)?;
        layers.push(Blob { name: digest.to_string(), range, digest: Some(digest) }.layer(created_by, Some(diff_id))?);
    }
    Ok(Image { layers, config: config_bytes, manifest: manifest_bytes })
}

/// The manifest that reference and platform choose.
fn choose(layout: &Layout, index: &ImageIndex, reference: Option<&str>, options: &Options) -> Result<Descriptor> {
    let named: Vec<&Descriptor> = index.manifests().iter().filter(|d| reference.is_none_or(|r| has_name(d, r))).collect();
    let source = |reason: String, hint: Option<String>| Error::Source { name: layout.name(), reason, hint };
    if named.is_empty() {
        let reason = format!("it has no image named {}", reference.unwrap_or("anything"));
        return Err(source(reason, names(index)));
    }
    let mut found = Vec::new();
    for descriptor in named {
        collect(layout, descriptor, 0, &mut found)?;
    }
    let fit = |d: &Descriptor| match d.platform() {
        Some(p) => options.platform.fit(&p.os().to_string(), &p.architecture().to_string(), p.variant().as_deref()),
        // Nothing is said of it: it is taken when there is no better one.
        None => Some(0),
    };
    let best = found.iter().filter_map(fit).max();
    let mut fitting: Vec<&Descriptor> = found.iter().filter(|d| fit(d) == best && best.is_some()).collect();
    fitting.dedup_by(|a, b| a.digest() == b.digest());
    match fitting[..] {
        [one] => Ok(one.clone()),
        [] => {
            let platforms: Vec<_> = found.iter().filter_map(|d| d.platform().as_ref()).map(describe).collect();
            let reason = format!("it has no image for {}", options.platform);
            Err(source(reason, Some(format!("choose one with --platform: {}", platforms.join(", ")))))
        }
        _ => Err(source("it has several images".into(), names(index))),
    }
}

fn describe(platform: &oci_spec::image::Platform) -> String {
    let variant = platform.variant().as_ref().map(|v| format!("/{v}")).unwrap_or_default();
    format!("{}/{}{variant}", platform.os(), platform.architecture())
}

fn has_name(descriptor: &Descriptor, reference: &str) -> bool {
    let annotation = |key| descriptor.annotations().as_ref().and_then(|a| a.get(key)).map(String::as_str);
    annotation(REF_NAME) == Some(reference)
        || annotation(CONTAINERD_NAME) == Some(reference)
        || descriptor.digest().to_string() == reference
}

fn names(index: &ImageIndex) -> Option<String> {
    let names: Vec<_> = index.manifests().iter().filter_map(|d| d.annotations().as_ref()?.get(REF_NAME)).map(String::as_str).collect();
    (!names.is_empty()).then(|| format!("choose one with :TAG: {}", names.join(", ")))
}

/// The manifests that a descriptor leads to, through indexes of indexes.
fn collect(layout: &Layout, descriptor: &Descriptor, depth: usize, found: &mut Vec<Descriptor>) -> Result<()> {
    let is_index = match descriptor.media_type() {
        MediaType::ImageIndex => true,
        MediaType::Other(other) => other == DOCKER_MANIFEST_LIST,
        _ => false,
    };
    if !is_index {
        if descriptor.platform().as_ref().is_none_or(|p| p.os().to_string() != "unknown") {
            // buildkit's attestations are manifests for unknown/unknown.
            found.push(descriptor.clone());
        }
        return Ok(());
    }
    if depth == MAX_DEPTH || found.len() > MAX_MANIFESTS {
        return Err(Error::document(layout.name(), "its indexes are nested too deep, or too many"));
    }
    let name = format!("index {}", descriptor.digest());
    let index: ImageIndex = parse(&name, &layout.document(descriptor)?)?;
    for inner in index.manifests() {
        collect(layout, inner, depth + 1, found)?;
    }
    Ok(())
}
