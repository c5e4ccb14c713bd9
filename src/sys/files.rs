//! Private directories, and reading small files.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{Gid, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::Result;
use super::directory::DirectoryEntry;
use crate::error::Io;

/// Creates a directory that only its user can traverse, and optionally the group of a container's
/// root on the host: mounts below it hold the container's set-user-id programs and devices. An
/// existing directory gets the same mode.
///
/// # Errors
/// [`Io`], also if something else exists there.
pub fn make_private_directory(at: &DirectoryEntry, group: Option<Gid>) -> Result<OwnedFd> {
    at.make_directory(if group.is_some() { 0o710 } else { 0o700 }, group)
}

/// Creates a directory with this mode, whatever the umask. An existing directory gets the same
/// mode.
///
/// # Errors
/// [`Io`], also if something else exists there.
pub fn make_directory(path: &Path, mode: u32, group: Option<Gid>) -> Result<()> {
    DirectoryEntry::at(path)?
        .make_directory(mode, group)
        .map(drop)
}

/// Opens a directory in another one, to list it and to reach its entries. Fails for a symlink or a
/// mount point.
///
/// # Errors
/// The error of openat2(2).
pub fn open_directory_beneath(
    dir: impl AsFd,
    name: impl rustix::path::Arg,
) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(
        dir,
        name,
        flags,
        Mode::empty(),
        ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH,
    )
}

/// The content of a file of at most `limit` bytes.
///
/// # Errors
/// [`Io`], also if the file is longer.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Io::at("opening", path))?;
    take(file, limit).map_err(Io::at("reading", path))
}

/// The content of a regular file of at most `limit` bytes, if there is one. Does not wait for what
/// is no regular file, such as a pipe.
///
/// # Errors
/// [`Io`], also if the file is longer, or is no regular file.
pub fn read_regular(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let nonblock = OFlags::NONBLOCK.bits().cast_signed();
    let opened = File::options().read(true).custom_flags(nonblock).open(path);
    let file = match opened {
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        opened => opened.map_err(Io::at("opening", path))?,
    };
    if !file.metadata().map_err(Io::at("opening", path))?.is_file() {
        return Err(Io::at("reading", path)(io::Error::other(
            "it is not a regular file",
        )));
    }
    take(file, limit).map(Some).map_err(Io::at("reading", path))
}

/// Reads a stream to its end, at most `limit` bytes.
///
/// # Errors
/// The stream's error; [`io::ErrorKind::FileTooLarge`] if there is more.
pub fn take(stream: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        Err(io::ErrorKind::FileTooLarge.into())
    } else {
        Ok(bytes)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_symlink_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("in/below")).unwrap();
        std::os::unix::fs::symlink("..", dir.path().join("in/out")).unwrap();
        std::os::unix::fs::symlink("below", dir.path().join("in/link")).unwrap();
        let top = File::open(dir.path().join("in")).unwrap();
        assert!(open_directory_beneath(&top, "below").is_ok());
        for name in ["out", "link", "..", "link/x", "/"] {
            assert!(open_directory_beneath(&top, name).is_err(), "{name}");
        }
    }
}
