//! `lxcri-fs export`

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::error::Error;
use super::open::ImageArgs;
use super::progress::Progress;
use crate::build::export;
use crate::fs::Options;

/// Export an image as a tar of its tree, or as an OCI image
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  lxcri-fs export debian.bfc --tar - | tar -x --xattrs --xattrs-include='*' -C rootfs\n  lxcri-fs export debian.bfc --oci debian-oci"
)]
pub struct ExportArgs {
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    target: Target,
    /// Do not compress the layers of an OCI image
    #[arg(long, requires = "oci")]
    uncompressed: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Target {
    /// Write an OCI image layout into DIR, which does not exist: its layers as they were when the image was built
    #[arg(long, value_name = "DIR")]
    oci: Option<PathBuf>,
    /// Write the merged tree as a tar (- is standard output)
    #[arg(long, value_name = "FILE")]
    tar: Option<PathBuf>,
}

pub fn run(args: &ExportArgs) -> Result<(), Error> {
    let rootfs = args.image.open(&Options::default())?;
    let progress = Progress::bytes("Exporting", rootfs.content_bytes());
    if let Some(path) = &args.target.tar {
        let out: Box<dyn Write> = if path == Path::new("-") {
            Box::new(std::io::stdout().lock())
        } else {
            Box::new(File::create_new(path).map_err(Error::io("writing", path))?)
        };
        let mut out = BufWriter::with_capacity(1 << 18, out);
        let written = export::tree_tar(&rootfs, &mut out, &|n| progress.add(n)).map_err(|e| e.with_output(path));
        progress.finish();
        written?;
        return out.flush().map_err(Error::io("writing", path));
    }
    if let Some(dir) = &args.target.oci {
        let written = export::oci_layout(&rootfs, dir, args.uncompressed, &|n| progress.add(n));
        progress.finish();
        written?;
    }
    Ok(())
}
