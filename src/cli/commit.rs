//! `lxcri-fs commit`

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use bfc::writer::WriteOptions;
use clap::Args;

use super::build::{WriteArgs, print};
use super::error::{Error, Exit};
use super::in_place;
use super::open::open_images;
use super::progress::Work;
use super::secret::SecretArgs;
use super::store::StoreArgs;
use super::upper_name::find;
use crate::build::{self, AppendOptions, Platform, Spec, sources};
use crate::image::{Events, Layered, Sources, total};
use crate::store::{Reference, protect};

/// Make an image of an image and what was written over it: a new layer
///
/// What is written must not change meanwhile: on ZFS a snapshot is read, a directory must not be in
/// use.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lxcri-fs commit /srv/web1 nginx.bfc -o patched.bfc
  lxcri-fs commit web1 -t nginx:patched
  lxcri-fs commit zfs:tank/web1 --in-place")]
pub(super) struct CommitArgs {
    /// The container, where it is mounted, or the upper: its directory, or its dataset after `zfs:`
    #[arg(value_name = "UPPER")]
    upper: OsString,
    /// The image, when it is not where it was; of several, the lowest first
    #[arg(value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// Where the new image goes; it shares the image's blocks where the file system can
    #[arg(short, long, value_name = "NEW", required_unless_present_any = ["in_place", "tag"])]
    output: Option<PathBuf>,
    /// Put the new image into the store under this name; an image that has the name loses it
    #[arg(short, long, value_name = "NAME", conflicts_with = "output")]
    tag: Option<Reference>,
    /// Append the layer to the image itself, if it is none of a store. The upper has served its
    /// time then: another one, empty, shows the same
    #[arg(long, conflicts_with_all = ["output", "tag"])]
    in_place: bool,
    /// Replace the new image if it exists; with --in-place, also when other uppers do not fit the
    /// image any more then
    #[arg(short, long, conflicts_with = "tag")]
    force: bool,
    /// What the layer's history says
    #[arg(short, long, value_name = "TEXT", default_value = "lxcri-fs commit")]
    message: String,
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
    let written = find(&args.upper, &args.store)?;
    let record = written.record()?;
    if record.subdir.is_some() {
        return Err(Error::Other {
            message: "what was written over a subdirectory of an image cannot be a layer of it"
                .to_owned(),
            hint: Some(
                "`lxcri-fs build dir:WHERE-IT-IS-MOUNTED` makes an image of all that is seen"
                    .to_owned(),
            ),
            exit: Exit::Failure,
        });
    }
    let image = Arc::new(open_images(&record, &args.images, &args.secret)?);
    let paths: Vec<PathBuf> = image.paths().map(PathBuf::from).collect();
    // A plain v1 image has no layers to continue from.
    let base = paths
        .first()
        .filter(|_| {
            image
                .section()
                .layers()
                .is_ok_and(|layers| !layers.is_empty())
        })
        .cloned();
    let secret = args.secret.load()?;
    let output = args
        .output
        .as_ref()
        .or(paths.first())
        .cloned()
        .unwrap_or_default();
    let sources = sources::Options {
        platform: Platform::host(),
        secret: secret.clone(),
        temp_dir: build::parent(&output),
        max_size: args.write.max_size,
    };
    if let Some(output) = &args.output {
        protect::refuse_to_write_in(&build::parent(output), output)?;
    }
    if let (true, [path]) = (args.in_place, &paths[..]) {
        in_place::check(&args.store, path, Some(&written.layout.upper), args.force)?;
    }
    let write = WriteOptions {
        level: args.write.level,
        ..WriteOptions::default()
    };
    let still = written.hold()?;
    let layer = still.source(&record, image)?.into_image(&args.message)?;
    let events = Work::new("Committing");
    if let Some(reference) = &args.tag {
        let store = args.store.open()?;
        let layers = Sources::from(vec![layer]);
        let built = Layered {
            images: paths,
            layers,
            sources,
            write,
        }
        .to_store(&store, reference, &events)?;
        return print(reference.familiar(), &built, args.json);
    }
    let built = match &args.output {
        None => {
            let [path] = &paths[..] else {
                return Err(Error::Other {
                    message: "the upper lies on several images".to_owned(),
                    hint: Some("make a new image of them with -o".to_owned()),
                    exit: Exit::Usage,
                });
            };
            events.begins(total(std::slice::from_ref(&layer)));
            let options = AppendOptions {
                write,
                secret,
                sources,
            };
            let built = build::append(path, vec![layer], &options, &|n| events.done(n));
            events.ends();
            built
        }
        Some(output) => {
            let mut images = Vec::new();
            for path in &paths {
                images.push(sources::open(
                    &Spec {
                        kind: sources::Kind::Bfc,
                        path: path.clone(),
                        reference: None,
                    },
                    &sources,
                )?);
            }
            images.push(layer);
            events.begins(
                images
                    .last()
                    .map_or(0, |layer| total(std::slice::from_ref(layer))),
            );
            let options = build::Options {
                output: output.clone(),
                force: args.force,
                sources,
                write,
                base,
                is_clone: false,
            };
            let built = build::build(images, &options, &|n| events.done(n));
            events.ends();
            built
        }
    };
    print(&output.display().to_string(), &built?, args.json)
}
