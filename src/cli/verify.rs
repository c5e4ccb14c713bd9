//! `lxcri-fs verify`

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::error::{Error, Exit};
use super::open::{ImageArgs, Opened, confine};
use super::output::{count, json, printable, say, size};
use super::progress::Work;
use super::secret::SecretArgs;
use super::store::StoreArgs;
use crate::error::Report as _;
use crate::error::chain;
use crate::fs::{ImageOptions, Rootfs};
use crate::image::{Events as _, verify};
use crate::serve::confine::Kept;

/// Check everything in images: structures, checksums, authentication tags, and the content of every
/// file
#[derive(Debug, Args)]
#[command(override_usage = "\
lxcri-fs verify [OPTIONS] <IMAGE>...
       lxcri-fs verify [OPTIONS] --all")]
#[command(after_help = "\
Examples:
  lxcri-fs verify debian.bfc && echo sound
  lxcri-fs verify --all")]
pub(super) struct VerifyArgs {
    /// Files, or names or digests of images in the store
    #[arg(
        value_name = "IMAGE",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    images: Vec<PathBuf>,
    /// Check all images in the store
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    secret: SecretArgs,
    #[command(flatten)]
    store: StoreArgs,
    /// Print one JSON object for each image
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    image: &'a str,
    sound: bool,
    entries: u64,
    contents: u64,
    bytes: u64,
    /// Path in the image (empty for the image as a whole), and what is wrong there.
    damage: Vec<(String, String)>,
}

/// An image to check.
struct Subject<T> {
    name: String,
    opened: Result<T, Error>,
    /// The root digest that the store has recorded.
    root_digest: Option<String>,
}

pub(super) fn run(args: &VerifyArgs) -> Result<(), Error> {
    let options = ImageOptions {
        check_hash: true,
        ..ImageOptions::default()
    };
    let files = subjects(args)?;
    confine(Kept::default(), &options);
    let read = |Subject {
                    name,
                    opened,
                    root_digest,
                }: Subject<Opened>| Subject {
        name,
        opened: opened.and_then(|opened| opened.read(&options)),
        root_digest,
    };
    let subjects: Vec<_> = files.into_iter().map(read).collect();
    let total = subjects
        .iter()
        .filter_map(|s| s.opened.as_ref().ok())
        .map(Rootfs::content_bytes)
        .sum();
    let progress = Work::begun("Verifying", total);
    let (count, mut damaged, mut unopened) = (subjects.len(), Vec::new(), Vec::new());
    for Subject {
        name,
        opened,
        root_digest,
    } in subjects
    {
        match opened {
            Ok(rootfs) => {
                if !check(args, &name, &rootfs, root_digest, &progress)? {
                    damaged.push(name);
                }
            }
            Err(error) if count == 1 => return Err(error),
            Err(error) => {
                let what = chain(&error);
                print(
                    args,
                    &Report {
                        image: &name,
                        sound: false,
                        entries: 0,
                        contents: 0,
                        bytes: 0,
                        damage: vec![(String::new(), what)],
                    },
                )?;
                if error.exit() == Exit::Damaged {
                    damaged.push(name)
                } else {
                    unopened.push(error)
                }
            }
        }
    }
    progress.ends();
    if damaged.is_empty() {
        // For instance an image that needs a password.
        return unopened.pop().map_or(Ok(()), Err);
    }
    let names = damaged.join(", ");
    let message = if count == 1 {
        format!("{names} is damaged")
    } else {
        format!("{} of {count} images are damaged: {names}", damaged.len())
    };
    let hint = Some(
        "`lxcri-fs pull --force REFERENCE` or `lxcri-fs build --force SOURCE` makes the image \
         again; files that are not listed can still be read, unless the image itself is listed"
            .into(),
    );
    Err(Error::Other {
        message,
        hint,
        exit: Exit::Damaged,
    })
}

fn subjects(args: &VerifyArgs) -> Result<Vec<Subject<Opened>>, Error> {
    let open = |image: PathBuf| {
        ImageArgs {
            image,
            secret: args.secret.clone(),
            store: args.store.clone(),
        }
        .file()
    };
    if !args.all {
        let named = args.images.iter().map(|path| Subject {
            name: path.display().to_string(),
            opened: open(path.clone()),
            root_digest: None,
        });
        return Ok(named.collect());
    }
    let scan = args.store.open()?.scan()?;
    let broken = scan.broken.into_iter().map(|(name, e)| Subject {
        name: name.to_string(),
        opened: Err(e.into()),
        root_digest: None,
    });
    let images = scan.images.into_iter().map(|image| Subject {
        name: image
            .facts
            .refs
            .first()
            .map_or_else(|| image.name.to_string(), ToString::to_string),
        opened: open(image.path),
        root_digest: Some(image.facts.root_digest),
    });
    Ok(images.chain(broken).collect())
}

/// Checks an image, prints the result, and returns whether the image is sound.
fn check(
    args: &VerifyArgs,
    name: &str,
    rootfs: &Rootfs,
    root_digest: Option<String>,
    events: &Work,
) -> Result<bool, Error> {
    let verified = verify(rootfs, root_digest.as_deref(), events);
    let found = &verified.found;
    let damage = found.damage.iter();
    let mut damage: Vec<_> = damage
        .map(|d| (printable(&d.path), chain(&d.error)))
        .collect();
    if let Some(known) = &verified.other_than {
        damage.push((
            String::new(),
            format!("it is not the image that the store recorded, whose root digest is {known}"),
        ));
    }
    let report = Report {
        image: name,
        sound: verified.is_sound(),
        entries: found.entries,
        contents: found.contents,
        bytes: found.bytes,
        damage,
    };
    print(args, &report)?;
    Ok(report.sound)
}

fn print(args: &VerifyArgs, report: &Report<'_>) -> Result<(), Error> {
    if args.json {
        return json(report);
    }
    let several = args.all || args.images.len() > 1;
    for (path, what) in &report.damage {
        let place = if path.is_empty() { "(image)" } else { path };
        if several {
            say(format_args!("{}: {place}: {what}", report.image))?
        } else {
            say(format_args!("{place}: {what}"))?
        }
    }
    if report.sound {
        say(format_args!(
            "{}: sound: {}, {} of content",
            report.image,
            count(report.entries, "entry", "entries"),
            size(report.bytes)
        ))?;
    }
    Ok(())
}
