//! Mounts an image with an upper in a directory, until it reads a line: `cargo run --example mount
//! IMAGE UPPER DIR`. Run it as root.

use std::error::Error;
use std::path::{Path, PathBuf};

use lxcri_fs::image::Mount;
use lxcri_fs::serve::unmount::unmount;
use lxcri_fs::upper::Upper;

fn main() -> Result<(), Box<dyn Error>> {
    // The processes that serve the mount are this program, started again.
    if let Some(code) = lxcri_fs::run_as_daemon() {
        std::process::exit(code.into());
    }
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let [image, upper, dir] = &args[..] else {
        return Err("usage: mount IMAGE UPPER DIR".into());
    };
    let dir = PathBuf::from(dir);
    let mut mount = Mount::of(Path::new(image))?;
    mount.upper = Some(Upper::parse(upper)?);
    mount.at(&dir)?;
    println!("{} is mounted; Enter unmounts it", dir.display());
    std::io::stdin().read_line(&mut String::new())?;
    unmount(&dir, Default::default())?;
    Ok(())
}
