//! BFC images as sources: with their original layers, or for a plain v1 image with its tree as one
//! layer.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use bfc::rootfs::format;

use super::{SourceImage, SourceLayer, SourceOptions, TarSource};
use crate::build::digest::Digest;
use crate::build::error::{Error, Result};
use crate::build::export::{WriteError, tree_tar, write_tar};
use crate::error::Io;
use crate::fs::{self, ImageFile, Rootfs};

/// Opens an image.
pub(super) fn open(path: &Path, options: &SourceOptions) -> Result<SourceImage> {
    let file = std::fs::File::open(path).map_err(Io::at("opening the image", path))?;
    let source = ImageFile {
        path: path.to_owned(),
        file,
        secret: options.secret.clone(),
    };
    // The build waits for it, and has the space anyway that the new image needs.
    let opening = fs::ImageOptions {
        temp_dir: options.temp_dir.clone(),
        spool_bytes: u64::MAX,
        ..fs::ImageOptions::default()
    };
    let rootfs = Arc::new(Rootfs::open(vec![source], &opening)?);
    let failed = |source| {
        Error::Fs(fs::Error::Image {
            image: path.to_owned(),
            source,
        })
    };
    let section = rootfs.section();
    let records = section.layers().map_err(failed)?;
    let name = path.display().to_string();
    if records.is_empty() {
        let size = rootfs.content_bytes();
        let layer = SourceLayer {
            name,
            created_by: Vec::new(),
            diff_id: None,
            size,
            compressed: false,
            tar: Box::new(TreeTar(rootfs)),
        };
        return Ok(SourceImage {
            layers: vec![layer],
            ..SourceImage::default()
        });
    }
    let blob = |region| {
        section
            .blob(region)
            .map(std::borrow::Cow::into_owned)
            .map_err(failed)
    };
    let (config, manifest) = (
        blob(section.header().config)?,
        blob(section.header().manifest)?,
    );
    let mut layers = Vec::new();
    for (index, record) in records.into_iter().enumerate() {
        layers.push(SourceLayer {
            name: format!("{} of {name}", index + 1),
            created_by: blob(record.created_by)?,
            diff_id: Some(Digest(record.diff_id)),
            size: record.tar_size,
            compressed: false,
            tar: Box::new(LayerTar {
                rootfs: rootfs.clone(),
                record,
            }),
        });
    }
    Ok(SourceImage {
        layers,
        config,
        manifest,
    })
}

struct TreeTar(Arc<Rootfs>);

impl TarSource for TreeTar {
    fn write_to(
        self: Box<Self>,
        out: &mut dyn Write,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        tree_tar(&self.0, out, progress).map_err(|e| e.with_output("packing".as_ref()))
    }
}

struct LayerTar {
    rootfs: Arc<Rootfs>,
    record: format::LayerRecord,
}

impl TarSource for LayerTar {
    fn write_to(
        self: Box<Self>,
        out: &mut dyn Write,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let mut counted = Counted { out, progress };
        write_tar(&self.rootfs, &self.record, &mut counted)
            .map_err(|e| e.with_output("packing".as_ref()))
    }
}

struct Counted<'a> {
    out: &'a mut dyn Write,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl Write for Counted<'_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let n = self.out.write(buf)?;
        (self.progress)(n as u64);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

impl WriteError {
    /// As an error of building, of writing `path`.
    pub fn with_output(self, path: &Path) -> Error {
        match self {
            Self::Fs(e) => e.into(),
            Self::Layer(source) => Error::Layer {
                name: path.display().to_string(),
                source,
            },
            Self::Output(source) => Io::at("writing", path)(source).into(),
        }
    }
}
