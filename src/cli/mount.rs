//! `lxcri-fs mount`.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use clap::Args;

use super::error::{Error, Exit};
use super::mount_options::{MountOptions, bad_option, option_text};
use super::output::complain;
use super::secret::{SecretArgs, prompt, terminal};
use super::size;
use super::store::StoreArgs;
use crate::error::{Report, chain};
use crate::image::secret::is_encrypted;
use crate::image::{self, Mount};
use crate::runtime;
use crate::serve;
use crate::serve::engine::Wanted as Engine;
use crate::serve::mountpoint::MountPoint;
use crate::serve::shared;
use crate::sys::idmap::IdMap;
use crate::sys::mount_attr::{FlagChanges, MountFlags};
use crate::upper::dataset::Limits;
use crate::upper::{self, Upper};

/// Mount images, read-only or with an upper that keeps what is written
#[derive(Debug, Args)]
#[command(override_usage = "\
lxcri-fs mount [OPTIONS] <IMAGE>... <DIR>
       lxcri-fs mount [OPTIONS] --all")]
#[command(after_help = "\
Examples:
  lxcri-fs mount nginx.bfc /mnt
  lxcri-fs mount nginx.bfc /mnt --upper /srv/web1
  lxcri-fs mount nginx.bfc /mnt --upper zfs:tank/web1 --quota 10G
  lxcri-fs mount nginx.bfc /mnt --ephemeral --idmap 0:100000:65536
  lxcri-fs mount --subdir rootfs -o suid,dev image.bfc /mnt
  mount -t fuse.lxcri-fs nginx.bfc /mnt -o subdir=rootfs")]
pub(super) struct MountArgs {
    /// One or more images, the lowest first (files, or names or digests of images in the store),
    /// then the directory to mount them on
    // One list, because options may stand between images and directory.
    #[arg(value_names = ["IMAGE", "DIR"], required_unless_present = "all", num_args = 1..)]
    paths: Vec<PathBuf>,
    /// Mount the root file systems of all containers in the store, as is needed after a reboot;
    /// containers of LXC are left out, since they mount theirs when they start
    #[arg(long, conflicts_with = "paths")]
    pub all: bool,
    /// Make the mount writable, and keep what is written in this directory or `zfs:DATASET`. It is
    /// created if it is missing, and must be on a file system that overlayfs can use (default:
    /// read-only)
    #[arg(
        long,
        alias = "persist",
        value_name = "UPPER",
        conflicts_with = "foreground"
    )]
    pub upper: Option<OsString>,
    /// The most that the dataset of `--upper zfs:DATASET` may hold, such as 10G; 0 removes the
    /// limit (default: unchanged)
    #[arg(long, value_name = "SIZE", value_parser = size::parse, requires = "upper")]
    pub quota: Option<u64>,
    /// Space to reserve for the dataset of `--upper zfs:DATASET`, such as 1G; 0 reserves none
    /// (default: unchanged)
    #[arg(long, value_name = "SIZE", value_parser = size::parse, requires = "upper")]
    pub reservation: Option<u64>,
    /// Make the mount writable, keep what is written in memory, at most SIZE, such as 512M
    /// (default: half of the memory), and discard it on unmount
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = size::parse,
        num_args = 0..=1,
        require_equals = true,
        conflicts_with_all = ["upper", "foreground"]
    )]
    pub ephemeral: Option<Option<u64>>,
    /// Shift owners for a user namespace: INSIDE:OUTSIDE:COUNT[,...] shows the image's ids from
    /// INSIDE on as the host's from OUTSIDE on. A prefix `uid:` or `gid:` maps users or groups only
    /// (default: owners as in the image)
    #[arg(long, value_name = "MAP", conflicts_with = "foreground")]
    pub idmap: Option<IdMap>,
    /// Mount read-only even with an upper
    #[arg(long)]
    pub read_only: bool,
    /// Use this directory of the image as the root of the mount (default: /)
    #[arg(long, value_name = "PATH")]
    pub subdir: Option<PathBuf>,
    /// Refuse an image with another root digest (hexadecimal, as `info` prints it), and check every
    /// byte that is read against it
    #[arg(long, value_name = "DIGEST")]
    pub digest: Option<String>,
    #[command(flatten)]
    pub secret: SecretArgs,
    #[command(flatten)]
    pub store: StoreArgs,
    /// Do not go into the background; log to standard error
    #[arg(long)]
    pub foreground: bool,
    /// Append the log to FILE (default: the journal, or else syslog)
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Mount options as in fstab, separated by commas: ro; suid and dev (without them, set-user-id
    /// bits and devices have no effect); noexec; allow_other; and, with the meaning of the options
    /// above, upper=, quota=, reservation=, ephemeral[=], idmap=, subdir=, digest=, engine=,
    /// password-file=, key-file=, cache-size=; with remount, the flags change of what is mounted on
    /// DIR
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<OsString>,
    /// Check the arguments and whether DIR is free, and mount nothing, as `mount -f`
    #[arg(long, conflicts_with = "foreground")]
    pub fake: bool,
    /// Size of the cache for decoded content that cannot be read in pieces, such as 64M (default:
    /// 32M)
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub cache_size: Option<u64>,
    /// What serves the image: split (the kernel's EROFS has names and attributes, FUSE serves
    /// bytes), fuse, or auto, which is split where it works (default: as configured, or else auto)
    #[arg(long, value_name = "ENGINE")]
    pub engine: Option<Engine>,
    /// How many threads serve requests (default: one for each processor, at least 4 and at most 16)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
}

impl MountArgs {
    /// Applies the options of `-o` as if they were arguments.
    fn apply(&mut self, options: &MountOptions) -> Result<(), Error> {
        for (name, value) in options.values() {
            let path = || Some(PathBuf::from(value));
            let bad = || bad_option(name, value);
            let bytes = || size::parse(&option_text(name, value)?).map_err(|_| bad());
            match name.as_str() {
                "ro" => self.read_only = true,
                "ephemeral" if value.is_empty() => self.ephemeral = Some(None),
                "ephemeral" => self.ephemeral = Some(Some(bytes()?)),
                "upper" => self.upper = Some(value.clone()),
                "quota" => self.quota = Some(bytes()?),
                "reservation" => self.reservation = Some(bytes()?),
                "idmap" => self.idmap = Some(option_text(name, value)?.parse().map_err(|_| bad())?),
                "subdir" => self.subdir = path(),
                "engine" => {
                    let engine = option_text(name, value)?.parse();
                    self.engine = Some(engine.map_err(|_| bad())?);
                }
                "digest" => self.digest = Some(option_text(name, value)?),
                "password-file" => self.secret.password_file = path(),
                "key-file" => self.secret.key_file = path(),
                _ => self.cache_size = Some(bytes()?),
            }
        }
        Ok(())
    }
}

pub(super) fn run(mut args: MountArgs) -> Result<(), Error> {
    if args.all {
        return mount_containers(&args.store);
    }
    let options = MountOptions::parse(&args.options)?;
    args.apply(&options)?;
    if let Some(changes) = options.remount {
        return remount(args.paths.pop(), changes, args.fake);
    }
    let mut secret = args.secret.load()?;
    let dir = args
        .paths
        .pop()
        .filter(|_| !args.paths.is_empty())
        .ok_or_else(no_directory)?;
    let mountpoint = MountPoint::open(&dir)?;
    mountpoint.check_free()?;
    let images = args
        .paths
        .iter()
        .map(|image| args.store.open_image(image))
        .collect::<Result<Vec<_>, _>>()?;
    // In the foreground, this process becomes the keeper, which cannot ask for a password.
    let asks_first = args.foreground && secret.is_none();
    if let Some((image, _)) = images
        .iter()
        .find(|(_, file)| asks_first && is_encrypted(file))
    {
        secret = terminal()
            .map(|terminal| prompt(image, terminal))
            .transpose()?;
    }
    let mut mount = wanted(&args, options.flags, images)?;
    mount.secret = secret;
    if args.fake {
        return Ok(());
    }
    let on = |mount: &Mount| {
        if args.foreground {
            Err(mount.become_keeper(&mountpoint))
        } else {
            mount.on(&mountpoint)
        }
    };
    mount_asking(&mut mount, on)?;
    if let Some(upper) = &mount.upper {
        note_upper(&args.store, &args.paths, upper);
    }
    Ok(())
}

/// Mounts, and asks for the password if only that is missing.
fn mount_asking(mount: &mut Mount, on: impl Fn(&Mount) -> image::Result<()>) -> Result<(), Error> {
    match on(mount) {
        Err(
            image::Error::Serve(serve::Error::Failed(failure))
            | image::Error::Upper(upper::Error::Serve(serve::Error::Failed(failure))),
        ) if failure.key_needed.is_some() => {
            let image = failure.key_needed.clone().unwrap_or_default();
            mount.secret = terminal()
                .map(|terminal| prompt(Path::new(&image), terminal))
                .transpose()?;
            if mount.secret.is_none() {
                return Err(serve::Error::Failed(failure).into());
            }
            Ok(on(mount)?)
        }
        other => Ok(other?),
    }
}

/// Tells the store which of its images an upper needs, if this user may change the store.
fn note_upper(store: &StoreArgs, images: &[PathBuf], upper: &Upper) {
    let place = match upper {
        Upper::Dir(dir) => dir
            .canonicalize()
            .ok()
            .and_then(|dir| dir.into_os_string().into_string().ok()),
        Upper::Zfs { dataset, .. } => Some(format!("zfs:{dataset}")),
        Upper::Ephemeral { .. } => None,
    };
    let Some(place) = place else { return };
    for image in images {
        let noted = store.in_store(image).and_then(|found| match found {
            Some((store, image)) => Ok(store.note_upper(&image, &place)?),
            None => Ok(()),
        });
        if let Err(error) = noted {
            tracing::debug!("the store was not told of {place}: {}", chain(&error));
        }
    }
}

/// Changes the flags of what is mounted. mount(8) names the image before the directory, and repeats
/// all options of fstab.
fn remount(dir: Option<PathBuf>, mut changes: FlagChanges, fake: bool) -> Result<(), Error> {
    let dir = dir.ok_or_else(no_directory)?;
    let at = MountPoint::open(&dir)?;
    let Some(mounted) = at.mounted()? else {
        return Err(Error::Other {
            message: format!("nothing is mounted on {}", dir.display()),
            hint: Some("`lxcri-fs ps` lists mounts".to_owned()),
            exit: Exit::NotFound,
        });
    };
    if !mounted.is_ours() {
        return Err(serve::Error::Foreign {
            path: dir,
            fs_type: mounted.fs_type,
        }
        .into());
    }
    if mounted.overlay().is_none() {
        // An image stays read-only; mount(8) says `rw` where nobody says anything.
        changes.read_only = None;
    }
    match fake {
        true => Ok(()),
        false => Ok(shared::remount(&mounted, changes)?),
    }
}

fn no_directory() -> Error {
    Error::Other {
        message: "the directory to mount on is missing".to_owned(),
        hint: Some("usage: lxcri-fs mount IMAGE... DIR".to_owned()),
        exit: Exit::Usage,
    }
}

fn wanted(
    args: &MountArgs,
    flags: MountFlags,
    images: Vec<(PathBuf, File)>,
) -> Result<Mount, Error> {
    let mut mount = Mount::of_files(images);
    mount.options.subdir.clone_from(&args.subdir);
    mount.options.digest.clone_from(&args.digest);
    if let Some(bytes) = args.cache_size {
        mount.options.cache_bytes = bytes;
    }
    mount.engine = match args.engine {
        Some(engine) => engine,
        None => args.store.config()?.engine.value,
    };
    if let Some(threads) = args.threads {
        mount.threads = usize::from(threads);
    }
    mount.upper = match (&args.upper, args.ephemeral) {
        (Some(text), _) => Some(limited(Upper::parse(text)?, args)?),
        (None, Some(size)) => Some(Upper::Ephemeral { size }),
        (None, None) => None,
    };
    (mount.idmap, mount.log_file) = (args.idmap.clone(), args.log_file.clone());
    (mount.flags, mount.read_only) = (flags, args.read_only);
    if args.foreground && args.engine == Some(Engine::Split) {
        return Err(Error::Other {
            message: "--foreground mounts with FUSE alone".to_owned(),
            hint: Some("mount without --foreground, or with --engine fuse".to_owned()),
            exit: Exit::Usage,
        });
    }
    if args.foreground && (mount.upper.is_some() || mount.idmap.is_some()) {
        return Err(Error::Other {
            message: "--foreground mounts images read-only, without an upper or mapped ids"
                .to_owned(),
            hint: Some("mount without --foreground; --log-file FILE shows what happens".to_owned()),
            exit: Exit::Usage,
        });
    }
    Ok(mount)
}

/// Mounts the containers of the store. A failure does not keep the others from being mounted.
fn mount_containers(store: &StoreArgs) -> Result<(), Error> {
    let failures = runtime::root_mount::mount_all(&store.open()?)?;
    for (name, error) in &failures {
        complain(
            &format!("container {name}: {}", chain(error)),
            error.hint().as_deref(),
        );
    }
    if failures.is_empty() {
        return Ok(());
    }
    let message = format!("could not mount {} of the containers", failures.len());
    Err(Error::Other {
        message,
        hint: Some("`lxcri-fs inspect NAME` shows a container's image and upper".to_owned()),
        exit: Exit::Failure,
    })
}

/// The upper, with the quota and the reservation of the arguments.
fn limited(upper: Upper, args: &MountArgs) -> Result<Upper, Error> {
    let (quota, reservation) = (args.quota, args.reservation);
    match upper {
        Upper::Zfs { dataset, .. } => Ok(Upper::Zfs {
            dataset,
            limits: Limits { quota, reservation },
        }),
        other if quota.is_none() && reservation.is_none() => Ok(other),
        _ => Err(Error::Other {
            message: "only an upper in a ZFS dataset can have a quota or a reservation".to_owned(),
            hint: Some("use --upper zfs:POOL/DATASET".to_owned()),
            exit: Exit::Usage,
        }),
    }
}
