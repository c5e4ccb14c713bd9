//! mount_setattr(2), which rustix does not have: flags and id map of a mount.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use serde::{Deserialize, Serialize};

/// Flags of the mount. It is always read-only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MountFlags {
    /// Set-user-id bits and file capabilities have no effect.
    pub nosuid: bool,
    /// Device files cannot be opened.
    pub nodev: bool,
    /// Nothing can be executed.
    pub noexec: bool,
    /// Other users than the mounting one may use it.
    pub allow_other: bool,
}

impl MountFlags {
    /// The default flags. Every user of the host can reach the mount, so set-user-id bits and
    /// devices have no effect.
    pub fn plain(is_root: bool) -> Self {
        Self {
            nosuid: true,
            nodev: true,
            noexec: false,
            allow_other: is_root,
        }
    }

    /// The flags of a container's root file system. Only the container can reach it, so set-user-id
    /// bits and devices work.
    pub fn of_container(is_root: bool) -> Self {
        Self {
            nosuid: !is_root,
            nodev: !is_root,
            ..Self::plain(is_root)
        }
    }
}

/// What becomes of a mount's flags; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlagChanges {
    /// Whether nothing can be written through it.
    pub read_only: Option<bool>,
    /// As [`MountFlags::nosuid`].
    pub nosuid: Option<bool>,
    /// As [`MountFlags::nodev`].
    pub nodev: Option<bool>,
    /// As [`MountFlags::noexec`].
    pub noexec: Option<bool>,
}

impl From<MountFlags> for FlagChanges {
    fn from(flags: MountFlags) -> Self {
        Self {
            read_only: Some(true),
            nosuid: Some(flags.nosuid),
            nodev: Some(flags.nodev),
            noexec: Some(flags.noexec),
        }
    }
}

/// Sets and clears flags of a mount.
pub(crate) fn change(mount: BorrowedFd<'_>, flags: FlagChanges) -> io::Result<()> {
    let mut attr = libc::mount_attr {
        attr_set: 0,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let bits = [
        (flags.read_only, libc::MOUNT_ATTR_RDONLY),
        (flags.nosuid, libc::MOUNT_ATTR_NOSUID),
        (flags.nodev, libc::MOUNT_ATTR_NODEV),
        (flags.noexec, libc::MOUNT_ATTR_NOEXEC),
    ];
    for (wanted, bit) in bits {
        match wanted {
            Some(true) => attr.attr_set |= bit,
            Some(false) => attr.attr_clr |= bit,
            None => {}
        }
    }
    call::mount_setattr(mount, &attr)
}

/// Makes a mount that is not attached yet show the ids to which the user namespace maps the stored
/// ones.
///
/// # Errors
/// The system's error.
pub fn map_ids(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let userns_fd = u64::try_from(namespace.as_raw_fd()).unwrap_or(u64::MAX);
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd,
    };
    call::mount_setattr(mount, &attr)
}

#[allow(unsafe_code)]
mod call {
    use std::io;
    use std::os::fd::{AsRawFd, BorrowedFd};

    /// Changes the mount that the descriptor refers to.
    pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, attr: &libc::mount_attr) -> io::Result<()> {
        // SAFETY: the path is a C string, `attr` is of the size that is given, and the kernel reads
        // from both during the call only.
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
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}
