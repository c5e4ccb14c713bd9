//! `lxcri-fs diff`

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::error::Error;
use super::output::{json, many_lines, printable};
use super::secret::SecretArgs;
use super::store::StoreArgs;
use super::upper_name::find;
use crate::build::sources::upper::Kind;
use crate::image::open_lower;

/// List what differs from the image: A added, C changed, D deleted
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs diff /mnt
  lxcri-fs diff web1
  lxcri-fs diff /srv/web1 --json
  lxcri-fs diff zfs:tank/web1")]
pub(super) struct DiffArgs {
    /// The container, where it is mounted, or its upper: a directory or `zfs:DATASET`
    #[arg(value_name = "UPPER")]
    upper: OsString,
    /// The image below the upper, if it has moved since it was mounted: a file, or the name of an
    /// image in the store; if there are several, the lowest first
    #[arg(value_name = "IMAGE")]
    images: Vec<PathBuf>,
    #[command(flatten)]
    secret: SecretArgs,
    #[command(flatten)]
    store: StoreArgs,
    /// Print one JSON object for each path
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    kind: char,
    /// The path from the container's root, with `\xNN` for bytes that are not UTF-8.
    path: String,
}

pub(super) fn run(args: &DiffArgs) -> Result<(), Error> {
    super::limits::raise_open_files();
    let written = find(&args.upper, &args.store)?;
    let record = written.record()?;
    let (images, _held) = args.store.open_images(&args.images)?;
    let image = open_lower(&record, &images, args.secret.load()?.as_ref())?;
    let changes = written.source(&record, Arc::new(image))?.changes()?;
    let mut out = many_lines();
    for (kind, path) in changes {
        let row = Row {
            kind: letter(kind),
            path: format!("/{}", printable(&path)),
        };
        if args.json {
            json(&row)?;
        } else {
            writeln!(out, "{} {}", row.kind, row.path).map_err(Error::Output)?;
        }
    }
    out.flush().map_err(Error::Output)
}

fn letter(kind: Kind) -> char {
    match kind {
        Kind::Added => 'A',
        Kind::Changed => 'C',
        Kind::Deleted => 'D',
    }
}
