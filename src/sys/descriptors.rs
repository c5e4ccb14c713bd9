//! Descriptors that belong to somebody else: those that a process was started with, and those that
//! a library holds.
#![allow(unsafe_code)]

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::DupFlags;

/// Closes all descriptors but standard input, output and error: a hook's caller waits until its
/// pipes are closed.
///
/// # Safety
/// Nothing in this process owns another descriptor: only at its very beginning.
pub(crate) unsafe fn close_all() {
    const FIRST: libc::c_uint = 3;
    // SAFETY: as the caller says, no descriptor is taken away from its owner.
    let result = unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, 0) };
    if result != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "inherited descriptors stay open");
    }
}

/// From now on `target` is another name of what `source` is.
///
/// # Errors
/// What dup3(2) says.
pub(crate) fn replace(target: BorrowedFd<'_>, source: &OwnedFd) -> io::Result<()> {
    // SAFETY: the number belongs to an open descriptor for as long as `target` is borrowed, and is
    // not closed here.
    let mut target = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(target.as_raw_fd()) });
    Ok(rustix::io::dup3(source, &mut target, DupFlags::CLOEXEC)?)
}
