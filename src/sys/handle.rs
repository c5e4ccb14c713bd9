//! File handles (name_to_handle_at(2)).
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

/// Longest handle, bytes: `MAX_HANDLE_SZ` of fs.h.
const MAX: u32 = 128;

/// `struct file_handle` of fcntl.h, with room for the longest.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    handle: [u8; MAX as usize],
}

/// The type of the handles of an open file's file system, by which overlayfs finds files again;
/// `None` if it has none. The same file system may have others in another version of the kernel.
pub(crate) fn kind_of(file: BorrowedFd<'_>) -> Option<i32> {
    let mut handle = Handle {
        bytes: MAX,
        kind: 0,
        handle: [0; MAX as usize],
    };
    let mut mount = 0_i32;
    // SAFETY: the handle has as much room as it says, and the path is an empty string.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            file.as_raw_fd(),
            c"".as_ptr(),
            &raw mut handle,
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    (result == 0).then_some(handle.kind)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn memory_has_handles_and_pipes_have_none() {
        let file = rustix::fs::memfd_create(c"file", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert!(kind_of(file.as_fd()).is_some_and(|kind| kind > 0));
        let (reader, _writer) = std::io::pipe().unwrap();
        assert_eq!(kind_of(reader.as_fd()), None);
    }
}
