//! mount_setattr(2), which rustix does not have: flags of a mount, and whose ids it shows.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::protocol::MountFlags;

/// Flags that are set or cleared on a mount before anybody can see it.
pub(super) fn set(mount: BorrowedFd<'_>, flags: MountFlags) -> io::Result<()> {
    let mut attr = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let bits = [(flags.nosuid, libc::MOUNT_ATTR_NOSUID), (flags.nodev, libc::MOUNT_ATTR_NODEV), (flags.noexec, libc::MOUNT_ATTR_NOEXEC)];
    for (set, bit) in bits {
        if set {
            attr.attr_set |= bit;
        } else {
            attr.attr_clr |= bit;
        }
    }
    call::mount_setattr(mount, &attr)
}

/// Makes a mount read-only, or no longer so.
pub(super) fn set_read_only(mount: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    let (attr_set, attr_clr) = if on { (libc::MOUNT_ATTR_RDONLY, 0) } else { (0, libc::MOUNT_ATTR_RDONLY) };
    call::mount_setattr(mount, &libc::mount_attr { attr_set, attr_clr, propagation: 0, userns_fd: 0 })
}

/// Has a mount that nobody can see yet show other ids: those that the user namespace maps the stored ones to.
pub(super) fn map_ids(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let userns_fd = u64::try_from(namespace.as_raw_fd()).unwrap_or(u64::MAX);
    let attr = libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd };
    call::mount_setattr(mount, &attr)
}

#[allow(unsafe_code)]
mod call {
    use std::io;
    use std::os::fd::{AsRawFd, BorrowedFd};

    /// Changes the mount that the descriptor leads to.
    pub(super) fn mount_setattr(mount: BorrowedFd<'_>, attr: &libc::mount_attr) -> io::Result<()> {
        // SAFETY: the path is a C string, `attr` is of the size that is given, and the kernel reads from both during the call only.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                mount.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                std::ptr::from_ref(attr),
                size_of::<libc::mount_attr>(),
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
