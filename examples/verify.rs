//! Checks everything in an image: `cargo run --example verify IMAGE`.

use std::error::Error;
use std::path::PathBuf;

use lxcri_fs::fs::verify;

fn main() -> Result<(), Box<dyn Error>> {
    let image = std::env::args_os()
        .nth(1)
        .map(PathBuf::from)
        .ok_or("usage: verify IMAGE")?;
    let rootfs = lxcri_fs::image::open(&image, None)?;
    let verified = verify(&rootfs, &|_| ());
    for damage in &verified.damage {
        println!(
            "{}: {}",
            String::from_utf8_lossy(&damage.path),
            damage.error
        );
    }
    println!(
        "{} entries, {} bytes, damaged in {} places",
        verified.entries,
        verified.bytes,
        verified.damage.len()
    );
    if verified.damage.is_empty() {
        Ok(())
    } else {
        Err("the image is damaged".into())
    }
}
