//! `lxcri-fs umount`.

use std::path::PathBuf;

use clap::Args;

use super::error::Error;
use super::output::{all_or, note};
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
    /// The directories that images are mounted on
    #[arg(required = true, value_name = "DIR")]
    pub mountpoints: Vec<PathBuf>,
    /// Detach the mount now; it ends when nothing uses it any more
    #[arg(short, long)]
    pub lazy: bool,
    /// End the mount even if it is in use; pending requests fail
    #[arg(short, long)]
    pub force: bool,
}

pub(super) fn run(args: &UmountArgs) -> Result<(), Error> {
    // A detached mount ends with its last user.
    let how = Unmount {
        lazy: args.lazy || args.force,
        force: args.force,
    };
    let mut failures = Vec::new();
    for mountpoint in &args.mountpoints {
        match unmount::unmount(&unmount::mountpoint(mountpoint), how) {
            Ok(Unmounted::Done) => {}
            Ok(Unmounted::Nothing) => note(format_args!(
                "lxcri-fs: nothing is mounted on {}",
                mountpoint.display()
            )),
            Ok(Unmounted::StillUsed) => note(format_args!(
                "lxcri-fs: {} is detached; the mount ends when nothing uses it any more",
                mountpoint.display()
            )),
            Err(error) => failures.push(Error::from(error)),
        }
    }
    all_or(
        failures,
        args.mountpoints.len(),
        "mounts were not unmounted",
    )
}
