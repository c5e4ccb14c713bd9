//! `lxcri-fs clone`

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::create::absolute;
use super::error::{Error, Exit};
use super::output::say;
use super::progress::Work;
use super::size;
use super::store::StoreArgs;
use super::upper_name::{UpperName, find};
use crate::image::Events as _;
use crate::runtime::clone::{Request, clone};
use crate::runtime::delete;
use crate::runtime::record::Runtime;
use crate::upper::dataset::Limits;
use crate::upper::{Upper, snapshots};

/// Clone a container, or only what one has written
///
/// The new container has the image and the configuration of the other one, under its own name, with
/// new hardware addresses, and begins with what the other has written. On ZFS, that is a clone of
/// its dataset, also of a running container. Elsewhere the container must be stopped; its files are
/// copied, and share their blocks with the originals if the file system supports it, as btrfs and
/// XFS do.
///
/// If the last argument is zfs:NEW, no container is made, but a dataset to mount an image with.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs clone web1 web2
  lxcri-fs clone web1@before-upgrade web2
  lxcri-fs clone job1 job2 --dir /srv/job2
  lxcri-fs clone web1 zfs:tank/try --quota 10G")]
pub(super) struct CloneArgs {
    /// The container, and the name of the snapshot to clone (default: its present state). For
    /// zfs:NEW also a dataset as `zfs:DATASET`, or where it is mounted
    #[arg(
        value_name = "NAME[@SNAPSHOT]",
        value_parser = OsStringValueParser::new().map(UpperName::parse)
    )]
    from: UpperName,
    /// The new container, or the new dataset, which must be in the same pool
    #[arg(value_name = "NEW|zfs:NEW")]
    to: OsString,
    /// The directory of the new container's configuration: for LXC its directory for containers,
    /// otherwise the bundle (default: beside the other's)
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The new container's host name (default: its name)
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// The most that the new dataset may hold, such as 10G (default: no limit)
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    quota: Option<u64>,
    /// Space to reserve for the new dataset, such as 1G (default: none)
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    reservation: Option<u64>,
    #[command(flatten)]
    store: StoreArgs,
}

pub(super) fn run(args: &CloneArgs) -> Result<(), Error> {
    let has_limits = args.quota.is_some() || args.reservation.is_some();
    let to = Upper::parse(&args.to)?;
    let (Upper::Zfs { dataset, .. }, None, None) = (&to, &args.dir, &args.hostname) else {
        if has_limits || matches!(to, Upper::Zfs { .. }) {
            return Err(Error::Other {
                message: "--quota and --reservation are for a new dataset, --dir and --hostname \
                          for a new container"
                    .to_owned(),
                hint: Some("name a dataset as zfs:POOL/NEW, a container as NEW".to_owned()),
                exit: Exit::Usage,
            });
        }
        return container(args);
    };
    let from = find(&args.from.upper, &args.store)?;
    let limits = Limits {
        quota: args.quota,
        reservation: args.reservation,
    };
    snapshots::clone(&from, args.from.snapshot.as_deref(), dataset, limits)?;
    Ok(())
}

fn container(args: &CloneArgs) -> Result<(), Error> {
    let name = |text: &OsString| {
        let plain = text.to_str().filter(|text| !text.contains('/'));
        plain.map(str::to_owned).ok_or_else(|| Error::Other {
            message: format!("{} is not the name of a container", text.display()),
            hint: Some(
                "`lxcri-fs containers` lists them; name a new dataset as zfs:POOL/NEW".to_owned(),
            ),
            exit: Exit::Usage,
        })
    };
    let (from, to) = (name(&args.from.upper)?, name(&args.to)?);
    let store = args.store.open()?;
    let (original, _) = delete::find(&store, &from)?;
    let dir = args.dir.as_deref().map(absolute).transpose()?;
    let dir = dir.map(|dir| match original.runtime {
        Runtime::Lxc { .. } => dir.join(&to),
        Runtime::Bundle { .. } => dir,
    });
    super::limits::raise_open_files();
    // What is copied in a store in a directory; on ZFS, nothing is.
    let total = store.usage_of_container(&store.container(&from)?)?.bytes;
    let progress = Work::begun("Copying", total);
    let request = Request {
        from: &from,
        snapshot: args.from.snapshot.as_deref(),
        name: &to,
        dir,
        hostname: args.hostname.as_deref(),
        done: &|bytes| progress.done(bytes),
    };
    let created = clone(&store, &request);
    progress.ends();
    say(format_args!("{}", created?.record.runtime.dir().display()))?;
    Ok(())
}
