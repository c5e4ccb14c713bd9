//! `lxcri-fs export`

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::error::Error;
use super::open::ImageArgs;
use super::progress::Work;
use crate::build::export;
use crate::build::export::Compression;
use crate::build::parent;
use crate::fs::{ImageOptions, Rootfs};
use crate::image::Events as _;
use crate::serve::confine::Kept;

/// Export an image as an OCI image layout, or its merged tree as a tar
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs export debian.bfc --tar - | tar -x --xattrs --xattrs-include='*' -C rootfs
  lxcri-fs export debian.bfc --oci debian-oci")]
pub(super) struct ExportArgs {
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    target: Target,
    /// Do not compress the layers of the OCI image (default: gzip)
    #[arg(long, requires = "oci")]
    uncompressed: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Target {
    /// Write an OCI image layout to DIR, which must not exist; its layers are those that the image
    /// was built from
    #[arg(long, value_name = "DIR")]
    oci: Option<PathBuf>,
    /// Write the merged tree as a tar to FILE (- is standard output)
    #[arg(long, value_name = "FILE")]
    tar: Option<PathBuf>,
}

pub(super) fn run(args: &ExportArgs) -> Result<(), Error> {
    let target = args
        .target
        .oci
        .as_deref()
        .or(args.target.tar.as_deref())
        .filter(|path| *path != Path::new("-"));
    // The output is written under a temporary name in the same directory.
    let kept = target.map_or_else(Kept::default, |path| Kept::default().below(&parent(path)));
    let rootfs = args.image.open_confined(&ImageOptions::default(), kept)?;
    let total = if args.target.oci.is_some() {
        export::oci_layout_size(&rootfs)
    } else {
        rootfs.content_bytes()
    };
    let progress = Work::begun("Exporting", total);
    let add = |n| progress.done(n);
    let compression = if args.uncompressed {
        Compression::None
    } else {
        Compression::Gzip
    };
    let written = match &args.target {
        Target {
            tar: Some(path), ..
        } if path == Path::new("-") => to_stdout(&rootfs, &add),
        Target {
            tar: Some(path), ..
        } => export::tree_tar_file(&rootfs, path, &add).map_err(Error::from),
        Target { oci: Some(dir), .. } => {
            export::oci_layout(&rootfs, dir, compression, &add).map_err(Error::from)
        }
        Target {
            oci: None,
            tar: None,
        } => Ok(()),
    };
    progress.ends();
    written
}

fn to_stdout(rootfs: &Rootfs, progress: &(dyn Fn(u64) + Sync)) -> Result<(), Error> {
    let mut out = BufWriter::with_capacity(1 << 18, super::output::bytes());
    export::tree_tar(rootfs, &mut out, progress).map_err(|e| match e {
        export::WriteError::Output(e) => Error::Output(e),
        other => other.with_output(Path::new("-")).into(),
    })?;
    out.flush().map_err(Error::Output)
}
