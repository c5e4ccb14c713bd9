//! What a daemon must not keep of the process that started it: a hook's caller waits until its pipes are closed.

/// Closes all descriptors but standard input, output and error.
///
/// # Safety
/// Nothing in this process owns another descriptor: only at its very beginning.
#[allow(unsafe_code)]
pub(crate) unsafe fn close_descriptors() {
    const FIRST: libc::c_uint = 3;
    // SAFETY: as the caller says, no descriptor is taken away from its owner.
    let result = unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, 0) };
    if result != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "inherited descriptors stay open");
    }
}
