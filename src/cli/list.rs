//! `lxcri-fs list`

use std::io::Write;

use clap::Args;
use serde::Serialize;

use super::error::{Error, Exit};
use super::format::Format;
use super::output::{all_or, lines, size, time};
use super::store::StoreArgs;
use crate::error::Report;
use crate::error::chain;
use crate::store::{self, Name, StoredImage, Usage};

/// List the images in the store
///
/// SIZE is the space that an image takes. OWN is the part of it that no other image shares, which
/// removing the image frees.
#[derive(Debug, Args)]
#[command(
    visible_alias = "images",
    after_help = "\
Examples:
  lxcri-fs list
  lxcri-fs rm $(lxcri-fs list -q)
  lxcri-fs list --format 'table {{.ID}}\\t{{.Reference}}\\t{{.Bytes}}'
  lxcri-fs list --json | jq -r .references[]"
)]
pub(super) struct ListArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// Print digests only
    #[arg(short, long, conflicts_with_all = ["json", "format"])]
    quiet: bool,
    /// Print one JSON object for each image
    #[arg(long)]
    json: bool,
    /// Print each image in this form: text with fields of the JSON object, such as `{{.Reference}}`
    /// and `{{json .Layers}}`; after `table`, as columns that `\t` divides; or `json`
    #[arg(long, conflicts_with = "json", value_parser = |text: &str| Format::parse(text, FIELDS))]
    format: Option<Format>,
}

/// The fields of [`Row`].
const FIELDS: &[&str] = &[
    "id",
    "reference",
    "references",
    "name",
    "path",
    "root_digest",
    "manifest_digest",
    "created",
    "layers",
    "compression",
    "encryption",
    "size",
    "bytes",
    "own_bytes",
    "shared_bytes",
    "parent",
    "trust",
];

/// An image as `--json` prints it.
#[derive(Serialize)]
struct Row<'a> {
    /// As many digits of the root digest as commands need.
    id: &'a str,
    /// The first name, as it is typed.
    reference: Option<&'a str>,
    name: &'a str,
    path: String,
    references: Vec<&'a str>,
    root_digest: String,
    manifest_digest: Option<String>,
    created: String,
    layers: Vec<String>,
    compression: &'a str,
    encryption: &'a str,
    /// Length of the file, bytes.
    size: u64,
    /// Space that it takes on disk, bytes.
    bytes: u64,
    own_bytes: u64,
    shared_bytes: u64,
    /// The image that it was cloned from.
    parent: Option<&'a str>,
    /// `signed` or `accepted`, if it was pulled.
    trust: Option<&'static str>,
}

pub(super) fn run(args: &ListArgs) -> Result<(), Error> {
    let store = args.store.open()?;
    let scan = store.scan()?;
    let images = scan.images;
    let mut out = lines();
    let mut rows = Vec::new();
    let as_rows = args.json || args.format.is_some();
    if !as_rows && !args.quiet {
        writeln!(
            out,
            "{:<40} {:<12}  {:<16} {:>6} {:>10} {:>10}  TRUST",
            "REFERENCE", "DIGEST", "CREATED (UTC)", "LAYERS", "SIZE", "OWN"
        )
        .map_err(Error::Output)?;
    }
    for image in &images {
        if args.quiet {
            writeln!(out, "{}", image.facts.short_digest()).map_err(Error::Output)?;
            continue;
        }
        // Another process may have removed it meanwhile.
        let Ok(usage) = store.usage_of(image) else {
            continue;
        };
        if as_rows {
            rows.push(row(image, usage));
        } else {
            print(&mut out, image, usage).map_err(Error::Output)?;
        }
    }
    args.format.as_ref().unwrap_or(&Format::Json).print(&rows)?;
    // A broken directory that holds no image hides none; `doctor` reports it.
    let is_hidden = |error: &store::Error| match error {
        store::Error::Io(e) => e.kind() != std::io::ErrorKind::NotFound,
        _ => true,
    };
    let hidden = scan
        .broken
        .into_iter()
        .filter(|(_, error)| is_hidden(error));
    let hidden: Vec<Error> = hidden
        .map(|(name, error)| unlisted(&name, &error))
        .collect();
    let all = images.len() + hidden.len();
    // One failure is reported by itself, several with their number.
    all_or(hidden, all.min(2), "images cannot be shown")
}

/// The error for an image that is in the store and cannot be read.
fn unlisted(name: &Name, error: &store::Error) -> Error {
    let hint = match error {
        store::Error::Zfs(error) if error.is_out_of_reach() => error.hint(),
        _ => Some("`lxcri-fs doctor` shows what is wrong".to_owned()),
    };
    let exit = if error.is_wrong() {
        Exit::Damaged
    } else {
        Exit::Failure
    };
    Error::Other {
        message: format!("image {name} cannot be shown: {}", chain(error)),
        hint,
        exit,
    }
}

fn print(out: &mut impl Write, image: &StoredImage, usage: Usage) -> std::io::Result<()> {
    let facts = &image.facts;
    let first = facts.refs.first().map_or("<none>", |r| r.familiar());
    let (digest, created, layers) = (
        facts.short_digest(),
        time(facts.created.as_second()),
        facts.layers.len(),
    );
    writeln!(
        out,
        "{first:<40} {digest:<12}  {created:<16} {layers:>6} {:>10} {:>10}  {}",
        size(usage.bytes),
        size(usage.own()),
        trust(image).unwrap_or("local")
    )?;
    facts
        .refs
        .iter()
        .skip(1)
        .try_for_each(|reference| writeln!(out, "{:<40} {digest:<12}", reference.familiar()))
}

/// How it was accepted when it was pulled; none if it was built here.
fn trust(image: &StoredImage) -> Option<&'static str> {
    let is_signed = image
        .facts
        .trust
        .iter()
        .any(|verdict| verdict.key.is_some());
    let accepted = if is_signed { "signed" } else { "accepted" };
    (!image.facts.trust.is_empty()).then_some(accepted)
}

fn row(image: &StoredImage, usage: Usage) -> Row<'_> {
    let facts = &image.facts;
    Row {
        id: facts.short_digest(),
        reference: facts.refs.first().map(|r| r.familiar()),
        name: image.name.as_str(),
        path: image.path.display().to_string(),
        references: facts.refs.iter().map(|r| r.as_str()).collect(),
        root_digest: format!("blake3:{}", facts.root_digest),
        manifest_digest: facts.manifest_digest.map(|d| d.to_string()),
        created: facts.created.to_string(),
        layers: facts.layers.iter().map(ToString::to_string).collect(),
        compression: &facts.compression,
        encryption: &facts.encryption,
        size: facts.size,
        bytes: usage.bytes,
        own_bytes: usage.own(),
        shared_bytes: usage.shared,
        parent: image.parent.as_ref().map(|p| p.as_str()),
        trust: trust(image),
    }
}
