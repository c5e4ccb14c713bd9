//! What the adapter says of inodes.

use bfc::format::{S_IFMT, S_IFREG};
use bfc::rootfs::format::Inode;
use fuser::{Errno, FileAttr};

use super::super::attr::{file_attr, negative};
use super::super::requests::{Answer, Subject};
use super::Adapter;
use crate::fs::Seek;

/// Stands for the offset when an inode of unknown type is logged; no read begins there.
const TYPE: u64 = u64::MAX;

impl Adapter {
    pub(super) fn attr(&self, ino: u32, inode: &Inode) -> Answer<FileAttr> {
        let rootfs = self.requests.rootfs();
        let data = if inode.mode & S_IFMT == S_IFREG {
            // A damaged file is one without holes here: its readers are told.
            rootfs.data_bytes(inode).unwrap_or(inode.size)
        } else {
            0
        };
        file_attr(ino, inode, data).ok_or_else(|| {
            self.requests.metrics().damaged();
            if self
                .requests
                .log_number(Subject::Inode(ino), TYPE)
                .is_some()
            {
                tracing::error!(ino, mode = inode.mode, "an inode of unknown type");
            }
            Errno::EIO.into()
        })
    }

    /// Where the next hole or data is, as lseek(2) asks for it.
    pub(super) fn seek(&self, ino: u32, offset: u64, whence: i32) -> Answer<i64> {
        let has_holes = || self.requests.rootfs().has_holes().unwrap_or(true);
        if !self.has_holes.get_or_init(has_holes) {
            return Err(Errno::ENOSYS.into());
        }
        let seek = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return Err(Errno::EINVAL.into()),
        };
        let found = self.requests.rootfs().seek(ino, offset, seek)?;
        let found = found.and_then(|found| i64::try_from(found).ok());
        found.ok_or_else(|| Errno::ENXIO.into())
    }

    pub(super) fn look_up(&self, parent: u32, name: &[u8]) -> Answer<FileAttr> {
        let (ino, inode) = match name {
            // NFS and overlayfs ask for these when they return with a file handle. The kernel calls
            // what they find `/` until it is looked up by its own name, and revalidates it under
            // that name.
            b"." | b"/" => (parent, self.requests.rootfs().inode(parent)?),
            b".." => {
                let ino = self.requests.rootfs().parent(parent)?;
                (ino, self.requests.rootfs().inode(ino)?)
            }
            _ => match self.requests.rootfs().lookup(parent, name)? {
                Some(found) => found,
                None => return Ok(negative()),
            },
        };
        self.attr(ino, &inode)
    }
}
