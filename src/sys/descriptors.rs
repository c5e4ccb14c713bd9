//! Descriptors that other code owns: those that a process inherited, and those that a library
//! holds.
#![allow(unsafe_code)]

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::DupFlags;

/// Closes all descriptors except standard input, output and error: a hook's caller waits until its
/// pipes are closed.
///
/// # Safety
/// Nothing in this process may own another descriptor: call it only at the very beginning.
pub(crate) unsafe fn close_all() {
    const FIRST: libc::c_uint = 3;
    // SAFETY: the caller guarantees that nothing owns these descriptors.
    let result = unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, 0) };
    if result != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "inherited descriptors stay open");
    }
}

/// Makes `target` refer to the file that `source` refers to.
///
/// # Errors
/// The error of dup3(2).
pub(crate) fn replace(target: BorrowedFd<'_>, source: &OwnedFd) -> io::Result<()> {
    // SAFETY: the number belongs to an open descriptor for as long as `target` is borrowed, and is
    // not closed here.
    let mut target = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(target.as_raw_fd()) });
    Ok(rustix::io::dup3(source, &mut target, DupFlags::CLOEXEC)?)
}
