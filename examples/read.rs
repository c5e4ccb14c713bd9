//! Prints a file from an image without mounting it: `cargo run --example read IMAGE PATH`.
#![allow(clippy::disallowed_methods)] // The bytes of the file, as they are.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(image), Some(path)) = (args.next(), args.next()) else {
        return Err("usage: read IMAGE PATH".into());
    };
    let rootfs = lxcri_fs::image::open(&image, None)?;
    let (ino, _) = rootfs.resolve(&path)?;
    rootfs.copy(ino, &mut std::io::stdout())?;
    Ok(())
}
