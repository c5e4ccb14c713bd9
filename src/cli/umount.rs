//! `lxcri-fs umount`.

use std::path::PathBuf;

use clap::Args;

use super::error::Error;
use super::output::note;
use crate::serve::mount::Unmount;
use crate::serve::unmount::{self, Unmounted};

/// Unmount what `lxcri-fs mount` mounted
#[derive(Debug, Args)]
#[command(after_help = "\
Nothing is wrong when nothing is mounted there.

Examples:
  lxcri-fs umount /mnt
  lxcri-fs umount --lazy /mnt")]
pub(super) struct UmountArgs {
    /// Where it is mounted
    #[arg(value_name = "DIR")]
    pub mountpoint: PathBuf,
    /// Take it out of sight now, and end it when its last user is done
    #[arg(short, long)]
    pub lazy: bool,
    /// Fail the requests under way and end it, whoever uses it
    #[arg(short, long)]
    pub force: bool,
}

/// Runs the command.
pub(super) fn run(args: &UmountArgs) -> Result<(), Error> {
    let mountpoint = unmount::mountpoint(&args.mountpoint);
    // What is out of sight ends by and by.
    let how = Unmount {
        lazy: args.lazy || args.force,
        force: args.force,
    };
    match unmount::unmount(&mountpoint, how)? {
        Unmounted::Done => {}
        Unmounted::Nothing => note(format_args!(
            "lxcri-fs: nothing is mounted on {}",
            args.mountpoint.display()
        )),
        Unmounted::StillUsed => note(format_args!(
            "lxcri-fs: {} is out of sight, and ends with its last user",
            args.mountpoint.display()
        )),
    }
    Ok(())
}
