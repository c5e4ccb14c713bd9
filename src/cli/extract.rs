//! `lxcri-fs extract`

use std::path::PathBuf;

use clap::Args;
use rustix::thread::CapabilitySet;

use super::error::{Error, Exit};
use super::open::ImageArgs;
use super::output::{complain, count, note, size};
use super::progress::Work;
use crate::error::{Io, Report, chain};
use crate::fs::{ExtractOptions, ImageOptions, extract, open_target};
use crate::image::Events as _;
use crate::serve::confine::Kept;

/// Extract an image, or some of its paths, to a directory
///
/// `extract` restores modes, times, links and, as root, owners and devices. It writes nothing
/// outside DIR, whatever the image holds, and replaces nothing without --force.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs extract debian.bfc rootfs
  lxcri-fs extract debian.bfc out etc/passwd usr/share/doc")]
pub(super) struct ExtractArgs {
    #[command(flatten)]
    image: ImageArgs,
    /// Where to extract to; created if it does not exist
    dir: PathBuf,
    /// Paths in the image to extract, with everything below them (default: everything)
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Replace files that exist
    #[arg(long, short)]
    force: bool,
    /// Do not restore owners (default for users other than root)
    #[arg(long)]
    no_same_owner: bool,
}

/// The capabilities that restoring owners, devices and all extended attributes takes.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SYS_ADMIN);

pub(super) fn run(args: &ExtractArgs) -> Result<(), Error> {
    let opened = args.image.file()?;
    // Extracting takes one descriptor for each level of the tree.
    super::limits::raise_open_files();
    let dir = open_target(&args.dir).map_err(Io::at("opening the target directory", &args.dir))?;
    // The directory as the caller reaches it; everything below is reached through this descriptor.
    let kept = Kept {
        directories: dir.try_clone().map(Into::into).into_iter().collect(),
        attributes: true,
        capabilities: CAPABILITIES,
    };
    let rootfs = opened.read_confined(&ImageOptions::default(), kept)?;
    let total = if args.paths.is_empty() {
        rootfs.content_bytes()
    } else {
        0
    };
    let progress = Work::begun("Extracting", total);
    let owner = rustix::process::geteuid().is_root() && !args.no_same_owner;
    let done = extract(
        &rootfs,
        &dir,
        &args.paths,
        ExtractOptions {
            force: args.force,
            owner,
        },
        &|n| progress.done(n),
    );
    progress.ends();
    for failure in &done.failures {
        complain(&chain(failure), None);
    }
    if done.failures.is_empty() {
        note(format_args!(
            "{}: {}, {}",
            args.dir.display(),
            count(done.entries, "entry", "entries"),
            size(done.bytes)
        ));
        return Ok(());
    }
    let exits = done.failures.iter().map(|failure| {
        let error = failure.source.downcast_ref::<crate::fs::Error>();
        error.map_or(Exit::Failure, Report::exit)
    });
    // Damage counts most; what is missing, only if nothing else failed.
    let exit = exits.reduce(|one, other| match (one, other) {
        (Exit::Damaged, _) | (_, Exit::Damaged) => Exit::Damaged,
        (Exit::NotFound, Exit::NotFound) => Exit::NotFound,
        _ => Exit::Failure,
    });
    Err(Error::Other {
        message: format!(
            "{} of {} not extracted",
            done.failures.len(),
            count(
                done.entries + done.failures.len() as u64,
                "entry",
                "entries"
            )
        ),
        hint: None,
        exit: exit.unwrap_or(Exit::Failure),
    })
}
