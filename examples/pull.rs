//! Pulls an image from a registry into a store: `cargo run --example pull REFERENCE DIR`.

use std::error::Error;

use lxcri_fs::image::Pull;
use lxcri_fs::registry::pull::parse;
use lxcri_fs::store::{Config, Store};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [reference, dir] = &args[..] else {
        return Err("usage: pull REFERENCE DIR".into());
    };
    let config = Config::load(Some(&format!("dir:{dir}").parse()?))?;
    let store = Store::open(&config)?;
    let reference = parse(reference)?;
    let pull = Pull {
        registries: config.registries.value,
        ..Pull::of(&reference)
    };
    let pulled = pull.to_store(&store, &reference.whole().parse()?, true, &())?;
    println!(
        "{}: {} bytes, root digest {}",
        reference.whole(),
        pulled.facts.size,
        pulled.facts.root_digest
    );
    Ok(())
}
