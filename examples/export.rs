//! Exports an image as an OCI layout: `cargo run --example export IMAGE DIR`.

use std::error::Error;
use std::path::PathBuf;

use lxcri_fs::build::export::Compression;
use lxcri_fs::build::export::oci_layout;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(image), Some(dir)) = (args.next(), args.next()) else {
        return Err("usage: export IMAGE DIR".into());
    };
    let rootfs = lxcri_fs::image::open(&image, None)?;
    oci_layout(&rootfs, &dir, Compression::Gzip, &|_| ())?;
    Ok(())
}
