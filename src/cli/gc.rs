//! `lxcri-fs gc`

use clap::Args;
use jiff::SignedDuration;
use serde::Serialize;

use super::error::{Error, Exit};
use super::output::{json, say, size};
use super::store::StoreArgs;
use crate::error::chain;
use crate::store::{Garbage, Outcome, Step};

/// Remove what the store no longer needs: images without a name, and remains of interrupted work
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs gc --dry-run
  lxcri-fs gc --grace 0s")]
pub(super) struct GcArgs {
    /// Only list what would be removed
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Keep what was made less than DURATION ago, such as 30m or 24h (default: gc.grace of the
    /// configuration, or else 24h)
    #[arg(long, value_name = "DURATION")]
    grace: Option<SignedDuration>,
    #[command(flatten)]
    store: StoreArgs,
    /// Print one JSON object for each thing removed or kept
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    kind: &'static str,
    name: String,
    /// What it takes, bytes; space that several share is freed with the last of them.
    bytes: u64,
    /// Bytes freed; absent if it was not removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    freed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<String>,
}

pub(super) fn run(args: &GcArgs) -> Result<(), Error> {
    let config = args.store.config()?;
    let store = args.store.open()?;
    let grace = args.grace.unwrap_or(config.grace.value);
    let plan = store.garbage(grace)?;
    if !args.dry_run {
        store.sweep_locks()?;
    }
    let (mut total, mut failed) = (0, 0);
    for step in &plan {
        let outcome = (!args.dry_run).then(|| store.collect(step, grace));
        let mut row = row(step);
        match outcome {
            None => total += step.usage.own(),
            Some(Outcome::Freed(bytes)) => {
                total += bytes;
                row.freed = Some(bytes);
            }
            Some(Outcome::Kept(why)) => row.kept = Some(why),
            Some(Outcome::Failed(error)) => {
                failed += 1;
                row.kept = Some(chain(&error));
            }
        }
        if args.json {
            json(&row)?;
            continue;
        }
        match (&row.kept, row.freed) {
            (Some(why), _) => say(format_args!("{} {}: kept: {why}", row.kind, row.name)),
            (None, Some(freed)) => say(format_args!(
                "{} {}: {freed} bytes freed",
                row.kind, row.name
            )),
            (None, None) => say(format_args!(
                "{} {}: {} bytes",
                row.kind, row.name, row.bytes
            )),
        }?;
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
    if failed == 0 {
        return Ok(());
    }
    Err(Error::Other {
        message: format!("{failed} of {} could not be removed", plan.len()),
        hint: None,
        exit: Exit::Failure,
    })
}

fn row(step: &Step) -> Row {
    let (kind, name) = match &step.garbage {
        Garbage::Image(image) => (
            "image",
            format!("{} ({})", image.name, image.facts.short_digest()),
        ),
        Garbage::Work(name) => ("unfinished image", name.to_string()),
        Garbage::Container(name) => ("unfinished container", name.to_string()),
        Garbage::Snapshot(snapshot) => (
            "snapshot of a command that was killed",
            snapshot.to_string(),
        ),
        Garbage::Blob(path) => (
            "part of a blob",
            path.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
        ),
    };
    Row {
        kind,
        name,
        bytes: step.usage.own(),
        freed: None,
        kept: None,
    }
}
