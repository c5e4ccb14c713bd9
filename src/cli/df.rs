//! `lxcri-fs df`

use clap::Args;
use jiff::SignedDuration;
use serde::Serialize;

use super::error::Error;
use super::output::{json, say, size};
use super::store::StoreArgs;
use crate::store::Usage;

/// Show how much space the store takes, and how much `gc` could free
#[derive(Debug, Args)]
#[command(after_help = "Example: lxcri-fs df")]
pub(super) struct DfArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    store: String,
    images: usize,
    /// What the images would take if they shared nothing.
    image_bytes: u64,
    /// How much of that is shared by several images.
    shared_bytes: u64,
    containers: usize,
    container_bytes: u64,
    /// What `gc` may remove, whatever its age.
    garbage_bytes: u64,
    free_bytes: u64,
}

pub(super) fn run(args: &DfArgs) -> Result<(), Error> {
    let store = args.store.open()?;
    let (images, containers) = (store.images()?, store.containers()?);
    let (mut image_usage, mut container_usage) = (Usage::default(), Usage::default());
    for image in &images {
        image_usage += store.usage_of(image)?;
    }
    for container in &containers {
        container_usage += store.usage_of_container(container)?;
    }
    let report = Report {
        store: store.location().to_string(),
        images: images.len(),
        image_bytes: image_usage.bytes,
        shared_bytes: image_usage.shared,
        containers: containers.len(),
        container_bytes: container_usage.own(),
        garbage_bytes: store
            .garbage(SignedDuration::ZERO)?
            .iter()
            .map(|step| step.usage.own())
            .sum(),
        free_bytes: store.free()?,
    };
    if args.json {
        return json(&report);
    }
    say(format_args!("Store        {}", report.store))?;
    say(format_args!(
        "Images       {}, {} ({} of it in several)",
        report.images,
        size(report.image_bytes),
        size(report.shared_bytes)
    ))?;
    say(format_args!(
        "Containers   {}, {}",
        report.containers,
        size(report.container_bytes)
    ))?;
    say(format_args!("Garbage      {}", size(report.garbage_bytes)))?;
    say(format_args!("Free         {}", size(report.free_bytes)))?;
    Ok(())
}
