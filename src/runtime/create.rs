//! Creates a container as one transaction: a failed `create` is undone, and a killed one is undone
//! by the next `create` or `delete` of that name.

use std::fs::File;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxSeccomp;

use super::configuration::{configuration, is_system};
use super::directory::{RuntimeDirectory, check_free};
use super::error::{Error, Result};
use super::image::ContainerImage;
use super::left::{self, Existing};
use super::process::{Overrides, Process};
use super::record::{ContainerRecord, ImageRecord, Runtime, UpperLocation};
use super::root_mount::{self, Writable};
use super::settings::Settings;
use super::steps::{self, Left, Step};
use super::volumes;
use super::volumes::Volume;
use crate::fs::Rootfs;
use crate::serve::engine::Wanted as Engine;
use crate::serve::overview;
use crate::serve::protocol::ImageKey;
use crate::store::{self, Container, Store};
use crate::sys::idmap::IdMap;

/// Annotation of bundles that `create` wrote: the container's name. Only the store says what the
/// container is.
pub const CONTAINER: &str = "org.lxcri-fs.container";

/// A request to create a container.
#[derive(Debug)]
pub struct Request<'a> {
    /// The container's name.
    pub name: &'a str,
    /// Its image, open.
    pub rootfs: &'a Rootfs,
    /// Its file, open for reading.
    pub file: &'a File,
    /// The image's key, if it is encrypted.
    pub key: Option<ImageKey>,
    /// How to find the image again.
    pub image: ImageRecord,
    /// The image in the store, if it is there: it cannot be removed before the container.
    pub stored: Option<&'a store::StoredImage>,
    /// Where it writes.
    pub upper: UpperLocation,
    /// The map of ids of its user namespace, if it has one.
    pub idmap: Option<IdMap>,
    /// What may serve the image; `None` for what is configured.
    pub engine: Option<Engine>,
    /// What to run instead of the image's command.
    pub overrides: Overrides,
    /// Host name; `None` for the container's name.
    pub hostname: Option<String>,
    /// Its volumes, besides those that the image declares.
    pub volumes: Vec<Volume>,
    /// Whether its root file system is read-only in the container.
    pub read_only: bool,
    /// Whether `update --all --filter auto=on` updates it.
    pub auto_update: bool,
    /// The runtime that it is for.
    pub target: Target,
}

/// The runtime that a container is for.
#[derive(Debug)]
pub enum Target {
    /// LXC.
    Lxc {
        /// LXC's directory for containers.
        path: PathBuf,
        /// Keys and values of LXC's default configuration.
        copied: Vec<(String, String)>,
        /// Configurations to include last.
        includes: Vec<PathBuf>,
    },
    /// An OCI runtime.
    Bundle {
        /// The bundle's directory, absolute. It may exist if it is empty.
        dir: PathBuf,
        /// Whether it gets a terminal.
        terminal: bool,
        /// Seccomp filter.
        seccomp: Option<LinuxSeccomp>,
        /// Whether set-user-id programs gain privileges.
        new_privileges: bool,
    },
}

/// A container that was created.
#[derive(Debug)]
pub struct Created {
    /// The record.
    pub record: ContainerRecord,
    /// The container's directory.
    pub dir: PathBuf,
}

/// Creates a container.
///
/// # Errors
/// [`Error`]. Nothing is left behind then, except an upper outside the store that existed before.
pub fn create(store: &Store, request: Request<'_>) -> Result<Created> {
    let image = ContainerImage::open(request.rootfs)?;
    let process = Process::of(&image, &request.overrides)?;
    if request.read_only {
        process.check_volumes()?;
    }
    let runtime = match &request.target {
        Target::Lxc { path, .. } => Runtime::Lxc {
            dir: path.join(request.name),
            system: is_system(&image, &process, &request.overrides)?,
        },
        Target::Bundle { dir, .. } => Runtime::Bundle { dir: dir.clone() },
    };
    let _lock = left::lock(store, request.name)?;
    overview::sweep();
    let kept = clear_away(store, request.name)?;
    let described = ImageRecord {
        root_digest: image.root_digest.clone(),
        ..request.image.clone()
    };
    let mut record = ContainerRecord::new(
        request.name,
        described,
        request.upper.clone(),
        request.idmap.clone(),
        runtime,
        &process.cwd,
    );
    record.engine = request.engine;
    record.found_upper |= kept.is_some();
    let settings = Settings::of(&request)?;
    record.settings = Some(settings.clone());
    record.auto_update = request.auto_update;
    check_free(&record.runtime)?;
    // What is written to memory is discarded, and so is what would be in volumes of its own.
    let keeps = !matches!(request.upper, UpperLocation::Ephemeral { .. });
    let wanted = volumes::wanted(&image, &process, &request.volumes, keeps)?;
    let all = steps::create(kept.is_some());
    // The steps before the mount, which run while the server starts, and those after it.
    let (before, after) = all.split_at(
        all.iter()
            .position(|&step| step == Step::Mount)
            .unwrap_or(all.len()),
    );
    let group = record.idmap.as_ref().and_then(root_mount::root_of);
    let mut existing = None;
    let prepare = || {
        let container = match kept {
            Some(container) => container,
            None => store.create_container(
                request.name,
                &request.stored.into_iter().collect::<Vec<_>>(),
            )?,
        };
        let (name, dir) = (container.name.clone(), container.path.clone());
        let begun = existing.insert(Existing::new(store, container, record.clone()));
        let mut record = record.clone();
        record.place = Some(store.place(&name)?);
        record.volumes = volumes::places(store, &dir, &wanted)?;
        begun.record = Some(record.clone());
        for &step in before {
            match step {
                Step::MakeDirectories => begun.make_outside(group.map(|(_, group)| group))?,
                Step::WriteConfiguration => {
                    let config = configuration(store, &settings, &image, &process, &record, &dir)?;
                    // It contains environment variables, which may be secret.
                    outside_of(begun)?.configure(&config)?;
                }
                other => begun.take(&[other])?,
            }
        }
        let root = outside_of(begun)?.root();
        Ok((
            Writable::of(&record, &dir).upper()?,
            root.clone(),
            (dir, root),
        ))
    };
    let mut mounted = root_mount::mount(&record, request.file, request.key.clone(), prepare);
    if let (Ok((_, root)), Some(begun)) = (&mounted, &mut existing) {
        let made = after.iter().try_for_each(|&step| match step {
            Step::MakeWorkingDirectory => {
                root_mount::make_directory(root, &record.cwd, record.idmap.as_ref())
            }
            Step::FillVolumes => match &begun.record {
                Some(record) => volumes::fill(store, record, root),
                None => Ok(()),
            },
            other => begun.take(&[other]),
        });
        mounted = made.and(mounted);
    }
    match (mounted, existing) {
        (
            Ok((dir, _)),
            Some(Existing {
                record: Some(record),
                ..
            }),
        ) => Ok(Created { record, dir }),
        (Ok((dir, _)), _) => Ok(Created { record, dir }),
        (Err(error), Some(mut begun)) => {
            // It has been marked since the first step, even if it existed before.
            Err(begun.failed(error))
        }
        (Err(error), None) => Err(error),
    }
}

/// The runtime's directory of a container that is being made.
pub(super) fn outside_of<'a>(begun: &'a mut Existing<'_>) -> Result<&'a RuntimeDirectory> {
    begun
        .outside()?
        .ok_or_else(|| Error::unfit("the directory of the container has been removed"))
}

/// Undoes the remains of an interrupted `create` or `delete` of this name. Returns the container if
/// its upper was kept.
pub(super) fn clear_away(store: &Store, name: &str) -> Result<Option<Container>> {
    // This ends, because each round removes something.
    loop {
        let Some(mut existing) = Existing::find(store, name)? else {
            return Ok(None);
        };
        match existing.found().left() {
            Left::Ready => {
                let store = store.location().to_string();
                return Err(store::Error::Exists {
                    kind: "container",
                    name: name.to_owned(),
                    store,
                }
                .into());
            }
            Left::Kept => return Ok(Some(existing.container)),
            Left::Strange => return Err(strange(store, name, existing.record.is_some())),
            Left::Undo(steps) => existing.take(&steps)?,
        }
    }
}

/// The error for something in the container's place that no `create` or `delete` of ours left
/// there.
pub(super) fn strange(store: &Store, name: &str, recorded: bool) -> Error {
    let (why, hint) = if recorded {
        (
            "is incomplete, but not marked as such",
            format!("if no process is working on it, `lxcri-fs delete {name}` removes it"),
        )
    } else {
        (
            "has no record of a container",
            "lxcri-fs did not create it: choose another name".to_owned(),
        )
    };
    Error::Unfit {
        what: format!("{name} in the store {} {why}", store.location()),
        hint: Some(hint),
    }
}

/// A path as text, which configurations require.
pub(super) fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Error::unfit(format!(
            "{} is not UTF-8, so no configuration can name it",
            path.display()
        ))
    })
}
