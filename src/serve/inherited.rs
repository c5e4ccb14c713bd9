//! What a daemon must not keep of the process that started it: a hook's caller waits until its pipes are closed.

/// Closes all descriptors but standard input, output and error. Only at the very beginning of a process, which owns no other yet.
#[allow(unsafe_code)]
pub fn close_descriptors() {
    const FIRST: libc::c_uint = 3;
    // SAFETY: nothing in this process has opened a descriptor yet, so none is taken away from its owner.
    let result = unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, 0) };
    if result != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "inherited descriptors stay open");
    }
}
