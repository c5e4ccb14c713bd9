//! Mounting images, with or without an upper.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use bfc::Secret;

use super::error::{Error, Result};
use super::index;
use super::lower::Lower;
use super::overlay::{self, Parts};
use super::record::{UpperRecord, identify};
use super::upper_dir::{Upper, UpperDir};
use super::xattrs::Attributes;
use crate::error::Io;
use crate::fs::{ImageFile, ImageOptions, Rootfs};
use crate::serve::engine::Wanted;
use crate::serve::keeper;
use crate::serve::mountpoint::MountPoint;
use crate::serve::protocol::{MountRequest, MountedImage};
use crate::serve::shared::{self, Detached, Hidden};
use crate::sys::handle;
use crate::sys::idmap::IdMap;
use crate::sys::mount_attr::MountFlags;

/// What to mount.
#[derive(Debug)]
pub struct Request<'a> {
    /// The images with their absolute paths and keys, lowest first.
    pub images: Vec<MountedImage>,
    /// Their files, open for reading.
    pub files: &'a [File],
    /// How to open them.
    pub options: ImageOptions,
    /// How many threads serve them, if they are not served yet.
    pub threads: usize,
    /// What may serve them.
    pub engine: Wanted,
    /// The map of ids; `None` for the ids in the images.
    pub idmap: Option<IdMap>,
    /// Flags of the mount.
    pub flags: MountFlags,
    /// A file for the keeper's log, instead of the journal.
    pub log_file: Option<&'a Path>,
    /// Whether the keeper must not be a child of this process: runtimes wait for all their
    /// children.
    pub orphan: bool,
}

impl Request<'_> {
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.files.iter().map(AsFd::as_fd).collect()
    }

    /// The request to a keeper, without the mount point.
    fn to_keeper(&self) -> MountRequest {
        MountRequest {
            images: self.images.clone(),
            options: self.options.clone(),
            mountpoint: OsString::new(),
            shared: None,
            flags: MountFlags {
                allow_other: self.flags.allow_other,
                ..MountFlags::default()
            },
            threads: self.threads,
            engine: self.engine,
            orphan: self.orphan,
        }
    }

    fn paths(&self) -> Vec<PathBuf> {
        let paths = self.images.iter().map(|image| PathBuf::from(&image.path));
        paths.collect()
    }

    /// The attributes to lay out above the image; EROFS shows them as fast itself.
    fn attributes(&self, engine: Wanted) -> Result<Option<Attributes>> {
        if engine != Wanted::Fuse {
            return Ok(None);
        }
        Attributes::of(&self.paths(), self.files, &self.options)
    }

    /// The images, open.
    fn rootfs(&self) -> Result<Rootfs> {
        let sources = self.images.iter().zip(self.files).map(|(image, file)| {
            let path = PathBuf::from(&image.path);
            let file = file
                .try_clone()
                .map_err(Io::at("opening the image", &path))?;
            Ok(ImageFile {
                path,
                file,
                secret: image.key.clone().map(|key| Secret::Key(key.0)),
            })
        });
        Ok(Rootfs::open(
            sources.collect::<Result<_>>()?,
            &self.options,
        )?)
    }
}

/// Mounts images under an upper. `prepare` returns the upper, the mount point, and a value to pass
/// on; it runs while the server starts, which takes longest. With `read_only`, the mount is
/// read-only.
///
/// # Errors
/// [`Error`], and those of `prepare`. Nothing is mounted then; directories of the upper that were
/// created stay.
pub fn mount_under<T, E: From<Error>>(
    request: &Request<'_>,
    prepare: impl FnOnce() -> Result<(Upper, MountPoint, T), E>,
    read_only: bool,
) -> Result<T, E> {
    let prepare = || {
        let (upper, mountpoint, prepared) = prepare()?;
        Ok::<_, E>((upper, (mountpoint, prepared)))
    };
    let (merged, (mountpoint, prepared)) = merged(request, prepare, read_only)?;
    merged.attach(&mountpoint)?;
    Ok(prepared)
}

/// Mounts images under an upper where nobody sees it; the mount ends when the result is dropped.
///
/// # Errors
/// As [`mount_under`].
pub fn mount_detached(request: &Request<'_>, upper: Upper, read_only: bool) -> Result<OwnedFd> {
    let (merged, ()) = merged(request, || Ok::<_, Error>((upper, ())), read_only)?;
    Ok(merged.mount)
}

/// A merged file system that is attached nowhere. As long as this exists, the image's keeper does
/// not end for want of users.
struct Merged {
    mount: OwnedFd,
    _image: Hidden,
}

impl Merged {
    fn attach(self, mountpoint: &MountPoint) -> Result<()> {
        Ok(shared::attach(self.mount.as_fd(), mountpoint)?)
    }
}

/// A detached mount of images under an upper. `prepare` returns the upper, and a value to pass on.
fn merged<T, E: From<Error>>(
    request: &Request<'_>,
    prepare: impl FnOnce() -> Result<(Upper, T), E>,
    read_only: bool,
) -> Result<(Merged, T), E> {
    let paths = request.paths();
    let source = paths.first().map_or(Path::new(""), |path| path);
    let engine = request.engine.on_this_host();
    let attributes = request.attributes(engine)?;
    std::thread::scope(|scope| {
        let hide_xattrs = attributes.is_some();
        let serve = move || acquire(request, engine, hide_xattrs);
        let serving = std::thread::Builder::new()
            .spawn_scoped(scope, serve)
            .map_err(|e| Error::Io(Io::at("starting to serve", source)(e)))?;
        let images = paths
            .iter()
            .zip(request.files)
            .map(|(path, file)| identify(path, file))
            .collect::<Result<Vec<_>>>()?;
        let record = |engine| {
            let (subdir, idmap) = (request.options.subdir.clone(), request.idmap.clone());
            UpperRecord::new(images.clone(), subdir, idmap, engine)
        };
        let xattrs = attributes
            .as_ref()
            .map(Attributes::layer)
            .transpose()?
            .flatten();
        let (upper, prepared) = prepare()?;
        let place = UpperDir::open(&upper)?;
        let path = &place.layout.place;
        let known = UpperRecord::read_in(place.as_fd(), path)?;
        if let Some(known) = &known {
            known.check(&record(known.overlay.engine), path)?;
            known.check_marks(path)?;
            known.check_engine(engine, path)?;
        }
        let mut image = serving
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        if hide_xattrs && xattrs.is_none() {
            // The image must show them itself after all.
            image = acquire(request, engine, false)?;
        }
        let mut lower = Lower { image, xattrs };
        // What an upper says of the image's files is by the numbers that they had.
        if let Some(known) = &known
            && known.overlay.engine != lower.image.engine()
        {
            lower = lower_of(request, known.overlay.engine.into())?;
        }
        let mut record = record(lower.image.engine());
        record.overlay.handles = handle::kind_of(lower.root()).filter(|_| record.overlay.index);
        let changed = match &known {
            Some(known) => known.overlay != record.overlay,
            None => {
                place.claim()?;
                true
            }
        };
        let written = if changed {
            Some(record.write(place.as_fd(), path)?)
        } else {
            None
        };
        if let Some(idmap) = &request.idmap {
            lower.map_ids(idmap)?;
        }
        let directories = place.prepare(lower.root())?;
        if let Some(known) = known.filter(|k| record.overlay.loses_index_of(&k.overlay)) {
            let image = request.rootfs()?;
            index::complete(&place, &directories, &lower, image, known.overlay)?;
            index::forget_root(&place, &directories)?;
        }
        if let Some(written) = written {
            written.keep()?;
        }
        let merged = overlay(lower, source, &place, request.flags, read_only)?;
        Ok((merged, prepared))
    })
}

/// The lower layers of an upper that needs this engine.
fn lower_of(request: &Request<'_>, engine: Wanted) -> Result<Lower> {
    let attributes = request.attributes(engine)?;
    let xattrs = attributes.as_ref().map(Attributes::layer).transpose()?;
    let xattrs = xattrs.flatten();
    let image = acquire(request, engine, xattrs.is_some())?;
    Ok(Lower { image, xattrs })
}

/// Mounts images without an upper.
///
/// # Errors
/// [`Error`]; nothing is mounted then.
pub fn mount(request: &Request<'_>, mountpoint: &MountPoint) -> Result<()> {
    if request.idmap.is_none() && !shared::is_possible() {
        // Without the right to make bind mounts: a mount of the user's own, with fusermount3.
        let (at, flags) = (mountpoint.path().as_os_str().to_owned(), request.flags);
        let wanted = MountRequest {
            mountpoint: at,
            flags,
            engine: request.engine.of_user()?,
            ..request.to_keeper()
        };
        return Ok(keeper::start(
            &wanted,
            None,
            &request.descriptors(),
            request.log_file,
        )?);
    }
    let image = acquire(request, request.engine.on_this_host(), false)?;
    if let Some(idmap) = &request.idmap {
        image.map_ids(idmap)?;
    }
    Ok(image.attach(mountpoint, request.flags)?)
}

/// A detached mount of the images; with `hide_xattrs`, without their attributes.
fn acquire(request: &Request<'_>, engine: Wanted, hide_xattrs: bool) -> Result<Detached> {
    if !shared::is_possible() {
        return Err(Error::NotAllowed);
    }
    // The place of the shared mount, and the flags of each mount, are decided elsewhere.
    let wanted = MountRequest {
        options: ImageOptions {
            hide_xattrs,
            ..request.options.clone()
        },
        engine,
        ..request.to_keeper()
    };
    Ok(shared::acquire(
        wanted,
        &request.descriptors(),
        request.log_file,
    )?)
}

/// Mounts an upper over an image.
pub(super) fn over(
    lower: Lower,
    source: &Path,
    place: &UpperDir,
    flags: MountFlags,
    read_only: bool,
    mountpoint: &MountPoint,
) -> Result<()> {
    overlay(lower, source, place, flags, read_only)?.attach(mountpoint)
}

/// A detached mount of an upper over an image.
fn overlay(
    lower: Lower,
    source: &Path,
    place: &UpperDir,
    flags: MountFlags,
    read_only: bool,
) -> Result<Merged> {
    let directories = place.prepare(lower.root())?;
    let xattrs = lower.xattrs.map(Hidden::lower).transpose()?;
    let image = lower.image.hide()?;
    let mount = overlay::mount(&Parts {
        source,
        xattrs: xattrs.as_ref(),
        lower: &image,
        upper: &place.layout,
        directories: &directories,
        flags,
        read_only,
    })?;
    Ok(Merged {
        mount,
        _image: image,
    })
}
