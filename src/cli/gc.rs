//! `lxcri-fs gc`

use std::path::Path;

use clap::Args;
use jiff::SignedDuration;
use serde::Serialize;

use super::error::{Error, Exit};
use super::output::{complain, json, moment, note, say, size, time};
use super::store::StoreArgs;
use crate::error::chain;
use crate::runtime::update;
use crate::store::config::duration;
use crate::store::size::parse as parse_size;
use crate::store::{Container, Garbage, Limits, Outcome, Step, Store, StoredImage};

/// Remove what the store no longer needs: images without a name, and remains of interrupted work
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs gc --dry-run
  lxcri-fs gc --grace 0s
  lxcri-fs gc --rollbacks
  lxcri-fs gc --dry-run --keep-free 20G")]
pub(super) struct GcArgs {
    /// Only list what would be removed
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Keep what lost its name, or was made, less than DURATION ago, such as 30m, 24h or 7d
    /// (default: gc.grace of the configuration, or else 24h)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    grace: Option<SignedDuration>,
    /// Also remove what containers can go back to after an update; `rollback NAME` is not possible
    /// then
    #[arg(long)]
    rollbacks: bool,
    /// Remove also images that could be pulled again and that nothing uses, the oldest first, until
    /// images take no more than SIZE (default: gc.max-size of the configuration, or else no limit)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_size: Option<u64>,
    /// The same, until SIZE is free where the store is (default: gc.keep-free of the configuration,
    /// or else no limit)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    keep_free: Option<u64>,
    #[command(flatten)]
    store: StoreArgs,
    /// Print one JSON object for each thing removed or kept
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    kind: &'static str,
    /// What users call it, if they can know it: the name that an image had, the name of a container
    /// or snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// `blake3:` and the root digest of an image, `sha256:` and the digest of a blob.
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    /// What it takes, bytes; space that several share is freed with the last of them.
    bytes: u64,
    /// Bytes freed; absent if it was not removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    freed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<String>,
    /// Until when the grace period keeps it.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept_until: Option<String>,
}

/// What a run has done.
#[derive(Default)]
struct Done {
    /// Bytes that were freed, or would be.
    freed: u64,
    /// How many steps were taken.
    steps: usize,
    /// How many of them failed.
    failed: usize,
}

/// Takes a step, and prints what came of it.
fn take(
    args: &GcArgs,
    store: &Store,
    step: &Step,
    grace: SignedDuration,
    done: &mut Done,
) -> Result<(), Error> {
    let outcome = (!args.dry_run).then(|| store.collect(step, grace));
    let mut row = row(step);
    done.steps += 1;
    match outcome {
        None => done.freed += step.usage.own(),
        Some(Outcome::Freed(bytes)) => {
            done.freed += bytes;
            row.freed = Some(bytes);
        }
        Some(Outcome::Kept(why)) => row.kept = Some(why),
        Some(Outcome::Failed(error)) => {
            done.failed += 1;
            row.kept = Some(chain(&error));
        }
    }
    if args.json {
        return json(&row);
    }
    let what = describe(&step.garbage);
    match (&row.kept, row.freed) {
        (Some(why), _) => say(format_args!("{what}: kept: {why}")),
        (None, Some(freed)) => say(format_args!("{what}: {} freed", size(freed))),
        (None, None) => say(format_args!("{what}: {}", size(row.bytes))),
    }
}

/// Takes steps beyond garbage, until the limits are kept; what there is to be said if they are not
/// even then.
fn make_room(
    args: &GcArgs,
    store: &Store,
    limits: Limits,
    grace: SignedDuration,
    done: &mut Done,
) -> Result<(), Error> {
    // What was removed is no longer counted.
    let freed = |done: &Done| if args.dry_run { done.freed } else { 0 };
    if limits == Limits::default() || !store.exceeds(limits, freed(done))? {
        return Ok(());
    }
    for step in &store.spare()? {
        take(args, store, step, grace, done)?;
        if !store.exceeds(limits, freed(done))? {
            return Ok(());
        }
    }
    complain(
        "the limits are exceeded, and nothing else can be removed: images are used, or were built \
         here",
        None,
    );
    Ok(())
}

pub(super) fn run(args: &GcArgs) -> Result<(), Error> {
    let config = args.store.config()?;
    let store = args.store.open()?;
    let grace = args.grace.unwrap_or(config.grace.value);
    if args.rollbacks && !args.dry_run {
        forget_rollbacks(&store)?;
    }
    let limits = Limits {
        max_size: args.max_size.unwrap_or(config.max_size.value),
        keep_free: args.keep_free.unwrap_or(config.keep_free.value),
    };
    let plan = store.garbage(grace)?;
    if !args.dry_run {
        store.sweep_locks()?;
    }
    let mut done = Done::default();
    for step in &plan {
        take(args, &store, step, grace, &mut done)?;
    }
    make_room(args, &store, limits, grace, &mut done)?;
    let young = store.kept_by_grace(&plan)?;
    let Done {
        freed: total,
        steps,
        failed,
    } = done;
    for step in &young {
        let until = step
            .garbage
            .since()
            .and_then(|at| at.checked_add(grace).ok());
        let until = until.map(|at| at.as_second());
        if args.json {
            json(&Row {
                kept: Some("it is younger than the grace period".to_owned()),
                kept_until: until.and_then(|at| moment(at, 0)),
                ..row(step)
            })?;
            continue;
        }
        let until = until.map(|at| format!(" until {} (UTC)", time(at)));
        say(format_args!(
            "{}: kept{} by the grace period",
            describe(&step.garbage),
            until.unwrap_or_default()
        ))?;
    }
    if !args.json {
        say(format_args!(
            "{} ({total} bytes) {}",
            size(total),
            if args.dry_run {
                "would be freed"
            } else {
                "freed"
            }
        ))?;
    }
    if !args.json {
        tell_kept(&store)?;
    }
    if !args.json && !young.is_empty() {
        note(format_args!(
            "lxcri-fs: `--grace 0s` removes what the grace period keeps"
        ));
    }
    if !args.dry_run {
        store.sweep_compressed()?;
    }
    if failed == 0 {
        return Ok(());
    }
    Err(Error::Other {
        message: format!("{failed} of {} could not be removed", steps),
        hint: None,
        exit: Exit::Failure,
    })
}

/// Removes the ways back of all containers.
fn forget_rollbacks(store: &Store) -> Result<(), Error> {
    for container in store.containers()? {
        let name = container.name.as_str();
        // What is wrong with a container keeps no other from it.
        if let Err(error) = update::forget(store, name) {
            note(format_args!(
                "lxcri-fs: {name} keeps what it can go back to: {}",
                chain(&error)
            ));
        }
    }
    Ok(())
}

/// Says what is kept because containers can go back to it.
fn tell_kept(store: &Store) -> Result<(), Error> {
    let can_go_back = |container: &&Container| {
        container
            .images
            .as_ref()
            .is_some_and(|images| images.len() > 1)
    };
    let containers = store.containers()?;
    let kept: Vec<_> = containers.iter().filter(can_go_back).collect();
    if !kept.is_empty() {
        let names: Vec<_> = kept
            .iter()
            .map(|container| container.name.as_str())
            .collect();
        note(format_args!(
            "lxcri-fs: what {} can go back to is kept; `lxcri-fs gc --rollbacks` removes it",
            names.join(", ")
        ));
    }
    Ok(())
}

fn row(step: &Step) -> Row {
    let (kind, name, digest) = match &step.garbage {
        Garbage::Image(image) => {
            let digest = format!("blake3:{}", image.facts.root_digest);
            ("image", former_name(image), Some(digest))
        }
        Garbage::Spare(image) => {
            let digest = format!("blake3:{}", image.facts.root_digest);
            let name = image
                .facts
                .refs
                .first()
                .map(|name| name.familiar().to_owned());
            let name = name.or_else(|| former_name(image));
            ("spare image", name, Some(digest))
        }
        Garbage::Work(_) => ("unfinished image", None, None),
        Garbage::Container(name) => ("unfinished container", Some(name.to_string()), None),
        Garbage::Snapshot(snapshot) => (
            "snapshot of a command that was killed",
            Some(snapshot.to_string()),
            None,
        ),
        Garbage::Blob(path) => {
            let digest = blob(path).map(|digest| format!("sha256:{digest}"));
            ("part of a blob", None, digest)
        }
    };
    Row {
        kind,
        name,
        digest,
        bytes: step.usage.own(),
        freed: None,
        kept: None,
        kept_until: None,
    }
}

/// What something is, in a user's terms.
fn describe(garbage: &Garbage) -> String {
    match garbage {
        Garbage::Image(image) => {
            let digest = image.facts.short_digest();
            match former_name(image) {
                Some(name) => format!("image {digest}, formerly {name}"),
                None => format!("image {digest}"),
            }
        }
        Garbage::Spare(image) => {
            let digest = image.facts.short_digest();
            match image.facts.refs.first() {
                Some(name) => format!("image {digest}, {}", name.familiar()),
                None => format!("image {digest}, without a name"),
            }
        }
        Garbage::Work(_) => "unfinished image".to_owned(),
        Garbage::Container(name) => format!("unfinished container {name}"),
        Garbage::Snapshot(snapshot) => format!("snapshot {snapshot} of a command that was killed"),
        Garbage::Blob(path) => {
            let digest = blob(path).and_then(|digest| digest.get(..12));
            format!(
                "part of a blob that an interrupted pull fetched, sha256:{}",
                digest.unwrap_or("unknown")
            )
        }
    }
}

/// The name that an image had until another image took it.
fn former_name(image: &StoredImage) -> Option<String> {
    let reference = image.name.reference()?;
    Some(reference.familiar().to_owned())
}

/// The SHA-256 of a blob, of which a file has a part.
fn blob(part: &Path) -> Option<&str> {
    part.file_name()?.to_str()
}
