//! `lxcri-fs commit`

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgGroup, Args};

use super::build::{ChangeArgs, WriteArgs, print};
use super::error::Error;
use super::progress::Work;
use super::secret::SecretArgs;
use super::store::StoreArgs;
use super::upper_name::find;
use crate::image::Commit;
use crate::runtime::record::images;
use crate::store::Reference;

/// Make a new image from an image and an upper, which becomes a new layer
///
/// On ZFS, `commit` reads a snapshot, so the container can keep running. An upper in a directory
/// must not be in use: stop the container first. While it is read, its mounts are read-only.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs commit /srv/web1 nginx.bfc -o patched.bfc
  lxcri-fs commit web1 -t nginx:patched --change 'USER 101'
  lxcri-fs commit zfs:tank/web1 --in-place")]
#[command(group = ArgGroup::new("target").required(true))]
pub(super) struct CommitArgs {
    /// The container, where it is mounted, or its upper: a directory or `zfs:DATASET`
    #[arg(value_name = "UPPER")]
    upper: OsString,
    /// The image below the upper, if it has moved since it was mounted: a file, or the name of an
    /// image in the store; if there are several, the lowest first
    #[arg(value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// Write the new image to this file; it shares blocks with the old image if the file system
    /// supports it
    #[arg(short, long, value_name = "NEW", group = "target")]
    output: Option<PathBuf>,
    /// Put the new image into the store under this name; another image that has the name loses it
    #[arg(short, long, value_name = "NAME", group = "target")]
    tag: Option<Reference>,
    /// Append the layer to the image file itself, which must not be in a store. The upper then no
    /// longer fits the image: continue with a new, empty one, which shows the same files
    #[arg(long, group = "target")]
    in_place: bool,
    /// With -o, replace the file if it exists; with --in-place, append even if other uppers exist
    /// that fit only the image as it is now
    #[arg(short, long, conflicts_with = "tag")]
    force: bool,
    /// Comment for the new layer in the image's history
    #[arg(short, long, value_name = "TEXT", default_value = "lxcri-fs commit")]
    message: String,
    #[command(flatten)]
    change: ChangeArgs,
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
    let (below, _held) = args.store.open_images(&args.images)?;
    let commit = Commit {
        written: find(&args.upper, &args.store)?,
        images: below,
        secret: args.secret.load()?,
        message: args.message.clone(),
        write: args.write.options(),
        changes: args.change.changes.clone(),
        max_size: args.write.max_size,
    };
    let events = Work::new("Committing");
    let (name, built) = if let Some(reference) = &args.tag {
        let built = commit.to_store(&args.store.open()?, reference, &events)?;
        (reference.familiar().to_owned(), built)
    } else if let Some(output) = &args.output {
        args.store.refuse_to_replace(output)?;
        let built = commit.to_file(output, args.force, &events)?;
        (output.display().to_string(), built)
    } else {
        let store = args.store.open()?;
        let (path, built) = commit.in_place(&store, &images(&store), args.force, &events)?;
        (path.display().to_string(), built)
    };
    print(&name, &built, args.json)
}
