//! Directories of ours, and reading small files.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Gid, Mode, OFlags, ResolveFlags, fchmod, fchown, mkdirat, openat, openat2};
use rustix::io::Errno;

use super::Result;
use crate::error::Io;

/// Makes a directory that nobody else comes through but, when there is one, the group that a
/// container's root has on the host: what is mounted below has programs and devices that are the
/// container's affair. One that is there is made so.
///
/// # Errors
/// [`Io`], also when something else is there.
pub fn make_private_directory(path: &Path, group: Option<Gid>) -> Result<()> {
    make_directory(path, if group.is_some() { 0o710 } else { 0o700 }, group)
}

/// Makes a directory with this mode, whatever the umask. One that is there is given it.
///
/// # Errors
/// [`Io`], also when something else is there.
pub fn make_directory(path: &Path, mode: u32, group: Option<Gid>) -> Result<()> {
    let failed = || Io::at("making the directory", path);
    match mkdirat(CWD, path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(failed()(e)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = openat(CWD, path, flags, Mode::empty()).map_err(failed())?;
    set_mode(dir.as_fd(), mode, group).map_err(failed())
}

/// Sets mode and group, in the order in which nobody is let in on the way.
///
/// # Errors
/// What the system says.
pub fn set_mode(file: BorrowedFd<'_>, mode: u32, group: Option<Gid>) -> Result<(), Errno> {
    if let Some(group) = group {
        fchmod(file, Mode::from_raw_mode(mode & 0o700))?;
        fchown(file, None, Some(group))?;
    }
    fchmod(file, Mode::from_raw_mode(mode))
}

/// Opens a directory in another, to list it and to reach what is in it: it is no symlink, and
/// nothing is mounted on it.
///
/// # Errors
/// What openat2(2) says.
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
/// [`Io`], also when it is longer.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Io::at("opening", path))?;
    take(file, limit).map_err(Io::at("reading", path))
}

/// All that a stream gives, at most `limit` bytes.
///
/// # Errors
/// What reading says; [`io::ErrorKind::FileTooLarge`] for more.
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
