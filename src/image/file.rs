//! The files of images.

use std::fs::File;
use std::path::Path;

use super::error::{Error, Result};
use crate::error::Io;
use crate::fs::{ImageFile, ImageOptions, Rootfs};
use crate::zfs::recorded;

/// Opens an image file. If it is in a store on ZFS, its dataset is mounted first.
///
/// # Errors
/// [`Error::Io`], also if it is neither a regular file nor a block device; [`Error::Zfs`].
pub fn open_file(path: &Path) -> Result<File> {
    use std::os::unix::fs::FileTypeExt;
    let file = recorded::open_image::<Error>(path)?;
    let kind = file
        .metadata()
        .map_err(Io::at("opening the image", path))?
        .file_type();
    if kind.is_file() || kind.is_block_device() {
        tracing::debug!("opened the image {}", path.display());
        return Ok(file);
    }
    let source = if kind.is_dir() {
        std::io::ErrorKind::IsADirectory
    } else {
        std::io::ErrorKind::InvalidInput
    };
    Err(Io::at("opening the image", path)(source).into())
}

/// Opens an image to read files from it without mounting it.
///
/// # Errors
/// [`Error::Io`], and [`Error::Fs`] if it is damaged, or encrypted with another secret.
pub fn open(path: &Path, secret: Option<bfc::Secret>) -> Result<Rootfs> {
    let source = ImageFile {
        path: path.to_owned(),
        file: open_file(path)?,
        secret,
    };
    Ok(Rootfs::open(vec![source], &ImageOptions::default())?)
}
