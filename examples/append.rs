//! Appends a directory to an image file as a new layer: `cargo run --example append IMAGE DIR`.

use std::error::Error;
use std::path::Path;

use bfc::writer::WriteOptions;
use lxcri_fs::build::sources::SourceOptions;
use lxcri_fs::build::{AppendOptions, MAX_SIZE, Platform, parent};
use lxcri_fs::image::{InPlace, Sources};
use lxcri_fs::registry::Registries;
use lxcri_fs::runtime::record::images;
use lxcri_fs::store::{Config, Store};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let [image, dir] = &args[..] else {
        return Err("usage: append IMAGE DIR".into());
    };
    let image = Path::new(image);
    let store = Store::open(&Config::load(None)?)?;
    // Fails if an upper fits only the image as it is now.
    let target = InPlace::check(&store, image, None, &images(&store), false)?;
    let sources = SourceOptions {
        platform: Platform::host(),
        secret: None,
        temp_dir: parent(image),
        max_size: MAX_SIZE,
    };
    let layers = Sources::open(std::slice::from_ref(dir), &sources, &Registries::default())?;
    let options = AppendOptions {
        write: WriteOptions::default(),
        secret: None,
        sources,
        changes: Vec::new(),
    };
    let built = target.append(layers, &options, &())?;
    println!("{} bytes, {} layers", built.image.len, built.layers.len());
    Ok(())
}
