//! Converts inodes to the kernel's form.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bfc::format::S_IFMT;
use bfc::rootfs::format::Inode;
use fuser::{FileAttr, FileType, INodeNo};

use crate::fs::{ROOT, Rootfs};
use crate::sys::idmap::in_user_namespace;

/// Block size for stat(2).
pub(super) const BLOCK: u32 = 4096;
/// Size of a directory for stat(2), as on ext4.
const DIRECTORY_SIZE: u64 = 4096;

/// The file type in bits 12..16 of a mode; `None` if it is invalid.
pub(super) fn file_type(kind: u8) -> Option<FileType> {
    Some(match kind {
        0o01 => FileType::NamedPipe,
        0o02 => FileType::CharDevice,
        0o04 => FileType::Directory,
        0o06 => FileType::BlockDevice,
        0o10 => FileType::RegularFile,
        0o12 => FileType::Symlink,
        0o14 => FileType::Socket,
        _ => return None,
    })
}

/// The attributes of an inode, of which `data` bytes are no holes; `None` when its mode has no file
/// type.
pub(super) fn file_attr(ino: u32, inode: &Inode, data: u64) -> Option<FileAttr> {
    #[allow(clippy::cast_possible_truncation)] // four bits, twelve bits
    let (kind, perm) = (
        ((inode.mode & S_IFMT) >> 12) as u8,
        (inode.mode & 0o7777) as u16,
    );
    let kind = file_type(kind)?;
    let size = match kind {
        FileType::Directory => DIRECTORY_SIZE,
        FileType::RegularFile | FileType::Symlink => inode.size,
        _ => 0,
    };
    let time = time(inode.mtime_s, inode.mtime_ns);
    let rdev = match kind {
        FileType::CharDevice | FileType::BlockDevice => {
            let (major, minor) = inode.rdev();
            encode_dev(major, minor)
        }
        _ => 0,
    };
    Some(FileAttr {
        ino: INodeNo(ino.into()),
        size,
        blocks: match kind {
            FileType::RegularFile => data.div_ceil(512),
            FileType::Directory => size.div_ceil(512),
            _ => 0,
        },
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm,
        // 0 would mean that the inode was deleted.
        nlink: inode.nlink.max(1),
        uid: inode.uid,
        gid: inode.gid,
        rdev,
        blksize: BLOCK,
        flags: 0,
    })
}

/// The answer for a name that does not exist: inode 0 makes the kernel cache that.
pub(super) fn negative() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK,
        flags: 0,
    }
}

/// Seconds since 1970, which may be negative, and nanoseconds past them.
fn time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let second = if seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    second
        .and_then(|t| t.checked_add(Duration::from_nanos(nanoseconds.into())))
        .unwrap_or(UNIX_EPOCH)
}

/// The 32-bit device number of the FUSE protocol: 12 bits of major number, 20 of minor.
fn encode_dev(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// Prefix of the attributes that overlayfs uses itself on mounts of this process. A confined
/// process cannot find this out.
pub(super) fn marks() -> &'static [u8] {
    if in_user_namespace() {
        b"user.overlay."
    } else {
        b"trusted.overlay."
    }
}

/// Prefix of the names of access control lists.
const ACL: &[u8] = b"system.posix_acl_";

/// Whether an inode may have an access control list that the kernel must enforce. An image with
/// many inodes with attributes does not list them; then it is unknown.
pub(super) fn may_have_lists(rootfs: &Rootfs) -> bool {
    if !rootfs.has_xattrs() {
        return false;
    }
    let Ok(Some(entries)) = rootfs.xattr_entries() else {
        return true;
    };
    let has = |ino| {
        rootfs
            .xattr_names(ino)
            .map_or(true, |names| names.iter().any(|name| name.starts_with(ACL)))
    };
    has(ROOT) || entries.iter().any(|entry| has(entry.ino))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        let before = time(-2, 250_000_000);
        assert_eq!(
            UNIX_EPOCH.duration_since(before).unwrap(),
            Duration::from_millis(1750)
        );
        assert_eq!(time(3, 5), UNIX_EPOCH + Duration::new(3, 5));
        assert_eq!(time(i64::MIN, 0), UNIX_EPOCH - Duration::from_secs(1 << 63));
    }

    #[test]
    fn devices_are_encoded_as_the_kernel_decodes_them() {
        // new_decode_dev(): major = (dev & 0xfff00) >> 8, minor = (dev & 0xff) | ((dev >> 12) &
        // 0xfff00)
        for (major, minor) in [(8, 1), (259, 3), (0, 0), (4095, 0xf_ffff), (1, 300)] {
            let dev = encode_dev(major, minor);
            assert_eq!(
                (
                    (dev & 0xf_ff00) >> 8,
                    (dev & 0xff) | ((dev >> 12) & 0xf_ff00)
                ),
                (major, minor)
            );
        }
    }
}
