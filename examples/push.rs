//! Pushes an image file to a registry, as an OCI image: `cargo run --example push IMAGE REFERENCE`.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use lxcri_fs::image::{Layers, Push};
use lxcri_fs::registry::pull::parse;
use lxcri_fs::store::Config;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [image, reference] = &args[..] else {
        return Err("usage: push IMAGE REFERENCE".into());
    };
    let rootfs = lxcri_fs::image::open(Path::new(image), None)?;
    let reference = parse(reference)?;
    let push = Push {
        reference: &reference,
        registries: &Config::load(None)?.registries.value,
        observer: Arc::new(()),
    };
    let layers = Layers {
        came_from: None,
        compression: None,
        store: None,
        temp_dir: std::env::temp_dir(),
    };
    let digest = push.layers(&rootfs, &layers, &())?;
    println!("{}@{digest}", reference.whole());
    Ok(())
}
