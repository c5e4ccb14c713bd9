//! Reading and writing small files of ours.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use super::error::{Error, Result};

/// The content of a file of at most `limit` bytes.
///
/// # Errors
/// [`Error::Io`], also when it is longer.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Error::io("opening", path))?;
    take(file, limit).map_err(Error::io("reading", path))
}

/// All that a stream gives, at most `limit` bytes.
///
/// # Errors
/// What reading says; [`io::ErrorKind::FileTooLarge`] for more.
pub fn take(stream: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

/// Writes a file so that it is there whole or not at all, also after a power cut.
///
/// # Errors
/// [`Error::Io`].
pub fn replace(path: &Path, content: &[u8]) -> Result<()> {
    replace_with_mode(path, content, 0o600)
}

/// As [`replace`], with the permissions that the file is to have.
///
/// # Errors
/// [`Error::Io`].
pub fn replace_with_mode(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let failed = || Error::io("writing", path);
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(failed())?;
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
    file.as_file().set_permissions(permissions).map_err(failed())?;
    file.write_all(content).and_then(|()| file.as_file().sync_all()).map_err(failed())?;
    file.persist(path).map_err(|e| failed()(e.error))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed())
}
