//! `lxcri-fs verify`

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::error::{Error, Exit};
use super::open::ImageArgs;
use super::output::{json, printable, size};
use super::progress::Progress;
use crate::fs::{Options, verify};
use crate::serve::chain;

/// Check everything in an image: structures, checksums, tags, every file's content
#[derive(Debug, Args)]
#[command(after_help = "Example: lxcri-fs verify debian.bfc && echo sound")]
pub struct VerifyArgs {
    #[command(flatten)]
    image: ImageArgs,
    /// The result as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    image: &'a PathBuf,
    sound: bool,
    entries: u64,
    contents: u64,
    bytes: u64,
    damage: Vec<(String, String)>,
}

pub fn run(args: &VerifyArgs) -> Result<(), Error> {
    let rootfs = args.image.open(&Options { check_hash: true, ..Options::default() })?;
    let progress = Progress::bytes("Verifying", rootfs.content_bytes());
    let verified = verify(&rootfs, &|n| progress.add(n));
    progress.finish();
    let sound = verified.damage.is_empty();
    let damage: Vec<_> = verified.damage.iter().map(|d| (printable(&d.path), chain(&d.error))).collect();
    let count = damage.len();
    if args.json {
        let (entries, contents, bytes) = (verified.entries, verified.contents, verified.bytes);
        json(&Report { image: &args.image.image, sound, entries, contents, bytes, damage })?;
    } else {
        for (path, what) in &damage {
            println!("{}: {what}", if path.is_empty() { "(image)" } else { path });
        }
        if sound {
            println!("{}: sound: {} entries, {} of content", args.image.image.display(), verified.entries, size(verified.bytes));
        }
    }
    if sound {
        return Ok(());
    }
    Err(Error::Other {
        message: format!("{} is damaged in {count} place{}", args.image.image.display(), if count == 1 { "" } else { "s" }),
        hint: Some("what is not listed can still be read; fetch or build the image again".into()),
        exit: Exit::Damaged,
    })
}
