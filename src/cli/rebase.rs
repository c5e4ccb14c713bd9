//! `lxcri-fs rebase`

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::error::Error;
use super::judgement::{self, MergeArgs};
use super::progress::Work;
use super::secret::SecretArgs;
use super::store::StoreArgs;
use super::upper_name::find;
use crate::image::Rebase;

/// Move what was written over one image to another image
///
/// For uppers that are no container's; `lxcri-fs update` does it for containers. The upper must not
/// be in use. `lxcri-fs rollback UPPER` goes back.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs rebase /srv/web1 --from nginx:1.27 --to nginx:1.28 --dry-run
  lxcri-fs rebase /srv/web1 --from nginx:1.27 --to nginx:1.28")]
pub(super) struct RebaseArgs {
    /// The upper: a directory or `zfs:DATASET`
    #[arg(value_name = "UPPER")]
    upper: OsString,
    /// The image that it was written over: a file, or the name of an image in the store
    #[arg(long, value_name = "OLD")]
    from: PathBuf,
    /// The image that it is to be over: likewise
    #[arg(long, value_name = "NEW")]
    to: PathBuf,
    #[command(flatten)]
    merge: MergeArgs,
    #[command(flatten)]
    secret: SecretArgs,
    #[command(flatten)]
    store: StoreArgs,
    /// Print the judgement as one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &RebaseArgs) -> Result<(), Error> {
    super::limits::raise_open_files();
    let (old, _held) = args.store.open_image(&args.from)?;
    let secret = args.secret.load()?;
    let rebase = Rebase {
        written: find(&args.upper, &args.store)?,
        old: Some(old),
        old_secret: secret.clone(),
        new: args.store.open_image(&args.to)?,
        new_secret: secret,
        engine: args.store.config()?.engine.value,
        options: args.merge.options()?,
        orphan: false,
    };
    let (judged, stage) = if args.merge.dry_run {
        (rebase.judge()?, None)
    } else {
        let (judged, stage) = rebase.stage(&Work::new("Carrying over"))?;
        (judged, Some(stage))
    };
    match args.json {
        true => judgement::print_json(&judged)?,
        false => judgement::print(&judged, stage.is_none())?,
    }
    args.merge.check(&judged.judgement)?;
    Ok(stage.map_or(Ok(()), crate::upper::rebase::Stage::commit)?)
}
