//! Mounting images, with or without an upper.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::engine::{Engine, Parts};
use super::error::Result;
use super::lower::Lower;
use super::overlay::Overlay;
use super::place::{Layout, Place, Upper};
use super::record::{Record, identify};
use super::xattrs;
use crate::fs::Options;
use crate::serve::idmap::IdMap;
use crate::serve::protocol::{Image, MountFlags, MountRequest};
use crate::serve::shared::{self, Hidden};

/// What to mount, and where.
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
    /// Where is written; nothing can be when there is none.
    pub upper: Option<Upper>,
    /// Whose ids are seen; the image's own when there is none.
    pub idmap: Option<IdMap>,
    /// Flags of the mount.
    pub flags: MountFlags,
    /// Whether nothing may be written in spite of an upper.
    pub read_only: bool,
    /// Where: a directory's absolute path without symlinks.
    pub mountpoint: &'a Path,
    /// Where the keeper logs, instead of the journal.
    pub log_file: Option<&'a Path>,
}

/// Mounts. When something fails, nothing is mounted; an upper's directories stay once they are made.
///
/// # Errors
/// [`super::Error`].
pub fn mount(request: Request<'_>) -> Result<()> {
    let Request { images, files, options, threads, upper, idmap, flags, read_only, mountpoint, log_file } = request;
    let paths: Vec<PathBuf> = images.iter().map(|image| PathBuf::from(&image.path)).collect();
    let mut options = options;
    let (mut record, mut xattrs) = (None, None);
    if upper.is_some() {
        let images = paths.iter().zip(files).map(|(path, file)| identify(path, file)).collect::<Result<_>>()?;
        record = Some(Record::new(images, options.subdir.clone(), idmap.clone()));
        xattrs = xattrs::layer(&paths, files, &options)?;
        options.hide_xattrs = xattrs.is_some();
    }
    // Flags are those of each mount, not of what is shared.
    let lower = MountRequest {
        images,
        options,
        mountpoint: mountpoint.as_os_str().to_owned(),
        shared: None,
        flags: MountFlags { allow_other: flags.allow_other, ..MountFlags::default() },
        threads,
    };
    let fds: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    let lower = Lower { image: shared::acquire(lower, &fds, log_file)?, xattrs };
    if let Some(idmap) = &idmap {
        lower.map_ids(idmap)?;
    }
    let (Some(upper), Some(record)) = (upper, record) else { return Ok(lower.image.attach(mountpoint, flags)?) };
    let place = Place::open(&upper)?;
    let layout = &place.layout;
    let known = Record::read(&layout.place)?;
    if let Some(known) = &known {
        known.check(&record, &layout.place)?;
    }
    layout.prepare(lower.root())?;
    if known.is_none() {
        record.write(&layout.place)?;
    }
    let source = paths.first().map_or(Path::new(""), |path| path);
    over(lower, source, layout, flags, read_only, mountpoint)
}

/// Mounts an upper over an image.
pub(super) fn over(lower: Lower, source: &Path, upper: &Layout, flags: MountFlags, read_only: bool, mountpoint: &Path) -> Result<()> {
    let xattrs = lower.xattrs.map(Hidden::lower).transpose()?;
    let lower = lower.image.hide()?;
    let merged = Overlay.mount(&Parts { source, xattrs: xattrs.as_ref(), lower: &lower, upper, flags, read_only })?;
    Ok(shared::attach(merged.as_fd(), mountpoint)?)
}
