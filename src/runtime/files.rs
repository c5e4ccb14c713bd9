//! Reading and writing small files of ours.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Gid, Mode, OFlags, fchmod, fchown, mkdirat, openat};
use rustix::io::Errno;

use super::error::{Error, Result};

/// Makes a directory that nobody else comes through but, when there is one, the group that a container's root has on the host: what is mounted
/// below has programs and devices that are the container's affair. One that is there is made so.
///
/// # Errors
/// [`Error::Io`], also when something else is there.
pub fn make_private_directory(path: &Path, group: Option<Gid>) -> Result<()> {
    make_directory(path, if group.is_some() { 0o710 } else { 0o700 }, group)
}

/// Makes a directory with this mode, whatever the umask. One that is there is given it.
///
/// # Errors
/// [`Error::Io`], also when something else is there.
pub fn make_directory(path: &Path, mode: u32, group: Option<Gid>) -> Result<()> {
    let failed = || Error::io("making the directory", path);
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
    let failed = || Error::io("writing", path);
    let (dir, new) = (path.parent().unwrap_or(Path::new(".")), unfinished(path));
    // Left by somebody who was killed.
    match std::fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed()(e)),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new).map_err(failed())?;
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    let written = file.set_permissions(permissions).and_then(|()| file.write_all(content)).and_then(|()| file.sync_all());
    if let Err(e) = written.and_then(|()| std::fs::rename(&new, path)) {
        let _ = std::fs::remove_file(&new);
        return Err(failed()(e));
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed())
}

/// What a file is called until it is whole. One that is left by somebody who was killed can be told by that.
pub fn unfinished(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".lxcri-fs-new");
    path.with_file_name(name)
}
