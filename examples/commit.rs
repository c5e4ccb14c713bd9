//! Makes a new image of an upper and the image below it: `cargo run --example commit UPPER IMAGE`.
//! UPPER is a directory that is not mounted. Run it as root.

use std::error::Error;
use std::path::PathBuf;

use bfc::writer::WriteOptions;
use lxcri_fs::build::MAX_SIZE;
use lxcri_fs::image::Commit;
use lxcri_fs::upper::written::Written;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let [upper, image] = &args[..] else {
        return Err("usage: commit UPPER IMAGE".into());
    };
    let commit = Commit {
        written: Written::find(upper)?,
        images: Vec::new(),
        secret: None,
        message: "examples/commit".to_owned(),
        write: WriteOptions::default(),
        changes: Vec::new(),
        max_size: MAX_SIZE,
    };
    let built = commit.to_file(&PathBuf::from(image), false, &())?;
    println!("{} bytes, {} layers", built.image.len, built.layers.len());
    Ok(())
}
