//! The file for a new image, which has no name until it is complete.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::error::{Error, Result};
use crate::error::Io;

/// A file that is to appear at a path.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    dir: PathBuf,
    force: bool,
    file: File,
    name: Name,
}

/// The name of the file until it is complete.
#[derive(Debug)]
enum Name {
    /// None.
    None,
    /// A temporary one, where the file system cannot make files without.
    Temporary(tempfile::TempPath),
    /// Its final name: the caller has made the file, and removes it.
    Final,
}

impl Output {
    /// Begins a file for `path`. `force` replaces an existing file.
    ///
    /// # Errors
    /// [`Error::Io`], also if something exists there already.
    pub fn create(path: &Path, force: bool) -> Result<Self> {
        let dir = parent(path);
        if !force && path.symlink_metadata().is_ok() {
            return Err(exists(path));
        }
        if path.is_dir() {
            return Err(Io::at("writing", path)(std::io::ErrorKind::IsADirectory).into());
        }
        let failed = || Io::at("making a file in", &dir);
        // A file without a name ends with the process, even if it is killed.
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let (file, name) = match rustix::fs::open(&dir, flags, Mode::from_raw_mode(0o666)) {
            Ok(fd) => (File::from(fd), Name::None),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                let (file, name) = tempfile::Builder::new()
                    .prefix(&temp_prefix(path))
                    .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666))
                    .tempfile_in(&dir)
                    .map_err(failed())?
                    .into_parts();
                (file, Name::Temporary(name))
            }
            Err(e) => return Err(failed()(e.into()).into()),
        };
        Ok(Self {
            path: path.to_owned(),
            dir,
            force,
            file,
            name,
        })
    }

    /// The file at `path`, which is to be written over.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn existing(path: &Path) -> Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(Io::at("opening", path))?;
        Ok(Self {
            path: path.to_owned(),
            dir: parent(path),
            force: true,
            file,
            name: Name::Final,
        })
    }

    /// A descriptor of the file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn file(&self) -> Result<File> {
        Ok(self
            .file
            .try_clone()
            .map_err(Io::at("writing", &self.path))?)
    }

    /// Gives the file its name; it has been synced.
    ///
    /// # Errors
    /// [`Error::Io`], also if something exists there meanwhile.
    pub fn publish(self) -> Result<()> {
        let failed = || Io::at("writing", &self.path);
        match self.name {
            Name::Final => {}
            Name::Temporary(name) if self.force => {
                name.persist(&self.path).map_err(|e| failed()(e.error))?
            }
            Name::Temporary(name) => name
                .persist_noclobber(&self.path)
                .map_err(|e| failed()(e.error))?,
            Name::None => {
                let fd = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                let link =
                    |to: &Path| rustix::fs::linkat(CWD, &*fd, CWD, to, AtFlags::SYMLINK_FOLLOW);
                match link(&self.path) {
                    Ok(()) => {}
                    Err(Errno::EXIST) if self.force => {
                        let mut name = temp_prefix(&self.path);
                        name.push(std::process::id().to_string());
                        let temp = self.dir.join(name);
                        link(&temp).map_err(|e| failed()(e.into()))?;
                        if let Err(e) = std::fs::rename(&temp, &self.path) {
                            let _ = std::fs::remove_file(&temp);
                            return Err(failed()(e).into());
                        }
                    }
                    Err(Errno::EXIST) => return Err(exists(&self.path)),
                    Err(e) => return Err(failed()(e.into()).into()),
                }
            }
        }
        let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
        Ok(synced.map_err(Io::at("syncing", &self.dir))?)
    }

    /// How many bytes are free where the file is.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn free_space(&self) -> Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.file)
            .map_err(Io::at("reading the free space of", &self.dir))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

fn exists(path: &Path) -> Error {
    taken(path, "replace it with --force")
}

/// What is to be made exists. `hint` says what to do.
fn taken(path: &Path, hint: &str) -> Error {
    Error::Source {
        name: path.display().to_string(),
        reason: "it exists already".into(),
        hint: Some(hint.into()),
    }
}

/// As [`taken`], where nothing replaces it, unless there is nothing.
pub(super) fn refuse_taken(path: &Path) -> Result<()> {
    if path.symlink_metadata().is_ok() {
        return Err(taken(path, "name another, or remove it first"));
    }
    Ok(())
}

fn temp_prefix(path: &Path) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push(".");
    prefix
}

/// The directory that a path is in.
pub fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
        _ => PathBuf::from("."),
    }
}
