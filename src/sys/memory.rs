//! Memory that stays out of swap, and memory that processes share.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::AtomicU64;

/// Keeps the pages of these bytes out of swap and core dumps until the process ends, as far as
/// RLIMIT_MEMLOCK allows (mlock(2), madvise(2)).
///
/// # Errors
/// The system's error.
pub(crate) fn lock(bytes: &[u8]) -> io::Result<()> {
    // SAFETY: it only returns a number.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    let start = bytes
        .as_ptr()
        .map_addr(|address| address & !(page - 1))
        .cast_mut()
        .cast();
    let length = (bytes.as_ptr().addr() % page + bytes.len()).next_multiple_of(page);
    // SAFETY: the pages are those of the bytes, which are borrowed. Neither call changes their
    // content.
    let refused = unsafe {
        [
            libc::mlock(start, length),
            libc::madvise(start, length, libc::MADV_DONTDUMP),
        ]
    };
    if refused == [0, 0] {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Numbers that several processes share in a mapped file, which is never unmapped.
pub(crate) struct SharedWords<const N: usize>(NonNull<[AtomicU64; N]>);

// SAFETY: the pointer leads to atomics, which stay mapped.
unsafe impl<const N: usize> Send for SharedWords<N> {}
// SAFETY: as above.
unsafe impl<const N: usize> Sync for SharedWords<N> {}

impl<const N: usize> SharedWords<N> {
    /// Length of the file, bytes.
    pub(crate) const LEN: usize = N * size_of::<AtomicU64>();

    /// Maps a file that is sealed against shrinking (F_SEAL_SHRINK of fcntl(2)).
    ///
    /// # Errors
    /// The system's error; [`io::ErrorKind::InvalidInput`] for a file of another length, or without
    /// the seal.
    pub(crate) fn map(file: BorrowedFd<'_>) -> io::Result<Self> {
        let sealed = rustix::fs::fcntl_get_seals(file)?.contains(rustix::fs::SealFlags::SHRINK);
        if !sealed || usize::try_from(rustix::fs::fstat(file)?.st_size) != Ok(Self::LEN) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let address = unsafe {
            libc::mmap(
                null_mut(),
                Self::LEN,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(address.cast())
            .map(Self)
            .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// The numbers.
    pub(crate) fn all(&self) -> &[AtomicU64; N] {
        // SAFETY: LEN bytes are mapped there, aligned to a page, readable and writable, and stay
        // so; the file is sealed against being cut short. Any value of eight bytes is a valid
        // AtomicU64, whoever else writes.
        unsafe { self.0.as_ref() }
    }
}
