//! Temporary files for content that does not fit the cache.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

/// Space that must stay free on the file system of the temporary files, bytes.
const RESERVE: u64 = 64 << 20;

/// Makes anonymous temporary files. It is a trait because a confined process may not open files
/// itself.
pub trait Spool: Send + Sync {
    /// An empty file that will have `size` bytes.
    ///
    /// # Errors
    /// Whatever the system says; `ENOSPC` before the space is used up.
    fn file(&self, size: u64) -> io::Result<File>;
}

/// A [`Spool`] in a directory.
#[derive(Debug, Clone)]
pub struct TempDir(pub PathBuf);

impl Spool for TempDir {
    fn file(&self, size: u64) -> io::Result<File> {
        let stat = rustix::fs::statvfs(&self.0)?;
        if stat.f_bavail.saturating_mul(stat.f_frsize) < size.saturating_add(RESERVE) {
            return Err(Errno::NOSPC.into());
        }
        tempfile::tempfile_in(&self.0)
    }
}
