//! `lxcri-fs create`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bfc::Secret;
use clap::{ArgGroup, Args, ValueEnum};

use super::error::{Error, Exit};
use super::output::{is_terminal, note, say};
use super::progress::Waiting;
use super::secret::SecretArgs;
use super::size;
use super::store::StoreArgs;
use super::tls::TlsArgs;
use super::transfer::Transfer;
use crate::error::{Io, chain};
use crate::fs::{ImageFile, ImageOptions, Rootfs, verify};
use crate::image::secret::image_key;
use crate::image::{Pull, ask_again, open_file};
use crate::runtime::bundle;
use crate::runtime::create::{Request, Target, create};
use crate::runtime::lxc_defaults;
use crate::runtime::process::Overrides;
use crate::runtime::record::{ImageRecord, UpperLocation};
use crate::runtime::volumes::{Source, Volume};
use crate::serve::engine::Wanted as Engine;
use crate::store::{self, Reference, Store, StoredImage};
use crate::sys::idmap::IdMap;

/// When to pull the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum When {
    /// Pull it if it is not in the store
    Missing,
    /// Pull it if the registry has a different image under this name
    Always,
    /// Never
    Never,
}

/// How much of the image to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Verify {
    /// Check structures, digests of the metadata, the platform and the layers now; contents are
    /// checked whenever they are read
    Fast,
    /// Read and check everything now
    Full,
}

/// Create a container from an image, ready to start with LXC or an OCI runtime
///
/// Nothing is unpacked. A failed `create` leaves nothing behind. If it is killed, the next `create`
/// or `delete` of the same name removes the remains.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs create web1 --image nginx:1.27 --lxc && lxc-start web1
  lxcri-fs create web2 --image nginx.bfc --bundle /srv/web2 && crun run -b /srv/web2 web2
  lxcri-fs create job --image debian.bfc --bundle /srv/job --ephemeral -- sh -c 'echo $HOME'")]
#[command(group = ArgGroup::new("target").required(true))]
pub(super) struct CreateArgs {
    /// The container's name
    #[arg(value_name = "NAME")]
    name: String,
    /// The image: a file, or the name or digest of an image in the store
    #[arg(long, value_name = "IMAGE")]
    image: PathBuf,
    /// Create a container for LXC, which lxc-start can start
    #[arg(long, group = "target")]
    lxc: bool,
    /// Create an OCI bundle in DIR, for crun, runc and others; DIR must be empty or not exist
    #[arg(long, value_name = "DIR", group = "target")]
    bundle: Option<PathBuf>,
    /// Keep what the container writes in this directory or `zfs:DATASET`, which `delete` does not
    /// remove (default: in the store, removed with the container)
    #[arg(long, value_name = "UPPER", conflicts_with = "ephemeral")]
    upper: Option<String>,
    /// Keep what the container writes in memory, at most SIZE, such as 512M (default: half of the
    /// memory), and discard it when the container stops
    #[arg(
        long,
        value_name = "SIZE",
        num_args = 0..=1,
        require_equals = true,
        value_parser = size::parse
    )]
    ephemeral: Option<Option<u64>>,
    /// Run the container in a user namespace with this map of ids: INSIDE:OUTSIDE:COUNT[,...].
    /// INSIDE is the container's first id, OUTSIDE the host's (default: no user namespace)
    #[arg(long, value_name = "MAP")]
    idmap: Option<IdMap>,
    /// What serves the image: split (the kernel's EROFS has names and attributes, FUSE serves
    /// bytes), fuse, or auto, which is split where it works (default: as configured, or else auto)
    #[arg(long, value_name = "ENGINE")]
    engine: Option<Engine>,
    /// The container's host name (default: its name)
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// When to pull the image from its registry, if IMAGE is a name
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pull: When,
    /// How much of the image to check before creating the container
    #[arg(long, value_name = "HOW", default_value = "fast")]
    verify: Verify,
    /// Run PROGRAM instead of the image's entrypoint; '' means no entrypoint
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Set an environment variable, which overrides the image's; can be given several times
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<String>,
    /// Run as this user: USER[:GROUP], as names that the image knows or as numbers (default: the
    /// image's user)
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Run in this directory, which is created if it is missing (default: the image's)
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Mount a volume on DEST: SOURCE is a volume of the store, which is made if it is missing and
    /// stays when the container is removed, or a path of the host (with a slash). Without SOURCE,
    /// a directory of the container's own, as each volume that the image declares gets one. New
    /// volumes begin with what the image has there. Can be given several times
    #[arg(long, value_name = "[SOURCE:]DEST[:ro]")]
    volume: Vec<Volume>,
    /// Let `update --all --filter auto=on` update the container
    #[arg(long)]
    auto_update: bool,
    /// Make the root file system read-only in the container
    #[arg(long)]
    read_only: bool,
    /// Allocate a terminal for the container's process
    #[arg(short, long, conflicts_with = "lxc")]
    tty: bool,
    /// Filter system calls with this profile: JSON as in `linux.seccomp` of the OCI runtime
    /// specification (default: no filter)
    #[arg(long, value_name = "FILE", conflicts_with = "lxc")]
    seccomp: Option<PathBuf>,
    /// Add an annotation to the bundle; without VALUE, it gets the value of the image's label NAME.
    /// Of the image's labels, only `org.opencontainers.image.*` become annotations by themselves
    #[arg(long, value_name = "NAME[=VALUE]", conflicts_with = "lxc")]
    annotation: Vec<String>,
    /// Let set-user-id programs such as sudo, su and ping gain privileges (default: they cannot)
    #[arg(long, conflicts_with = "lxc")]
    allow_new_privileges: bool,
    /// LXC's directory for containers (default: what `lxc-config lxc.lxcpath` prints)
    #[arg(long, value_name = "DIR", conflicts_with = "bundle")]
    lxc_path: Option<PathBuf>,
    /// Make LXC read this configuration file, for instance for network and limits; can be given
    /// several times. Without this option, LXC's default configuration is copied, as lxc-create
    /// does
    #[arg(long, value_name = "FILE", conflicts_with = "bundle")]
    include: Vec<PathBuf>,
    /// The container's network (default: what LXC's configuration says)
    #[arg(long, value_name = "NETWORK", conflicts_with_all = ["bundle", "include"])]
    network: Option<Network>,
    #[command(flatten)]
    secret: SecretArgs,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    store: StoreArgs,
    /// Command and arguments to run instead of the image's
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// What `--network` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Network {
    /// The loopback device only
    None,
}

pub(super) fn run(args: &CreateArgs) -> Result<(), Error> {
    // Filling a volume takes three descriptors for each level of its tree.
    super::limits::raise_open_files();
    let (store, stored, path) = resolve(args)?;
    if let Some(image) = stored
        .as_ref()
        .filter(|image| !image.facts.trust.is_empty())
    {
        ask_again(&store, image, &args.store.registries(args.tls)?)?;
    }
    let file = match &stored {
        Some(image) => store.open_image(image)?,
        None => open_file(&path)?,
    };
    let record = image_record(args, stored.as_ref(), &path)?;
    let key = image_key(&path, &file, args.secret.load()?.as_ref())?;
    let secret = key.clone().map(|key| Secret::Key(key.0));
    let options = ImageOptions {
        check_hash: args.verify == Verify::Full,
        ..ImageOptions::default()
    };
    let source = ImageFile {
        path: path.clone(),
        file: file
            .try_clone()
            .map_err(Io::at("opening the image", &path))?,
        secret,
    };
    let rootfs = Rootfs::open(vec![source], &options)?;
    if args.verify == Verify::Full {
        let damage = verify(&rootfs, &|_| {}).damage;
        if let Some(first) = damage.first() {
            return Err(Error::Other {
                message: format!(
                    "{} is damaged (damaged places: {}), first in {}",
                    path.display(),
                    damage.len(),
                    chain(&first.error)
                ),
                hint: Some(
                    "`lxcri-fs verify` lists them all; pull or build the image again".into(),
                ),
                exit: Exit::Damaged,
            });
        }
    }
    let request = Request {
        name: &args.name,
        rootfs: &rootfs,
        file: &file,
        key,
        image: record,
        stored: stored.as_ref(),
        upper: match (&args.upper, args.ephemeral) {
            (Some(text), _) => UpperLocation::Elsewhere(elsewhere(text)?),
            (None, Some(size)) => UpperLocation::Ephemeral { size },
            (None, None) => UpperLocation::Store,
        },
        idmap: args.idmap.clone(),
        engine: args.engine,
        overrides: Overrides {
            entrypoint: args.entrypoint.clone(),
            command: args.command.clone(),
            env: args.env.clone(),
            user: args.user.clone(),
            cwd: args.workdir.clone(),
            annotations: args.annotation.clone(),
        },
        hostname: args.hostname.clone(),
        volumes: args
            .volume
            .iter()
            .cloned()
            .map(from_here)
            .collect::<Result<_, _>>()?,
        read_only: args.read_only,
        auto_update: args.auto_update,
        target: target(args)?,
    };
    let created = create(&store, request)?;
    if let (Some(image), Some(upper)) = (&stored, &args.upper) {
        store.note_upper(image, &elsewhere(upper)?)?;
    }
    say(format_args!("{}", created.record.runtime.dir().display()))?;
    Ok(())
}

/// Finds the image: a file, or an image in the store, which is pulled first if necessary.
fn resolve(args: &CreateArgs) -> Result<(Store, Option<StoredImage>, PathBuf), Error> {
    let mut found = args.store.in_store(&args.image);
    let missing = matches!(&found, Err(Error::Store(store::Error::NotFound { .. })));
    let named = missing || matches!(&found, Ok(Some(_)));
    // A mistyped file name is no name of somebody's image.
    let is_file = args.image.extension().is_some_and(|e| e == "bfc") || args.image.exists();
    let pulls = match args.pull {
        When::Always => named,
        When::Missing => missing,
        When::Never => false,
    };
    if pulls && !(missing && is_file) {
        pull_named(
            &args.store,
            args.tls,
            &args.image,
            args.pull == When::Missing,
        )?;
        found = args.store.in_store(&args.image);
    }
    match found? {
        Some((store, image)) => {
            let path = image.path.clone();
            Ok((store, Some(image), path))
        }
        None => Ok((args.store.open()?, None, absolute(&args.image)?)),
    }
}

/// Pulls an image into the store; `missing` says that it is not there.
pub(super) fn pull_named(
    store: &StoreArgs,
    tls: TlsArgs,
    image: &Path,
    missing: bool,
) -> Result<(), Error> {
    let wrong = || Error::Other {
        message: format!("{image:?} is not a reference"),
        hint: None,
        exit: Exit::Usage,
    };
    let registries = store.registries(tls)?;
    let reference = registries.resolve(image.to_str().ok_or_else(wrong)?)?;
    // Without a terminal, one line in the end is enough.
    let transfer = Arc::new(Transfer::new(!is_terminal()));
    let pull = Pull {
        registries,
        observer: transfer.clone(),
        ..Pull::of(&reference)
    };
    let name: Reference = reference.whole().parse()?;
    if missing {
        note(format_args!(
            "lxcri-fs: the store has no image {}: pulling it",
            name.familiar()
        ));
    }
    let pulled = pull.to_store(&store.open()?, &name, true, &Waiting);
    transfer.finish();
    let pulled = pulled?;
    super::pull::tell(name.familiar(), &pulled, transfer.fetched_bytes())
}

/// The name of the image: as it was given, or the one that it is an alias of.
fn name_in_store(args: &CreateArgs, stored: Option<&StoredImage>) -> Result<String, Error> {
    let given = args.image.display().to_string();
    let Some(image) = stored else {
        return Ok(given);
    };
    let is_of = |name: &String| {
        let name = name.parse::<Reference>();
        name.is_ok_and(|name| image.facts.refs.contains(&name))
    };
    if is_of(&given) {
        return Ok(given);
    }
    let alias = args.store.registries(args.tls)?.alias(&given);
    Ok(alias.filter(is_of).unwrap_or(given))
}

/// What later mounts, which can ask nobody, need to find the image and to read it.
fn image_record(
    args: &CreateArgs,
    stored: Option<&StoredImage>,
    path: &Path,
) -> Result<ImageRecord, Error> {
    let file = |file: &Option<PathBuf>| file.as_deref().map(absolute).transpose();
    let (password_file, key_file) = (
        file(&args.secret.password_file)?,
        file(&args.secret.key_file)?,
    );
    if args.secret.password_fd.is_some()
        || args.secret.password_file.as_deref() == Some(Path::new("-"))
    {
        return Err(Error::Other {
            message:
                "the password of a container's image must be in a file: it is needed again at \
                      every start"
                    .into(),
            hint: Some(
                "give --key-file or --password-file with a file that only root can read".into(),
            ),
            exit: Exit::Usage,
        });
    }
    Ok(ImageRecord {
        path: path.to_owned(),
        name: name_in_store(args, stored)?,
        root_digest: None,
        password_file,
        key_file,
    })
}

fn target(args: &CreateArgs) -> Result<Target, Error> {
    let Some(bundle) = &args.bundle else {
        let path = args
            .lxc_path
            .clone()
            .unwrap_or_else(lxc_defaults::container_directory);
        let mut copied = Vec::new();
        if args.include.is_empty() {
            copied = lxc_defaults::settings(&lxc_defaults::default_config())?;
        }
        if args.network == Some(Network::None) {
            copied.retain(|(key, _)| !key.starts_with("lxc.net"));
            // An empty value clears what an included file says.
            copied.push(("lxc.net".to_owned(), String::new()));
            copied.push(("lxc.net.0.type".to_owned(), "empty".to_owned()));
        }
        let includes = args
            .include
            .iter()
            .map(|path| {
                std::fs::metadata(path).map_err(Io::at("looking for", path))?;
                absolute(path)
            })
            .collect::<Result<_, _>>()?;
        return Ok(Target::Lxc {
            path: absolute(&path)?,
            copied,
            includes,
        });
    };
    Ok(Target::Bundle {
        dir: absolute(bundle)?,
        terminal: args.tty,
        seccomp: args.seccomp.as_deref().map(bundle::seccomp).transpose()?,
        new_privileges: args.allow_new_privileges,
    })
}

/// Makes the path of an upper's directory absolute; a dataset stays as it is.
fn elsewhere(text: &str) -> Result<String, Error> {
    if text.starts_with("zfs:") {
        return Ok(text.to_owned());
    }
    let path = absolute(Path::new(text))?;
    path.into_os_string()
        .into_string()
        .map_err(|path| Error::Other {
            message: format!(
                "{} cannot be an upper: its path is not UTF-8",
                path.display()
            ),
            hint: None,
            exit: Exit::Usage,
        })
}

/// Makes a path absolute, and resolves symlinks in the part of it that exists.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, Error> {
    let absolute = std::path::absolute(path).map_err(Io::at("finding", path))?;
    if let Ok(found) = absolute.canonicalize() {
        return Ok(found);
    }
    match (
        absolute.parent().map(Path::canonicalize),
        absolute.file_name(),
    ) {
        (Some(Ok(parent)), Some(name)) => Ok(parent.join(name)),
        _ => Ok(absolute),
    }
}

/// Makes the path of a volume absolute.
fn from_here(volume: Volume) -> Result<Volume, Error> {
    let source = match volume.source {
        Source::Host(path) => Source::Host(absolute(&path)?),
        other => other,
    };
    Ok(Volume { source, ..volume })
}

fn variable(text: &str) -> Result<String, String> {
    if text
        .split_once('=')
        .is_some_and(|(name, _)| !name.is_empty())
    {
        Ok(text.to_owned())
    } else {
        Err("it is not NAME=VALUE".into())
    }
}
