//! Whether an upper directory is in use by any overlay, in whatever mount namespace, and whatever
//! the directory was called when that was made.
//!
//! Mountinfo has the name that an upper directory had when it was mounted, and of one namespace
//! only. The kernel knows the directory itself: it takes one for one overlay at a time. So it is
//! asked for an overlay that it cannot make, with a work directory on another file system than the
//! upper directory: for one that is in use it says so (EBUSY), before it looks at the other.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, mkdirat};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsconfig_create, fsconfig_set_string, fsopen};

use super::error::{Error, Result};
use super::upper_dir::Layout;
use crate::sys::tmpfs;

/// Whether an upper at this place is in use, as far as this process may ask: who may make no
/// overlay cannot.
pub fn is_known_in_use(place: &Path) -> bool {
    matches!(is_in_use(&Layout::in_place(place.to_owned())), Ok(true))
}

/// Whether an upper is in use. Nothing of it is changed.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn is_in_use(upper: &Layout) -> Result<bool> {
    let failed = |e: Errno| Error::io("asking who uses", &upper.upper)(e);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, &upper.upper, flags, Mode::empty()).map_err(failed)?;
    let memory = tmpfs::mount(&[("mode", "0700")]).map_err(failed)?;
    for name in ["lower", "work"] {
        mkdirat(&memory, name, Mode::RWXU).map_err(failed)?;
    }
    let of = |fd: &OwnedFd| PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed)?;
    let set = |key: &str, value: &Path| fsconfig_set_string(fs.as_fd(), key, value).map_err(failed);
    set("lowerdir", &of(&memory).join("lower"))?;
    set("upperdir", &of(&directory))?;
    set("workdir", &of(&memory).join("work"))?;
    // Without an index it is a warning only.
    set("index", Path::new("on"))?;
    match fsconfig_create(fs.as_fd()) {
        Err(Errno::BUSY) => Ok(true),
        Err(Errno::INVAL) => Ok(false),
        Err(other) => Err(failed(other)),
        Ok(()) => Ok(false),
    }
}
