//! `lxcri-fs diff`

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::error::Error;
use super::open::open_images;
use super::output::{json, many_lines, printable};
use super::secret::SecretArgs;
use crate::build::sources::upper::Kind;
use crate::upper::written::Written;

/// Tell what differs from the image: A added, C changed, D deleted
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs diff /mnt
  lxcri-fs diff /srv/web1 --json
  lxcri-fs diff zfs:tank/web1")]
pub(super) struct DiffArgs {
    /// Where it is mounted, or the upper: its directory, or its dataset after `zfs:`
    #[arg(value_name = "DIR|UPPER")]
    upper: OsString,
    /// The image, when it is not where it was; of several, the lowest first
    #[arg(value_name = "IMAGE")]
    images: Vec<PathBuf>,
    #[command(flatten)]
    secret: SecretArgs,
    /// One JSON object per path
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    kind: char,
    /// From the root of the container; `\xNN` for bytes that are not UTF-8.
    path: String,
}

pub(super) fn run(args: &DiffArgs) -> Result<(), Error> {
    super::limits::raise_open_files();
    let written = Written::find(&args.upper)?;
    let record = written.record()?;
    let image = open_images(&record, &args.images, &args.secret)?;
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
