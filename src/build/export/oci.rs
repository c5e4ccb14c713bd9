//! An OCI image layout: the layers byte for byte as they were, so that their diff_ids and the image's ID stay the same.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use bfc::rootfs::format;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{WriteError, tree_tar, write_tar};
use crate::build::config::{LayerFact, config};
use crate::build::digest::Digest;
use crate::build::error::{Error, Mismatch, Result};
use crate::build::sources::Platform;
use crate::fs::{self, Rootfs};

const GZIP_LEVEL: u32 = 6;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Writes the image as an OCI layout into `dir`, which is made. An image without layers (a plain v1 one) gets one, of its tree.
/// When something goes wrong, `dir` is not there.
///
/// # Errors
/// [`Error::Mismatch`] when a layer does not come out with its diff_id; [`Error`] for the image and for the files.
pub fn oci_layout(rootfs: &Rootfs, dir: &Path, uncompressed: bool, progress: &(dyn Fn(u64) + Sync)) -> Result<()> {
    let parent = crate::build::parent(dir);
    if dir.symlink_metadata().is_ok() {
        return Err(Error::io("making", dir)(io::ErrorKind::AlreadyExists.into()));
    }
    let temp = tempfile::Builder::new()
        .prefix(".lxcri-fs-export.")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir_in(&parent)
        .map_err(Error::io("making a directory in", &parent))?;
    Layout { rootfs, root: temp.path(), uncompressed, progress }.write()?;
    // Kept from here on, under its own name.
    std::fs::rename(temp.path(), dir).map_err(Error::io("making", dir))?;
    let _ = temp.keep();
    Ok(())
}

/// How many bytes of progress [`oci_layout`] will report.
pub fn oci_layout_size(rootfs: &Rootfs) -> u64 {
    match rootfs.section().layers() {
        Ok(layers) if !layers.is_empty() => layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.tar_size)),
        _ => rootfs.content_bytes(),
    }
}

struct Layout<'a> {
    rootfs: &'a Rootfs,
    root: &'a Path,
    uncompressed: bool,
    progress: &'a (dyn Fn(u64) + Sync),
}

/// A blob that was written.
struct Written {
    digest: Digest,
    size: u64,
}

impl Layout<'_> {
    fn write(&self) -> Result<()> {
        let blobs = self.root.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).map_err(Error::io("making", &blobs))?;
        let image = self.rootfs.paths().next().unwrap_or(Path::new("image")).to_owned();
        let failed = |source| Error::Fs(fs::Error::Image { image: image.clone(), source });
        let section = self.rootfs.section();
        let records = section.layers().map_err(failed)?;
        let mut made = Vec::new();
        // Compression is what takes the time: as many layers at once as there are cores.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        for (first, some) in records.chunks(cores).enumerate().map(|(chunk, some)| (chunk * cores, some)) {
            let results: Vec<_> = std::thread::scope(|scope| {
                let start = |(at, record)| scope.spawn(move || self.recorded_layer(first + at, record));
                let threads: Vec<_> = some.iter().enumerate().map(start).collect();
                threads.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
            });
            for result in results {
                made.push(result?);
            }
        }
        if records.is_empty() {
            made.push(self.layer(0, &mut |out| tree_tar(self.rootfs, out, &|_| ()))?);
        }
        let (layers, diff_ids): (Vec<_>, Vec<_>) = made.into_iter().unzip();
        let found = section.blob(section.header().config).map_err(failed)?;
        let facts: Vec<_> = diff_ids.iter().map(|&diff_id| LayerFact { diff_id, created_by: b"lxcri-fs export" }).collect();
        let config = config(&found, &facts, &Platform::host())?;
        let config = self.blob(&config)?;
        let manifest = self.manifest(&section.blob(section.header().manifest).map_err(failed)?, &config, &layers);
        let manifest_blob = self.blob(&manifest)?;
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": MANIFEST,
                "digest": manifest_blob.digest.to_string(),
                "size": manifest_blob.size,
                "annotations": { "org.opencontainers.image.ref.name": "latest" },
            }],
        });
        self.file("index.json", index.to_string().as_bytes())?;
        self.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
    }

    /// The manifest: annotations as they were found, everything else of the blobs that are there now.
    fn manifest(&self, found: &[u8], config: &Written, layers: &[Written]) -> Vec<u8> {
        let media_type = if self.uncompressed { LAYER.to_owned() } else { format!("{LAYER}+gzip") };
        let descriptor =
            |media_type: &str, blob: &Written| json!({ "mediaType": media_type, "digest": blob.digest.to_string(), "size": blob.size });
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, config),
            "layers": layers.iter().map(|blob| descriptor(&media_type, blob)).collect::<Vec<_>>(),
        });
        let annotations = serde_json::from_slice::<Value>(found).ok().and_then(|m| m.get("annotations").cloned());
        if let Some(annotations) = annotations.filter(Value::is_object) {
            manifest["annotations"] = annotations;
        }
        manifest.to_string().into_bytes()
    }

    fn file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.root.join(name);
        std::fs::write(&path, bytes).map_err(Error::io("writing", &path))
    }

    fn blob(&self, bytes: &[u8]) -> Result<Written> {
        let digest = Digest::of(bytes);
        self.file(&format!("blobs/sha256/{}", digest.hex()), bytes)?;
        Ok(Written { digest, size: bytes.len() as u64 })
    }

    /// Writes the blob of a layer of the image, whose tar must come out as it was.
    fn recorded_layer(&self, index: usize, record: &format::Layer) -> Result<(Written, Digest)> {
        let (blob, found) = self.layer(index, &mut |out| write_tar(self.rootfs, record, out))?;
        let wanted = Digest(record.diff_id);
        if found != wanted {
            let reason = Mismatch::DiffId { found: found.to_string(), wanted: wanted.to_string() };
            return Err(Error::Mismatch { name: format!("layer {}", index + 1), reason });
        }
        Ok((blob, found))
    }

    /// Writes a layer's blob; the blob, and the digest of its tar.
    fn layer(&self, index: usize, make: &mut dyn FnMut(&mut dyn Write) -> Result<(), WriteError>) -> Result<(Written, Digest)> {
        let temp = self.root.join(format!("blobs/sha256/layer-{index}"));
        let writing = || Error::io("writing", &temp);
        let file = File::create(&temp).map_err(writing())?;
        let blob = Hashed::new(BufWriter::with_capacity(1 << 18, file));
        let (blob, diff_id) = if self.uncompressed {
            let mut tar = Hashed::new(blob);
            make(&mut Counted { out: &mut tar, progress: self.progress }).map_err(|e| e.with_output(&temp))?;
            (tar.out, Digest(tar.hash.finalize().into()))
        } else {
            // No time and no name in its header: the same layer gives the same blob.
            let mut tar = Hashed::new(GzEncoder::new(blob, flate2::Compression::new(GZIP_LEVEL)));
            make(&mut Counted { out: &mut tar, progress: self.progress }).map_err(|e| e.with_output(&temp))?;
            (tar.out.finish().map_err(writing())?, Digest(tar.hash.finalize().into()))
        };
        let Hashed { mut out, hash, len } = blob;
        out.flush().map_err(writing())?;
        let digest = Digest(hash.finalize().into());
        let path = self.root.join(format!("blobs/sha256/{}", digest.hex()));
        std::fs::rename(&temp, &path).map_err(Error::io("writing", &path))?;
        Ok((Written { digest, size: len }, diff_id))
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
        Self { out, hash: Sha256::new(), len: 0 }
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
