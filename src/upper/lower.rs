//! The lower layers of an upper: an image and, above it, the layer of its extended attributes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::error::Result;
use crate::serve::shared::{self, Detached};
use crate::sys::idmap::IdMap;

/// An image with a detached mount.
#[derive(Debug)]
pub(super) struct Lower {
    /// The image.
    pub(super) image: Detached,
    /// The layer of its extended attributes, if the image does not show them: [`super::xattrs`].
    pub(super) xattrs: Option<OwnedFd>,
}

impl Lower {
    /// Makes it show the host's ids of this map.
    ///
    /// # Errors
    /// As [`shared::map_ids`].
    pub(super) fn map_ids(&self, map: &IdMap) -> Result<()> {
        self.image.map_ids(map)?;
        if let Some(xattrs) = &self.xattrs {
            shared::map_ids(xattrs.as_fd(), map)?;
        }
        Ok(())
    }

    /// Its root directory, with all attributes.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.xattrs
            .as_ref()
            .map_or_else(|| self.image.as_fd(), AsFd::as_fd)
    }
}
