//! Protects images in stores, which never change: finds out whether a file is one, whatever name is
//! used for it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::error::{Error, Result};
use super::uses::file_id;
use super::{Store, directory};
use crate::error::Io;

/// Mode bits that allow writing.
const WRITABLE: u32 = 0o222;

impl Store {
    /// Refuses to write to an image of this or another store. It is recognised by its real path, by
    /// its inode and, for a hard link to an image of another store, by its read-only mode.
    ///
    /// # Errors
    /// [`Error::Kept`], [`Error::Io`].
    pub fn refuse_to_change(&self, path: &Path) -> Result<()> {
        let real = path.canonicalize().map_err(Io::at("finding", path))?;
        refuse_to_write_in(real.parent().unwrap_or(&real), path)?;
        let metadata = real.metadata().map_err(Io::at("looking at", path))?;
        let id = Some((metadata.dev(), metadata.ino()));
        // A store that cannot be read contains nothing that could be written to.
        let known = self
            .images()
            .unwrap_or_default()
            .into_iter()
            .find(|image| file_id(&image.path) == id);
        if let Some(image) = known {
            return Err(Error::Kept {
                path: path.to_owned(),
                why: format!(
                    "it is the image {} of the store {}",
                    image.name,
                    self.location()
                ),
            });
        }
        if metadata.mode() & WRITABLE == 0 {
            return Err(Error::Kept {
                path: path.to_owned(),
                why: "it is read-only, as images in stores are".to_owned(),
            });
        }
        Ok(())
    }
}

/// Refuses to create or replace a file in the directory of an image in a store.
///
/// # Errors
/// [`Error::Kept`].
pub fn refuse_to_write_in(dir: &Path, path: &Path) -> Result<()> {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let in_images = dir
        .parent()
        .and_then(Path::file_name)
        .is_some_and(|name| name == "images");
    let is_read_only = || {
        let flags = File::open(&dir).and_then(|dir| Ok(rustix::fs::fstatvfs(&dir)?.f_flag));
        flags.is_ok_and(|flags| flags.contains(rustix::fs::StatVfsMountFlags::RDONLY))
    };
    if in_images && (dir.join(directory::FACTS).exists() || is_read_only()) {
        return Err(Error::Kept {
            path: path.to_owned(),
            why: format!("{} holds an image of a store", dir.display()),
        });
    }
    Ok(())
}
