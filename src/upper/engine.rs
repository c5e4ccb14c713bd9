//! Merges an image and an upper into one file system.

use std::os::fd::OwnedFd;
use std::path::Path;

use super::error::Result;
use super::upper_dir::{Directories, Layout};
use crate::serve::shared::Hidden;
use crate::sys::mount_attr::MountFlags;

/// The parts of a merged file system.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// The source for mountinfo.
    pub source: &'a Path,
    /// The image's extended attributes, if the image itself does not show them.
    pub xattrs: Option<&'a Hidden>,
    /// The image.
    pub lower: &'a Hidden,
    /// The names of the upper's directories, for messages and mountinfo.
    pub upper: &'a Layout,
    /// The upper's directories.
    pub directories: &'a Directories,
    /// Flags of the mount.
    pub flags: MountFlags,
    /// Whether the mount is read-only.
    pub read_only: bool,
}

/// A way to merge an image and an upper, with copy-up.
pub trait Engine {
    /// Makes a detached mount of the merged file system.
    ///
    /// # Errors
    /// [`super::Error::Refused`] and [`super::Error::InUse`].
    fn mount(&self, parts: &Parts<'_>) -> Result<OwnedFd>;
}
