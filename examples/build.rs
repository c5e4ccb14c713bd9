//! Builds an image from a directory, an OCI layout or an archive: `cargo run --example build SOURCE
//! IMAGE`.

use std::error::Error;
use std::path::PathBuf;

use lxcri_fs::image::Build;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(source), Some(image)) = (args.next(), args.next()) else {
        return Err("usage: build SOURCE IMAGE".into());
    };
    let built = Build::of(&source).to_file(&image, &())?;
    println!("{} bytes, {} layers", built.image.len, built.layers.len());
    Ok(())
}
