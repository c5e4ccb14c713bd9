//! `lxcri-fs inspect`.

use std::io::Write;

use clap::Args;
use serde::ser::Error as _;
use serde::{Serialize, Serializer};

use super::error::Error;
use super::output::{count, json, lines, moment, printable, time};
use super::store::StoreArgs;
use crate::runtime::delete::{detached, find, users};
use crate::runtime::record::{ContainerRecord, Runtime, State, UpperLocation};
use crate::runtime::root_mount::is_mounted;
use crate::runtime::status::{self, Status};
use crate::serve::answer::{self, Answer};
use crate::serve::mountpoint::mounted_at;

/// Show a container: its image, where it writes, whether it is mounted, and how many use it
#[derive(Debug, Args)]
#[command(after_help = "Example: lxcri-fs inspect web1 --json | jq -r .image.path")]
pub(super) struct InspectArgs {
    /// The container's name
    #[arg(value_name = "NAME")]
    name: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, Serialize)]
struct Inspected<'a> {
    #[serde(flatten, serialize_with = "with_moment")]
    record: &'a ContainerRecord,
    /// Its directory in the store.
    directory: String,
    root: String,
    configuration: String,
    /// What it is doing, as `containers` lists it.
    status: Status,
    mounted: bool,
    /// Whether its mount answers: serving, dead, silent, or unknown; absent if it is not mounted.
    answer: Option<Answer>,
    /// Whether it is not mounted here, but something uses what it writes: a running container whose
    /// mount was detached.
    detached: bool,
    /// How many processes use its root file system.
    processes: usize,
}

/// The record, with the time as all commands print it.
fn with_moment<S: Serializer>(record: &&ContainerRecord, to: S) -> Result<S::Ok, S::Error> {
    let mut fields = serde_json::to_value(record).map_err(S::Error::custom)?;
    let created = i64::try_from(record.created).ok();
    // Variables may be secret.
    if let Some(fields) = fields.as_object_mut() {
        fields.remove("settings");
    }
    if let Some(previous) = &record.previous {
        let left = i64::try_from(previous.left)
            .ok()
            .and_then(|at| moment(at, 0));
        fields["previous"] = serde_json::json!({
            "name": previous.image.name,
            "root_digest": previous.image.root_digest,
            "left": left,
        });
    }
    fields["created"] = created.and_then(|at| moment(at, 0)).into();
    fields.serialize(to)
}

pub(super) fn run(args: &InspectArgs) -> Result<(), Error> {
    let (record, directory) = find(&args.store.open()?, &args.name)?;
    let (root, config) = (record.runtime.root(), record.runtime.config());
    let text = |path: &std::path::Path| printable(path.as_os_str().as_encoded_bytes());
    let mounted = if is_mounted(&root)? {
        mounted_at(&root)?
    } else {
        None
    };
    let answer = match mounted {
        Some(mounted) => answer::ask(&[mounted.id])?.get(&mounted.id).copied(),
        None => None,
    };
    let processes = users(&record)?.len();
    let inspected = Inspected {
        status: status::of(&record, &directory, answer, processes),
        directory: text(&directory),
        root: text(&root),
        configuration: text(&config),
        mounted: answer.is_some(),
        answer,
        detached: answer.is_none() && detached(&record, &directory)?.is_some(),
        processes,
        record: &record,
    };
    if args.json {
        json(&inspected)
    } else {
        print(&inspected).map_err(Error::Output)
    }
}

fn print(inspected: &Inspected<'_>) -> std::io::Result<()> {
    let mut out = lines();
    let record = inspected.record;
    let state = match record.state {
        State::Creating => "not finished: the next create or delete of it takes it away",
        State::Ready => "ready",
        State::Deleting => "not deleted completely: the next create or delete of it goes on",
        State::Kept => "deleted, and what it wrote kept",
    };
    writeln!(out, "Name          {}", printable(record.name.as_bytes()))?;
    writeln!(out, "State         {state}")?;
    writeln!(out, "Status        {}", inspected.status.name())?;
    writeln!(
        out,
        "Created       {}",
        time(i64::try_from(record.created).unwrap_or(i64::MAX))
    )?;
    writeln!(
        out,
        "Image         {}",
        printable(record.image.path.as_os_str().as_encoded_bytes())
    )?;
    if let Some(digest) = &record.image.root_digest {
        writeln!(out, "Root digest   {}", printable(digest.as_bytes()))?;
    }
    let written = match &record.upper {
        UpperLocation::Store => inspected.directory.clone(),
        UpperLocation::Elsewhere(place) => printable(place.as_bytes()),
        UpperLocation::Ephemeral { .. } => "memory".to_owned(),
    };
    writeln!(out, "Writes to     {written}")?;
    if let Some(map) = &record.idmap {
        writeln!(out, "Ids           {map}")?;
    }
    if let Some(previous) = &record.previous {
        let name = printable(previous.image.name.as_bytes());
        writeln!(out, "Can go back to {name}")?;
    }
    for volume in &record.volumes {
        let source = printable(volume.source.as_os_str().as_encoded_bytes());
        let of = match (&volume.name, volume.own) {
            (Some(name), _) => format!(", volume {}", printable(name.as_bytes())),
            (None, true) => String::new(),
            (None, false) => ", of the host".to_owned(),
        };
        let read_only = if volume.read_only { ", read-only" } else { "" };
        let destination = printable(volume.destination.as_bytes());
        writeln!(out, "Volume        {destination} ({source}{of}{read_only})")?;
    }
    let runtime = match record.runtime {
        Runtime::Lxc { system: true, .. } => "LXC, a system",
        Runtime::Lxc { system: false, .. } => "LXC, an application",
        Runtime::Bundle { .. } => "OCI",
    };
    writeln!(out, "Runtime       {runtime}")?;
    writeln!(out, "Configured in {}", inspected.configuration)?;
    let mounted = match inspected.answer {
        Some(Answer::Serving | Answer::Unknown) => "mounted",
        Some(Answer::Dead) => {
            "mounted, but no process serves it any more (`lxcri-fs mount --all` mounts it again)"
        }
        Some(Answer::Silent) => "mounted, but not answering (`lxcri-fs ps` shows since when)",
        None if inspected.detached => {
            return writeln!(
                out,
                "Root          {}, not mounted here any more, but still in use",
                inspected.root
            );
        }
        None => "not mounted",
    };
    let processes = count(inspected.processes as u64, "process", "processes");
    writeln!(
        out,
        "Root          {}, {mounted}, used by {processes}",
        inspected.root
    )
}
