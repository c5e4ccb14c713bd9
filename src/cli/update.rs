//! `lxcri-fs update`

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use jiff::SignedDuration;
use serde::Serialize;

use super::create::{absolute, pull_named};
use super::error::{Error, Exit};
use super::judgement::{self, MergeArgs, Rows};
use super::output::{all_or, json, note, printable, say};
use super::progress::Work;
use super::secret::SecretArgs;
use super::store::StoreArgs;
use super::tls::TlsArgs;
use crate::error::{Report as _, chain};
use crate::fs::{ImageFile, ImageOptions, Rootfs};
use crate::image::{Judged, open_file};
use crate::runtime::delete::find;
use crate::runtime::record::{ContainerRecord, ImageRecord, State};
use crate::runtime::restart::Lxc;
use crate::runtime::update::{Request, judge, rollback, set_auto, update};
use crate::runtime::{self, root_mount};
use crate::store::config::duration;
use crate::store::{self, Store};

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

/// What `--auto` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Auto {
    /// `update --all --filter auto=on` updates the container
    On,
    /// It does not
    Off,
}

/// Give a container another image, and keep what it has written
///
/// What the container changed and what the new image changed are merged, path by path; volumes stay
/// as they are. `lxcri-fs rollback NAME` goes back. A running LXC container is stopped and started
/// again; others must be stopped first.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs update web1 --dry-run
  lxcri-fs update web1 --image nginx:1.28
  lxcri-fs update web1 --pull always --check 'curl -sf localhost'
  lxcri-fs update --auto on web1
  lxcri-fs update --all --filter image=nginx:1.27")]
pub(super) struct UpdateArgs {
    /// The container
    #[arg(
        value_name = "NAME",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    name: Option<String>,
    /// Update all containers whose image's name means another image now, each by itself
    #[arg(long, conflicts_with_all = ["image", "auto"])]
    all: bool,
    /// With --all: only those of this image (image=NAME), or only those for which `--auto on` was
    /// said (auto=on); can be given several times
    #[arg(long, value_name = "KEY=VALUE", requires = "all", value_parser = filter)]
    filter: Vec<Filter>,
    /// The new image: a file, or the name or digest of an image in the store (default: what the
    /// name of the container's image means now)
    #[arg(long, value_name = "IMAGE")]
    image: Option<PathBuf>,
    /// When to pull the image from its registry
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pull: When,
    /// Set whether `update --all --filter auto=on` updates the container, and do nothing else
    #[arg(long, value_name = "WHETHER")]
    auto: Option<Auto>,
    #[command(flatten)]
    merge: MergeArgs,
    /// Run this command line in the updated container until it succeeds, and go back if it does
    /// not in time; LXC only
    #[arg(long, value_name = "CMD", conflicts_with = "no_start")]
    check: Option<String>,
    /// How long the check may take
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    check_timeout: SignedDuration,
    /// Do not start a container again that ran
    #[arg(long)]
    no_start: bool,
    #[command(flatten)]
    secret: SecretArgs,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    store: StoreArgs,
    /// Print one JSON object for each container
    #[arg(long)]
    json: bool,
}

/// What `--filter` takes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Filter {
    Image(String),
    Auto(bool),
}

fn filter(text: &str) -> Result<Filter, String> {
    match text.split_once('=') {
        Some(("image", name)) => Ok(Filter::Image(name.to_owned())),
        Some(("auto", "on")) => Ok(Filter::Auto(true)),
        Some(("auto", "off")) => Ok(Filter::Auto(false)),
        _ => Err("it is none of image=NAME, auto=on, auto=off".to_owned()),
    }
}

impl Filter {
    fn fits(&self, record: &ContainerRecord) -> bool {
        match self {
            Self::Image(name) => {
                let parsed = |name: &str| name.parse::<store::Reference>().ok();
                record.image.name == *name
                    || parsed(name).is_some_and(|name| parsed(&record.image.name) == Some(name))
            }
            Self::Auto(auto) => record.auto_update == *auto,
        }
    }
}

/// How it ended for a container.
#[derive(Serialize)]
struct Report {
    name: String,
    /// `updated`, `would-update`, `current`, `went-back` or `failed`.
    result: &'static str,
    old_image: Image,
    /// Absent if it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    new_image: Option<Image>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    judgement: Option<Rows>,
    /// Why it failed or went back.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct Image {
    name: String,
    root_digest: Option<String>,
}

impl Image {
    fn of(image: &ImageRecord) -> Self {
        Self {
            name: printable(image.name.as_bytes()),
            root_digest: image.root_digest.clone(),
        }
    }
}

pub(super) fn run(args: &UpdateArgs) -> Result<(), Error> {
    super::limits::raise_open_files();
    let store = args.store.open()?;
    if let (Some(auto), Some(name)) = (args.auto, &args.name) {
        return Ok(set_auto(&store, name, auto == Auto::On)?);
    }
    let Some(name) = &args.name else {
        return all(args, &store);
    };
    let (record, _) = find(&store, name)?;
    let given = args.image.clone();
    let image = given.unwrap_or_else(|| PathBuf::from(&record.image.name));
    pull(args, &image)?;
    one(args, &store, name, &image, true)
}

/// Pulls an image, if that was asked for.
fn pull(args: &UpdateArgs, image: &Path) -> Result<(), Error> {
    let found = args.store.in_store(image);
    let missing = matches!(&found, Err(Error::Store(store::Error::NotFound { .. })));
    let named = missing || matches!(&found, Ok(Some(_)));
    let pulls = match args.pull {
        When::Always => named,
        When::Missing => missing && !image.exists(),
        When::Never => false,
    };
    match pulls {
        true => pull_named(&args.store, args.tls, image, false),
        false => Ok(()),
    }
}

/// Updates all containers that are behind.
fn all(args: &UpdateArgs, store: &Store) -> Result<(), Error> {
    let mut behind = Vec::new();
    let mut failures = Vec::new();
    let mut pulled = BTreeSet::new();
    for container in store.containers()? {
        let name = container.name.to_string();
        let Ok((record, _)) = find(store, &name) else {
            continue;
        };
        let fits = args.filter.iter().all(|filter| filter.fits(&record));
        // A file has no name that moves on.
        let is_named = record.image.name.parse::<store::Reference>().is_ok();
        if fits && is_named && record.state == State::Ready {
            let image = PathBuf::from(&record.image.name);
            if args.pull == When::Always
                && pulled.insert(image.clone())
                && let Err(error) = pull(args, &image)
            {
                failures.push(error);
            }
            behind.push((name, image));
        }
    }
    let total = behind.len();
    for (name, image) in behind {
        if let Err(error) = one(args, store, &name, &image, false) {
            if !args.json {
                say(format_args!("{name}: failed: {}", chain(&error)))?;
            }
            failures.push(error);
        }
    }
    all_or(failures, total, "containers were not updated")
}

/// Updates a container; `alone` if it is the only one that was asked for.
fn one(
    args: &UpdateArgs,
    store: &Store,
    name: &str,
    image: &Path,
    alone: bool,
) -> Result<(), Error> {
    let (record, _) = find(store, name)?;
    let mut report = Report {
        name: name.to_owned(),
        result: "failed",
        old_image: Image::of(&record.image),
        new_image: None,
        judgement: None,
        error: None,
    };
    let done = updated(args, store, &record, image, &mut report);
    if let Err(error) = &done {
        report.error = Some(chain(error));
    }
    if args.json {
        json(&report)?;
        return done.map(drop);
    }
    let judged = done?;
    if let Some(judged) = &judged {
        judgement::print(judged, args.merge.dry_run)?;
    }
    match (report.result, &report.new_image) {
        ("current", _) if alone => say(format_args!("{name} is up to date")),
        ("current", _) => Ok(()),
        ("updated", Some(new)) => say(format_args!(
            "{name}: updated to {}; `lxcri-fs rollback {name}` goes back",
            new.name
        )),
        ("would-update", Some(new)) => say(format_args!("{name} would get {}", new.name)),
        _ => Ok(()),
    }
}

fn updated(
    args: &UpdateArgs,
    store: &Store,
    record: &ContainerRecord,
    image: &Path,
    report: &mut Report,
) -> Result<Option<Judged>, Error> {
    let lxc = Lxc::of(record);
    if args.check.is_some() && lxc.is_none() {
        return Err(Error::Other {
            message: format!("{} is not LXC's: only its engine can start it", record.name),
            hint: Some(
                "check it after its engine has started it; `lxcri-fs rollback NAME` \
                        goes back"
                    .to_owned(),
            ),
            exit: Exit::Usage,
        });
    }
    let stored = args.store.in_store(image)?;
    let (path, file) = match &stored {
        Some((store, image)) => (image.path.clone(), store.open_image(image)?),
        None => (absolute(image)?, open_file(image)?),
    };
    let file_of = |file: &Option<PathBuf>| file.as_deref().map(absolute).transpose();
    let (password_file, key_file) = (
        file_of(&args.secret.password_file)?,
        file_of(&args.secret.key_file)?,
    );
    let asked = password_file.is_some() || key_file.is_some();
    let mut new = ImageRecord {
        path: path.clone(),
        name: image.display().to_string(),
        root_digest: None,
        password_file: if asked {
            password_file
        } else {
            record.image.password_file.clone()
        },
        key_file: if asked {
            key_file
        } else {
            record.image.key_file.clone()
        },
    };
    let again = file.try_clone();
    let source = ImageFile {
        path: path.clone(),
        file: again.map_err(crate::error::Io::at("opening the image", &path))?,
        secret: root_mount::secret_of(&new).map_err(Error::from)?,
    };
    let rootfs = Rootfs::open(vec![source], &ImageOptions::default())?;
    new.root_digest = runtime::image::ContainerImage::open(&rootfs)?.root_digest;
    report.new_image = Some(Image::of(&new));
    if new.root_digest.is_some() && new.root_digest == record.image.root_digest {
        report.result = "current";
        return Ok(None);
    }
    let progress = Work::new("Carrying over");
    let request = Request {
        name: &record.name,
        rootfs: &rootfs,
        file: &file,
        image: new,
        options: args.merge.options()?,
        events: &progress,
    };
    let judged = if args.merge.dry_run {
        report.result = "would-update";
        judge(store, &request)?
    } else {
        let judged = changed(args, store, &request, lxc.as_ref(), report)?;
        report.result = "updated";
        judged
    };
    report.judgement = Some(Rows::of(&judged));
    if args.merge.dry_run {
        args.merge.check(&judged.judgement)?;
    }
    Ok(Some(judged))
}

/// Updates a container that is LXC's, or does not run; starts it again, and checks it.
fn changed(
    args: &UpdateArgs,
    store: &Store,
    request: &Request<'_>,
    lxc: Option<&Lxc>,
    report: &mut Report,
) -> Result<Judged, Error> {
    let running = match lxc {
        Some(lxc) if lxc.is_running()? => Some(lxc),
        _ => None,
    };
    if let Some(lxc) = running {
        lxc.stop()?;
    }
    let starts = running.filter(|_| !args.no_start);
    let refused = |judgement: &_| {
        let checked = args.merge.check(judgement);
        checked.map_err(|error| runtime::Error::Refused {
            what: error.to_string(),
            hint: error.hint(),
        })
    };
    let judged = match update(store, request, &refused) {
        Ok(judged) => judged,
        Err(error) => {
            // As it was.
            if let Some(Err(again)) = starts.map(Lxc::start) {
                note(format_args!(
                    "lxcri-fs: it stays stopped: {}",
                    chain(&again)
                ));
            }
            return Err(error.into());
        }
    };
    let started = starts.map_or(Ok(()), Lxc::start);
    let checked = started.and_then(|()| match (&args.check, lxc) {
        (Some(line), Some(lxc)) => {
            if running.is_none() {
                lxc.start()?;
            }
            let limit = Duration::try_from(args.check_timeout).unwrap_or_default();
            lxc.check(line, limit)?;
            if running.is_none() {
                lxc.stop()?;
            }
            Ok(())
        }
        _ => Ok(()),
    });
    let Err(error) = checked else {
        return Ok(judged);
    };
    let went_back = lxc.map_or(Ok(()), |lxc| match lxc.is_running()? {
        true => lxc.stop(),
        false => Ok(()),
    });
    went_back.and_then(|()| rollback(store, request.name))?;
    report.result = "went-back";
    starts.map_or(Ok(()), Lxc::start)?;
    note(format_args!(
        "lxcri-fs: {} went back to {}",
        request.name, report.old_image.name
    ));
    Err(error.into())
}
