//! How an image and an upper become one file system.

use std::os::fd::OwnedFd;
use std::path::Path;

use super::error::Result;
use super::upper_dir::{Directories, Layout};
use crate::serve::shared::Hidden;
use crate::sys::mount_attr::MountFlags;

/// What is to be put together.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// What mountinfo will say is mounted.
    pub source: &'a Path,
    /// The image's extended attributes, if the image itself does not show them.
    pub xattrs: Option<&'a Hidden>,
    /// The image.
    pub lower: &'a Hidden,
    /// What messages and mountinfo call the place where is written.
    pub upper: &'a Layout,
    /// Where is written.
    pub directories: &'a Directories,
    /// Flags of the mount.
    pub flags: MountFlags,
    /// Whether nothing may be written after all.
    pub read_only: bool,
}

/// A way to merge an image and an upper and to copy up what is written to.
pub trait Engine {
    /// A mount of the merged file system, attached nowhere yet.
    ///
    /// # Errors
    /// [`super::Error::Refused`] and [`super::Error::InUse`].
    fn mount(&self, parts: &Parts<'_>) -> Result<OwnedFd>;
}
