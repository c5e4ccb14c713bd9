//! Copies of uppers.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, fremovexattr, mkdirat, openat};
use rustix::io::Errno;

use super::error::{Error, Result};
use super::record::UpperRecord;
use super::upper_dir::{UPPER, WORK};
use super::written::Still;
use crate::error::Io;
use crate::sys::directory::{self, is_there};
use crate::sys::tree_copy::TreeCopy;

/// Where overlayfs keeps files that have several names, which are the same files in the upper.
const INDEX: &str = "work/index";

impl Still {
    /// Copies it into a directory that has no upper, and with it the directories of these names
    /// beside it, if there are any. Files share their blocks with the original if the file system
    /// supports it. Reports how many bytes of content were copied.
    ///
    /// # Errors
    /// [`Error::Io`]; what was copied stays. [`Error::NoUpper`] if it has no record of an image.
    pub fn copy_to(&self, to: &Path, beside: &[&str], done: &dyn Fn(u64)) -> Result<()> {
        let from = directory::open(self.place())?;
        // Only a directory that was opened for reading can be synced.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let target = openat(directory::open(to)?, ".", flags, Mode::empty())
            .map_err(Io::at("opening", to))?;
        let record = UpperRecord::read_in(from.as_fd(), self.place())?;
        let record = record.ok_or_else(|| Error::NoUpper {
            path: self.place().to_owned(),
            reason: "has no record of an image",
        })?;
        let mut copy = TreeCopy::new(from.as_fd(), target.as_fd(), self.place(), done);
        copy.directory(Path::new(UPPER))?;
        mkdirat(&target, WORK, Mode::RWXU).map_err(Io::at("making the directory", to))?;
        for name in [INDEX].iter().chain(beside) {
            if is_there(from.as_fd(), name).map_err(Io::at("looking at", self.place()))? {
                copy.directory(Path::new(name))?;
            }
        }
        rustix::fs::syncfs(&target).map_err(Io::at("syncing", to))?;
        forget_original(target.as_fd()).map_err(Io::at("changing the copy in", to))?;
        // Last: an upper without a record is none.
        record.write(target.as_fd(), to)?.keep()
    }
}

/// Removes what says that the index belongs to the original's upper directory: overlayfs then makes
/// it the copy's.
fn forget_original(place: BorrowedFd<'_>) -> Result<(), Errno> {
    let index = match openat(
        place,
        INDEX,
        OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    for mark in ["trusted.overlay.upper", "user.overlay.upper"] {
        match fremovexattr(&index, mark) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
