//! Writes OCI image layouts. The layers are byte for byte the original ones, so that their diff_ids
//! and the image's ID stay the same.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use bfc::rootfs::format;
use flate2::write::GzEncoder;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{WriteError, tree_tar, write_tar};
use crate::build::config::{LayerFact, config};
use crate::build::digest::Digest;
use crate::build::error::{Error, Mismatch, Result};
use crate::build::export::Compression;
use crate::build::output::refuse_taken;
use crate::build::sources::Platform;
use crate::error::Io;
use crate::fs::{self, Rootfs};

const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 3;
/// Media type of a manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Writes the image as an OCI layout into `dir`, which is created. A plain v1 image, which has no
/// layers, gets one with its tree. On failure, `dir` does not exist.
///
/// # Errors
/// [`Error::Mismatch`] if a layer does not have its diff_id; [`Error`] for the image and for the
/// files.
pub fn oci_layout(
    rootfs: &Rootfs,
    dir: &Path,
    compression: Compression,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<()> {
    let parent = crate::build::parent(dir);
    refuse_taken(dir)?;
    let temp = tempfile::Builder::new()
        .prefix(".lxcri-fs-export.")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir_in(&parent)
        .map_err(Io::at("making a directory in", &parent))?;
    Layout {
        rootfs,
        root: temp.path(),
        compression,
        progress,
    }
    .write()?;
    // Kept from here on, under its own name.
    std::fs::rename(temp.path(), dir).map_err(Io::at("making", dir))?;
    let _ = temp.keep();
    Ok(())
}

/// How many bytes of progress [`oci_layout`] will report.
pub fn oci_layout_size(rootfs: &Rootfs) -> u64 {
    oci_image_size(rootfs, &[])
}

/// The layers of an image, the lowest first, and the blobs that they came as; none of a plain v1
/// image.
///
/// # Errors
/// [`Error::Fs`] if the image is damaged.
pub fn original_layers(rootfs: &Rootfs) -> Result<Vec<OriginalLayer>> {
    let failed = failed(rootfs);
    let section = rootfs.section();
    let records = section.layers().map_err(&failed)?;
    let found = section.blob(section.header().manifest).map_err(&failed)?;
    let blobs = match serde_json::from_slice::<FoundManifest>(&found) {
        Ok(found) if found.layers.len() == records.len() => found.layers,
        _ => Vec::new(),
    };
    let mut blobs = blobs.iter().map(FoundBlob::layer);
    let layer = |record: &format::LayerRecord| OriginalLayer {
        diff_id: Digest(record.diff_id),
        blob: blobs.next().flatten(),
    };
    Ok(records.iter().map(layer).collect())
}

/// Makes the documents and layers of an OCI image, the layers as files in `dir`. A layer that is
/// `known` as a blob is not made; there is one entry for each of the [`original_layers`]. If all
/// are known, nothing is written.
///
/// # Errors
/// As [`oci_layout`].
pub fn oci_image(
    rootfs: &Rootfs,
    dir: &Path,
    compression: Compression,
    known: &[Option<LayerBlob>],
    progress: &(dyn Fn(u64) + Sync),
) -> Result<OciImage> {
    Layout {
        rootfs,
        root: dir,
        compression,
        progress,
    }
    .image(known)
}

/// How many bytes of progress [`oci_image`] will report.
pub fn oci_image_size(rootfs: &Rootfs, known: &[Option<LayerBlob>]) -> u64 {
    match rootfs.section().layers() {
        Ok(layers) if !layers.is_empty() => {
            let is_known = |index: usize| known.get(index).is_some_and(Option::is_some);
            let made = layers.iter().enumerate().filter(|(i, _)| !is_known(*i));
            made.fold(0, |sum, (_, layer)| sum.saturating_add(layer.tar_size))
        }
        _ => rootfs.content_bytes(),
    }
}

/// A layer, compressed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerBlob {
    /// Its digest.
    pub digest: Digest,
    /// Its length, bytes.
    pub size: u64,
    /// How it is compressed.
    pub compression: Compression,
}

/// A layer of an image.
#[derive(Debug, Clone, Copy)]
pub struct OriginalLayer {
    /// The digest of its tar.
    pub diff_id: Digest,
    /// The blob that it came as, if the image has a manifest.
    pub blob: Option<LayerBlob>,
}

/// An image as OCI describes it.
#[derive(Debug)]
pub struct OciImage {
    /// The manifest.
    pub manifest: Vec<u8>,
    /// The configuration.
    pub config: Vec<u8>,
    /// The layers that were made, as files.
    pub layers: Vec<BlobFile>,
}

/// A layer's blob in a file.
#[derive(Debug)]
pub struct BlobFile {
    /// The file.
    pub path: PathBuf,
    /// The digest of the layer's tar.
    pub diff_id: Digest,
    /// The blob.
    pub blob: LayerBlob,
}

/// The manifest that an image came with.
#[derive(Deserialize)]
struct FoundManifest {
    config: FoundBlob,
    layers: Vec<FoundBlob>,
}

/// A blob of it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FoundBlob {
    media_type: String,
    digest: String,
    size: u64,
}

impl FoundBlob {
    /// The blob of a layer; `None` if its digest is not SHA-256.
    fn layer(&self) -> Option<LayerBlob> {
        let compression = match &*self.media_type {
            media_type if media_type.ends_with("gzip") => Compression::Gzip,
            media_type if media_type.ends_with("zstd") => Compression::Zstd,
            _ => Compression::None,
        };
        Some(LayerBlob {
            digest: Digest::parse(&self.digest)?,
            size: self.size,
            compression,
        })
    }
}

/// Makes a closure for `map_err` that adds the image.
fn failed(rootfs: &Rootfs) -> impl Fn(bfc::Error) -> Error {
    let image = rootfs
        .paths()
        .next()
        .unwrap_or(Path::new("image"))
        .to_owned();
    move |source| {
        Error::Fs(fs::Error::Image {
            image: image.clone(),
            source,
        })
    }
}

struct Layout<'a> {
    rootfs: &'a Rootfs,
    root: &'a Path,
    compression: Compression,
    progress: &'a (dyn Fn(u64) + Sync),
}

/// A blob that was written.
struct Written {
    digest: Digest,
    size: u64,
}

/// A layer of the new image.
struct Made {
    blob: LayerBlob,
    diff_id: Digest,
    /// Whether there is a file of it.
    is_new: bool,
}

impl Layout<'_> {
    fn write(&self) -> Result<()> {
        let image = self.image(&[])?;
        self.blob(&image.config)?;
        let manifest = self.blob(&image.manifest)?;
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": MANIFEST,
                "digest": manifest.digest.to_string(),
                "size": manifest.size,
                "annotations": { "org.opencontainers.image.ref.name": "latest" },
            }],
        });
        self.file("index.json", index.to_string().as_bytes())?;
        self.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
    }

    fn image(&self, known: &[Option<LayerBlob>]) -> Result<OciImage> {
        let blobs = self.root.join("blobs/sha256");
        let failed = failed(self.rootfs);
        let section = self.rootfs.section();
        let records = section.layers().map_err(&failed)?;
        let found_manifest = section.blob(section.header().manifest).map_err(&failed)?;
        let found: Option<FoundManifest> = serde_json::from_slice(&found_manifest).ok();
        let is_known = |(index, record): (usize, &format::LayerRecord)| {
            Some(Made {
                blob: (*known.get(index)?)?,
                diff_id: Digest(record.diff_id),
                is_new: false,
            })
        };
        let mut kept: Vec<_> = records.iter().enumerate().map(is_known).collect();
        if records.is_empty() || kept.iter().any(Option::is_none) {
            std::fs::create_dir_all(&blobs).map_err(Io::at("making", &blobs))?;
        }
        // Compression takes the most time, so as many layers as there are cores run in parallel.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut rest: Vec<_> = records
            .iter()
            .enumerate()
            .filter(|(index, _)| kept[*index].is_none())
            .collect();
        while !rest.is_empty() {
            let some: Vec<_> = rest.drain(..rest.len().min(cores)).collect();
            let results: Vec<_> = std::thread::scope(|scope| {
                let start =
                    |&(index, record)| scope.spawn(move || self.recorded_layer(index, record));
                let threads: Vec<_> = some.iter().map(start).collect();
                threads
                    .into_iter()
                    .map(|t| {
                        t.join()
                            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                    })
                    .collect()
            });
            for ((index, _), result) in some.into_iter().zip(results) {
                kept[index] = Some(self.made(result?));
            }
        }
        let mut made: Vec<_> = kept.into_iter().flatten().collect();
        if records.is_empty() {
            made.push(self.made(self.layer(0, &mut |out| tree_tar(self.rootfs, out, &|_| ()))?));
        }
        let found_config = section.blob(section.header().config).map_err(&failed)?;
        let facts: Vec<_> = made
            .iter()
            .map(|layer| LayerFact {
                diff_id: layer.diff_id,
                created_by: b"lxcri-fs export",
            })
            .collect();
        let config = config(&found_config, &facts, &Platform::host(), &[])?;
        let config_digest = Digest::of(&config);
        let is_found = found.is_some_and(|found| {
            let layers = found
                .layers
                .iter()
                .map(|layer| Digest::parse(&layer.digest));
            Digest::parse(&found.config.digest) == Some(config_digest)
                && layers.eq(made.iter().map(|layer| Some(layer.blob.digest)))
        });
        let manifest = if is_found {
            // It is the image that it came from, to the last byte.
            found_manifest.into_owned()
        } else {
            self.manifest(
                &found_manifest,
                &Written {
                    digest: config_digest,
                    size: config.len() as u64,
                },
                &made,
            )
        };
        let file = |layer: Made| BlobFile {
            path: blobs.join(layer.blob.digest.hex()),
            diff_id: layer.diff_id,
            blob: layer.blob,
        };
        let layers = made
            .into_iter()
            .filter(|layer| layer.is_new)
            .map(file)
            .collect();
        Ok(OciImage {
            manifest,
            config,
            layers,
        })
    }

    /// A layer that was written, and the digest of its tar.
    fn made(&self, (blob, diff_id): (Written, Digest)) -> Made {
        let blob = LayerBlob {
            digest: blob.digest,
            size: blob.size,
            compression: self.compression,
        };
        Made {
            blob,
            diff_id,
            is_new: true,
        }
    }

    /// The manifest: the original annotations, and everything else from the new blobs.
    fn manifest(&self, found: &[u8], config: &Written, layers: &[Made]) -> Vec<u8> {
        let descriptor = |media_type: &str, digest: Digest, size: u64| {
            let digest = digest.to_string();
            json!({ "mediaType": media_type, "digest": digest, "size": size })
        };
        let layer = |Made { blob, .. }: &Made| {
            let suffix = match blob.compression {
                Compression::None => "",
                Compression::Gzip => "+gzip",
                Compression::Zstd => "+zstd",
            };
            descriptor(&format!("{LAYER}{suffix}"), blob.digest, blob.size)
        };
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, config.digest, config.size),
            "layers": layers.iter().map(layer).collect::<Vec<_>>(),
        });
        let annotations = serde_json::from_slice::<Value>(found)
            .ok()
            .and_then(|m| m.get("annotations").cloned());
        if let Some(annotations) = annotations.filter(Value::is_object) {
            manifest["annotations"] = annotations;
        }
        manifest.to_string().into_bytes()
    }

    fn file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.root.join(name);
        Ok(std::fs::write(&path, bytes).map_err(Io::at("writing", &path))?)
    }

    fn blob(&self, bytes: &[u8]) -> Result<Written> {
        let digest = Digest::of(bytes);
        self.file(&format!("blobs/sha256/{}", digest.hex()), bytes)?;
        Ok(Written {
            digest,
            size: bytes.len() as u64,
        })
    }

    /// Writes the blob of a layer of the image, whose tar must come out as it was.
    fn recorded_layer(
        &self,
        index: usize,
        record: &format::LayerRecord,
    ) -> Result<(Written, Digest)> {
        let (blob, found) = self.layer(index, &mut |out| write_tar(self.rootfs, record, out))?;
        let wanted = Digest(record.diff_id);
        if found != wanted {
            let reason = Mismatch::DiffId {
                found: found.to_string(),
                wanted: wanted.to_string(),
            };
            return Err(Error::Mismatch {
                name: format!("layer {}", index + 1),
                reason,
            });
        }
        Ok((blob, found))
    }

    /// Writes a layer's blob; the blob, and the digest of its tar.
    fn layer(
        &self,
        index: usize,
        make: &mut dyn FnMut(&mut dyn Write) -> Result<(), WriteError>,
    ) -> Result<(Written, Digest)> {
        let temp = self.root.join(format!("blobs/sha256/layer-{index}"));
        let writing = || Io::at("writing", &temp);
        let file = File::create(&temp).map_err(writing())?;
        let blob = Hashed::new(BufWriter::with_capacity(1 << 18, file));
        // The compressors' headers contain no time and no name, so the same layer gives the same
        // blob.
        let (blob, diff_id) = match self.compression {
            Compression::None => self.tar(blob, &temp, make)?,
            Compression::Gzip => {
                let gzip = GzEncoder::new(blob, flate2::Compression::new(GZIP_LEVEL));
                let (gzip, diff_id) = self.tar(gzip, &temp, make)?;
                (gzip.finish().map_err(writing())?, diff_id)
            }
            Compression::Zstd => {
                let zstd = zstd::stream::write::Encoder::new(blob, ZSTD_LEVEL).map_err(writing())?;
                let (zstd, diff_id) = self.tar(zstd, &temp, make)?;
                (zstd.finish().map_err(writing())?, diff_id)
            }
        };
        let Hashed { mut out, hash, len } = blob;
        out.flush().map_err(writing())?;
        let digest = Digest(hash.finalize().into());
        let path = self.root.join(format!("blobs/sha256/{}", digest.hex()));
        std::fs::rename(&temp, &path).map_err(Io::at("writing", &path))?;
        Ok((Written { digest, size: len }, diff_id))
    }

    /// Writes a layer's tar to `out`, which goes into the file `temp`; `out` again, and the tar's
    /// digest.
    fn tar<W: Write>(
        &self,
        out: W,
        temp: &Path,
        make: &mut dyn FnMut(&mut dyn Write) -> Result<(), WriteError>,
    ) -> Result<(W, Digest)> {
        let mut tar = Hashed::new(out);
        make(&mut Counted {
            out: &mut tar,
            progress: self.progress,
        })
        .map_err(|e| e.with_output(temp))?;
        Ok((tar.out, Digest(tar.hash.finalize().into())))
    }
}

/// Hashes what is written.
struct Hashed<W> {
    out: W,
    hash: Sha256,
    len: u64,
}

impl<W> Hashed<W> {
    fn new(out: W) -> Self {
        Self {
            out,
            hash: Sha256::new(),
            len: 0,
        }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.out.write(buf)?;
        self.hash.update(&buf[..n]);
        self.len += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Tells how much was written.
struct Counted<'a> {
    out: &'a mut dyn Write,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl Write for Counted<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.out.write(buf)?;
        (self.progress)(n as u64);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
