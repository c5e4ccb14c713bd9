//! `lxcri-fs umount`.

use std::path::PathBuf;

use clap::Args;

use super::error::Error;
use super::output::note;
use crate::serve::fuse_mount::Unmount;
use crate::serve::unmount::{self, Unmounted};

/// Unmount what `lxcri-fs mount` has mounted
#[derive(Debug, Args)]
#[command(after_help = "\
If nothing is mounted on DIR, `umount` succeeds.

Examples:
  lxcri-fs umount /mnt
  lxcri-fs umount --lazy /mnt")]
pub(super) struct UmountArgs {
    /// The directory that the image is mounted on
    #[arg(value_name = "DIR")]
    pub mountpoint: PathBuf,
    /// Detach the mount now; it ends when nothing uses it any more
    #[arg(short, long)]
    pub lazy: bool,
    /// End the mount even if it is in use; pending requests fail
    #[arg(short, long)]
    pub force: bool,
}

pub(super) fn run(args: &UmountArgs) -> Result<(), Error> {
    let mountpoint = unmount::mountpoint(&args.mountpoint);
    // A detached mount ends with its last user.
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
            "lxcri-fs: {} is detached; the mount ends when nothing uses it any more",
            args.mountpoint.display()
        )),
    }
    Ok(())
}
