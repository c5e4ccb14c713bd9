//! `lxcri-fs containers`

use std::io::Write;

use clap::Args;
use serde::Serialize;

use super::colour;
use super::error::{Error, Exit};
use super::format::Format;
use super::output::{count, lines, moment, printable, size, time};
use super::store::StoreArgs;
use crate::error::chain;
use crate::runtime::record::{Runtime, UpperLocation};
use crate::runtime::status::{self, Listed, Status};
use crate::store::Store;

/// List the containers in the store
///
/// WRITTEN is the space that a container takes in the store.
#[derive(Debug, Args)]
#[command(after_help = "\
Status: created (not mounted); mounted; running; dead (no process serves its mount any more); hung
(its mount does not answer); gone (somebody removed its runtime's configuration); unfinished or
deleting (in progress, or interrupted); kept (deleted, but not what it wrote); damaged.

Examples:
  lxcri-fs containers
  lxcri-fs containers -q | xargs -n 1 lxcri-fs inspect
  lxcri-fs containers --format '{{.Name}}: {{.Status}}, {{.Image}}'
  lxcri-fs containers --outdated
  lxcri-fs containers --json | jq -r 'select(.image.is_current == false).name'")]
pub(super) struct ContainersArgs {
    /// Print names only
    #[arg(short, long, conflicts_with_all = ["json", "format"])]
    quiet: bool,
    /// Only those whose image's name means another image now; if there are any, the exit code is 7
    #[arg(long, conflicts_with = "quiet")]
    outdated: bool,
    /// Print one JSON object for each container
    #[arg(long)]
    json: bool,
    /// Print each container in this form: text with fields of the JSON object, such as `{{.Name}}`
    /// and `{{.Image.Path}}`; after `table`, as columns that `\t` divides; or `json`
    #[arg(long, conflicts_with = "json", value_parser = |text: &str| Format::parse(text, FIELDS))]
    format: Option<Format>,
    #[command(flatten)]
    store: StoreArgs,
}

/// The fields of [`Row`].
const FIELDS: &[&str] = &[
    "name",
    "status",
    "image",
    "image.name",
    "image.path",
    "image.root_digest",
    "image.is_current",
    "previous",
    "previous.name",
    "previous.root_digest",
    "previous.left",
    "auto_update",
    "runtime",
    "configuration",
    "root",
    "processes",
    "upper",
    "volumes",
    "written_bytes",
    "created",
    "error",
];

#[derive(Serialize)]
struct Row {
    name: String,
    status: Status,
    image: Option<Image>,
    /// What `rollback` goes back to.
    previous: Option<Previous>,
    /// Whether `update --all --filter auto=on` updates it.
    auto_update: bool,
    /// `lxc` or `oci`.
    runtime: Option<&'static str>,
    /// The runtime's configuration.
    configuration: Option<String>,
    root: Option<String>,
    /// How many processes use its root file system.
    processes: usize,
    /// Where it writes: its directory in the store, another place, or `memory`.
    upper: Option<String>,
    /// Where its volumes are mounted in the container.
    volumes: Vec<String>,
    /// Space that it takes in the store, bytes.
    written_bytes: Option<u64>,
    /// When it was created.
    created: Option<String>,
    /// The same, seconds since 1970.
    #[serde(skip)]
    created_at: Option<i64>,
    /// Why nothing is known about it.
    error: Option<String>,
}

#[derive(Serialize)]
struct Image {
    /// As `create` was given it.
    name: String,
    path: String,
    root_digest: Option<String>,
    /// Whether the name still means this image; null if it was a file.
    is_current: Option<bool>,
}

#[derive(Serialize)]
struct Previous {
    name: String,
    root_digest: Option<String>,
    /// When the container left it.
    left: Option<String>,
}

pub(super) fn run(args: &ContainersArgs) -> Result<(), Error> {
    let store = args.store.open()?;
    let mut out = lines();
    if args.quiet {
        let mut containers = store.containers()?.into_iter();
        return containers
            .try_for_each(|container| writeln!(out, "{}", container.name))
            .map_err(Error::Output);
    }
    let all = status::all(&store)?;
    let listed = all
        .iter()
        .filter(|listed| !args.outdated || listed.is_current == Some(false));
    let rows: Vec<Row> = listed.map(|listed| row(listed, &store)).collect();
    if args.json || args.format.is_some() {
        args.format.as_ref().unwrap_or(&Format::Json).print(&rows)?;
    } else {
        print(&rows).map_err(Error::Output)?;
    }
    if !args.outdated || rows.is_empty() {
        return Ok(());
    }
    let behind = count(rows.len() as u64, "container is", "containers are");
    Err(Error::Other {
        message: format!("{behind} behind"),
        hint: Some("`lxcri-fs update --all` updates them".to_owned()),
        exit: Exit::Outdated,
    })
}

fn row(listed: &Listed, store: &Store) -> Row {
    let text = |path: &std::path::Path| printable(path.as_os_str().as_encoded_bytes());
    let record = listed.record.as_ref().ok();
    let created_at = record.and_then(|record| i64::try_from(record.created).ok());
    let upper = record.map(|record| match &record.upper {
        UpperLocation::Store => text(&listed.container.path),
        UpperLocation::Elsewhere(place) => place.clone(),
        UpperLocation::Ephemeral { .. } => "memory".to_owned(),
    });
    Row {
        name: listed.container.name.to_string(),
        status: listed.status,
        image: record.map(|record| Image {
            name: record.image.name.clone(),
            path: text(&record.image.path),
            root_digest: record.image.root_digest.clone(),
            is_current: listed.is_current,
        }),
        previous: record
            .and_then(|record| record.previous.as_ref())
            .map(|previous| Previous {
                name: previous.image.name.clone(),
                root_digest: previous.image.root_digest.clone(),
                left: i64::try_from(previous.left)
                    .ok()
                    .and_then(|at| moment(at, 0)),
            }),
        auto_update: record.is_some_and(|record| record.auto_update),
        runtime: record.map(|record| match record.runtime {
            Runtime::Lxc { .. } => "lxc",
            Runtime::Bundle { .. } => "oci",
        }),
        configuration: record.map(|record| text(&record.runtime.config())),
        root: record.map(|record| text(&record.runtime.root())),
        processes: listed.processes,
        upper,
        volumes: record.map_or_else(Vec::new, |record| {
            let volumes = record.volumes.iter();
            volumes.map(|volume| volume.destination.clone()).collect()
        }),
        // Another process may have removed it meanwhile.
        written_bytes: listed.written(store).unwrap_or(None),
        created: created_at.and_then(|at| moment(at, 0)),
        created_at,
        error: listed.record.as_ref().err().map(|error| chain(error)),
    }
}

fn print(rows: &[Row]) -> std::io::Result<()> {
    let mut out = lines();
    writeln!(
        out,
        "{:<20} {:<10} {:<7} {:>10}  {:<16}  IMAGE",
        "NAME", "STATUS", "RUNTIME", "WRITTEN", "CREATED (UTC)"
    )?;
    for row in rows {
        let written = match (&row.upper, row.written_bytes) {
            (_, Some(bytes)) => size(bytes),
            (Some(upper), None) if upper == "memory" => upper.clone(),
            _ => "elsewhere".to_owned(),
        };
        let created = row.created_at.map(time);
        let image = row.image.as_ref().map_or("-", |image| &image.name);
        let moved = match row.image.as_ref().and_then(|image| image.is_current) {
            Some(false) => " (the name means another image now)",
            _ => "",
        };
        write!(out, "{:<20} ", row.name)?;
        out.paint(style(row.status), &format!("{:<10}", row.status.name()))?;
        writeln!(
            out,
            " {:<7} {written:>10}  {:<16}  {image}{moved}",
            row.runtime.unwrap_or("-"),
            created.as_deref().unwrap_or("-"),
        )?;
        if let Some(previous) = &row.previous {
            let name = printable(previous.name.as_bytes());
            let digest = previous.root_digest.as_deref().unwrap_or_default();
            let digest = digest.get(.."blake3:".len() + 12).unwrap_or(digest);
            writeln!(out, "{:>8}can go back to {name} ({digest})", "")?;
        }
        if let Some(explained) = explain(row) {
            writeln!(out, "{:>8}{explained}", "")?;
        }
    }
    Ok(())
}

fn style(status: Status) -> anstyle::Style {
    match status {
        Status::Running => colour::GOOD,
        Status::Created | Status::Mounted | Status::Kept => colour::PLAIN,
        Status::Gone | Status::Unfinished | Status::Deleting => colour::NOTE,
        Status::Dead | Status::Hung | Status::Damaged => colour::BAD,
    }
}

/// What an abnormal state means, and what to do about it.
fn explain(row: &Row) -> Option<String> {
    let name = &row.name;
    Some(match row.status {
        Status::Created | Status::Mounted | Status::Running => return None,
        Status::Dead => "no process serves its mount any more: `lxcri-fs mount --all` mounts it \
                         again"
            .to_owned(),
        Status::Hung => "its mount does not answer: `lxcri-fs ps` shows since when".to_owned(),
        Status::Gone => {
            let configuration = row.configuration.as_deref().unwrap_or_default();
            format!(
                "something else removed {configuration}: `lxcri-fs delete {name}` removes the \
                 rest; add --keep to keep what it wrote"
            )
        }
        Status::Unfinished => format!(
            "its creation is in progress or was interrupted; in that case `lxcri-fs delete {name}` \
             removes the remains"
        ),
        Status::Deleting => format!(
            "its deletion is in progress or was interrupted; in that case `lxcri-fs delete {name}` \
             finishes it"
        ),
        Status::Kept => format!("`lxcri-fs create {name}` continues with what it wrote"),
        Status::Damaged => {
            let why = row.error.as_deref().unwrap_or("its record cannot be read");
            format!("{why}; `lxcri-fs doctor` tells more")
        }
    })
}
