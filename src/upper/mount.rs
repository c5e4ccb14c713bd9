//! Mounting images, with or without an upper.
//!
//! With one it takes two steps, [`serve`] and [`Served::mount`]: most of the time goes to the first, which needs nothing of the upper.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::engine::{Engine, Parts};
use super::error::{Error, Result};
use super::lower::Lower;
use super::overlay::Overlay;
use super::place::{Layout, Place, Upper};
use super::record::{Record, identify};
use super::xattrs;
use crate::fs::Options;
use crate::serve::idmap::IdMap;
use crate::serve::protocol::{Image, MountFlags, MountRequest};
use crate::serve::shared::{self, Detached, Hidden};

/// What to mount.
#[derive(Debug)]
pub struct Request<'a> {
    /// The images with their absolute paths and keys, lowest first.
    pub images: Vec<Image>,
    /// Their files, open for reading.
    pub files: &'a [File],
    /// How to open them.
    pub options: Options,
    /// How many threads serve them, if nobody serves them yet.
    pub threads: usize,
    /// Whose ids are seen; the image's own when there is none.
    pub idmap: Option<IdMap>,
    /// Flags of the mount.
    pub flags: MountFlags,
    /// Where the keeper logs, instead of the journal.
    pub log_file: Option<&'a Path>,
}

/// Images that are served, to be mounted under an upper. Nobody serves them any longer when this is dropped instead.
#[derive(Debug)]
pub struct Served {
    lower: Lower,
    record: Record,
    source: PathBuf,
    flags: MountFlags,
}

/// Has images served for an upper.
///
/// # Errors
/// [`Error`].
pub fn serve(mut request: Request<'_>) -> Result<Served> {
    let paths: Vec<PathBuf> = request.images.iter().map(|image| PathBuf::from(&image.path)).collect();
    let images = paths.iter().zip(request.files).map(|(path, file)| identify(path, file)).collect::<Result<_>>()?;
    let record = Record::new(images, request.options.subdir.clone(), request.idmap.clone());
    let xattrs = xattrs::layer(&paths, request.files, &request.options)?;
    request.options.hide_xattrs = xattrs.is_some();
    let (flags, idmap) = (request.flags, request.idmap.take());
    let lower = Lower { image: acquire(request)?, xattrs };
    if let Some(idmap) = &idmap {
        lower.map_ids(idmap)?;
    }
    Ok(Served { lower, record, source: paths.into_iter().next().unwrap_or_default(), flags })
}

impl Served {
    /// Mounts them under an upper, at a directory's absolute path without symlinks; `read_only`: nothing may be written all the same. When something
    /// fails, nothing is mounted; the upper's directories stay once they are made.
    ///
    /// # Errors
    /// [`Error`].
    pub fn mount(self, upper: &Upper, read_only: bool, mountpoint: &Path) -> Result<()> {
        let place = Place::open(upper)?;
        let layout = &place.layout;
        let known = Record::read(&layout.place)?;
        if let Some(known) = &known {
            known.check(&self.record, &layout.place)?;
        }
        layout.prepare(self.lower.root())?;
        if known.is_none() {
            self.record.write(&layout.place)?;
        }
        over(self.lower, &self.source, layout, self.flags, read_only, mountpoint)
    }
}

/// Mounts images without an upper, at a directory's absolute path without symlinks.
///
/// # Errors
/// [`Error`]; nothing is mounted then.
pub fn mount(mut request: Request<'_>, mountpoint: &Path) -> Result<()> {
    let (flags, idmap) = (request.flags, request.idmap.take());
    let image = acquire(request)?;
    if let Some(idmap) = &idmap {
        image.map_ids(idmap)?;
    }
    Ok(image.attach(mountpoint, flags)?)
}

fn acquire(request: Request<'_>) -> Result<Detached> {
    if !shared::is_possible() {
        return Err(Error::NotAllowed);
    }
    let Request { images, files, options, threads, flags, log_file, .. } = request;
    // Flags are those of each mount, not of what is shared, which is mounted where `acquire` says.
    let flags = MountFlags { allow_other: flags.allow_other, ..MountFlags::default() };
    let fds: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    let request = MountRequest { images, options, mountpoint: OsString::new(), shared: None, flags, threads };
    Ok(shared::acquire(request, &fds, log_file)?)
}

/// Mounts an upper over an image.
pub(super) fn over(lower: Lower, source: &Path, upper: &Layout, flags: MountFlags, read_only: bool, mountpoint: &Path) -> Result<()> {
    let xattrs = lower.xattrs.map(Hidden::lower).transpose()?;
    let lower = lower.image.hide()?;
    let merged = Overlay.mount(&Parts { source, xattrs: xattrs.as_ref(), lower: &lower, upper, flags, read_only })?;
    Ok(shared::attach(merged.as_fd(), mountpoint)?)
}
