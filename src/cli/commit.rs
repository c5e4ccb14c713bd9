//! `lxcri-fs commit`

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::build::{WriteArgs, print};
use super::error::Error;
use super::progress::Work;
use super::secret::SecretArgs;
use super::store::StoreArgs;
use super::upper_name::find;
use crate::image::Commit;
use crate::store::Reference;

/// Make an image of an image and what was written over it: a new layer
///
/// What is written must not change meanwhile: on ZFS a snapshot is read, a directory must not be in
/// use.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs commit /srv/web1 nginx.bfc -o patched.bfc
  lxcri-fs commit web1 -t nginx:patched
  lxcri-fs commit zfs:tank/web1 --in-place")]
pub(super) struct CommitArgs {
    /// The container, where it is mounted, or the upper: its directory, or its dataset after `zfs:`
    #[arg(value_name = "UPPER")]
    upper: OsString,
    /// The image, when it is not where it was; of several, the lowest first
    #[arg(value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// Where the new image goes; it shares the image's blocks where the file system can
    #[arg(short, long, value_name = "NEW", required_unless_present_any = ["in_place", "tag"])]
    output: Option<PathBuf>,
    /// Put the new image into the store under this name; an image that has the name loses it
    #[arg(short, long, value_name = "NAME", conflicts_with = "output")]
    tag: Option<Reference>,
    /// Append the layer to the image itself, if it is none of a store. The upper has served its
    /// time then: another one, empty, shows the same
    #[arg(long, conflicts_with_all = ["output", "tag"])]
    in_place: bool,
    /// Replace the new image if it exists; with --in-place, also when other uppers do not fit the
    /// image any more then
    #[arg(short, long, conflicts_with = "tag")]
    force: bool,
    /// What the layer's history says
    #[arg(short, long, value_name = "TEXT", default_value = "lxcri-fs commit")]
    message: String,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    secret: SecretArgs,
    #[command(flatten)]
    store: StoreArgs,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &CommitArgs) -> Result<(), Error> {
    super::limits::raise_open_files();
    let commit = Commit {
        written: find(&args.upper, &args.store)?,
        images: args.images.clone(),
        secret: args.secret.load()?,
        message: args.message.clone(),
        write: args.write.options(),
        max_size: args.write.max_size,
    };
    let events = Work::new("Committing");
    let (name, built) = if let Some(reference) = &args.tag {
        let built = commit.to_store(&args.store.open()?, reference, &events)?;
        (reference.familiar().to_owned(), built)
    } else if let Some(output) = &args.output {
        let built = commit.to_file(output, args.force, &events)?;
        (output.display().to_string(), built)
    } else {
        let (path, built) = commit.in_place(&args.store.open()?, args.force, &events)?;
        (path.display().to_string(), built)
    };
    print(&name, &built, args.json)
}
