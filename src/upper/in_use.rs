//! Finds out whether any overlay uses an upper directory, in any mount namespace, and under any
//! path.
//!
//! Mountinfo shows one namespace only, with the path that an upper directory had when it was
//! mounted. The kernel knows the directory itself, and allows one overlay at a time. This module
//! therefore requests an impossible overlay, whose work directory is on another file system than
//! the upper directory: if the upper is in use, the kernel fails with EBUSY before it checks the
//! work directory.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, mkdirat};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsconfig_create, fsconfig_set_string, fsopen};

use super::error::Result;
use super::upper_dir::Layout;
use crate::error::Io;
use crate::sys::tmpfs;

/// Whether an upper at this place is in use; false if this process may not make overlays.
pub fn is_known_in_use(place: &Path) -> bool {
    matches!(is_in_use(&Layout::in_place(place.to_owned())), Ok(true))
}

/// Whether an upper is in use. Changes nothing.
///
/// # Errors
/// [`Io`].
pub(super) fn is_in_use(upper: &Layout) -> Result<bool> {
    let failed = |e: Errno| Io::at("asking who uses", &upper.upper)(e);
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
    // Without an index, the kernel only warns.
    set("index", Path::new("on"))?;
    match fsconfig_create(fs.as_fd()) {
        Err(Errno::BUSY) => Ok(true),
        Err(Errno::INVAL) => Ok(false),
        Err(other) => Err(failed(other).into()),
        Ok(()) => Ok(false),
    }
}
