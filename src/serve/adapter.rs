//! The FUSE adapter, which answers requests from a [`Rootfs`]. It keeps no state between two
//! requests, so that any worker can answer any request.

mod answer;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::attr::{BLOCK, file_type, may_have_lists};
use super::requests::{Requests, reply};
use super::stats::Op;
use super::surplus::Surplus;
use crate::fs::ROOT;

/// Nothing ever changes, so the kernel may cache it for ever. (A century, because the kernel adds
/// this to its clock.)
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86400);
/// Inode numbers are never reused.
const GENERATION: Generation = Generation(0);
/// Largest read, bytes: two frames. The kernel cuts its read-ahead into as many requests, which are
/// decoded at the same time (docs/PERFORMANCE.md).
const MAX_READ: u32 = 128 << 10;
/// Entries `.` and `..` come before those of the image.
const DOTS: u64 = 2;

/// Features to enable if the kernel has them. Open and opendir fail with ENOSYS (`NO_OPEN`,
/// `NO_OPENDIR`): the kernel then keeps pages and directory entries from one open to the next.
const WANTED: [InitFlags; 8] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_NO_OPEN_SUPPORT,
    InitFlags::FUSE_NO_OPENDIR_SUPPORT,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_ALLOW_IDMAP,
];

/// The protocol version since which the kernel treats files found by handle as out of date (Linux
/// 6.16; `epoch` in fs/fuse/dir.c). Overlayfs must then not find files of lxcri-fs by handle, or
/// reading them fails with ESTALE. Without handles, a copied-up file gets another inode number when
/// it is looked up again, and is copied up under only one of its names.
const STALE_HANDLES: (u32, u32) = (7, 44);

thread_local! {
    /// The buffer of this thread's reads.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Serves a [`Rootfs`].
pub(super) struct Adapter {
    requests: Requests,
    surplus: Surplus,
    resends: Arc<OnceLock<bool>>,
    /// Prefix of the attributes that overlayfs uses itself, which an image must not set.
    marks: &'static [u8],
    has_holes: OnceLock<bool>,
}

impl Adapter {
    /// `resends` receives whether the kernel can send requests again.
    pub(super) fn new(
        requests: Requests,
        surplus: Surplus,
        resends: Arc<OnceLock<bool>>,
        marks: &'static [u8],
    ) -> Self {
        Self {
            requests,
            surplus,
            resends,
            marks,
            has_holes: OnceLock::new(),
        }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let kernel = config.kernel_abi();
        let has_stale_handles = (kernel.0, kernel.1) >= STALE_HANDLES;
        let handles = if has_stale_handles {
            InitFlags::FUSE_NO_EXPORT_SUPPORT
        } else {
            InitFlags::FUSE_EXPORT_SUPPORT
        };
        // The kernel then requests the list of each inode that somebody other than its owner uses:
        // once, except for the root, which it set up before it knew about lists.
        let lists = may_have_lists(self.requests.rootfs()).then_some(InitFlags::FUSE_POSIX_ACL);
        for flag in WANTED.into_iter().chain([handles]).chain(lists) {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "the kernel does not support this feature");
            }
        }
        let _ = self
            .resends
            .set(config.capabilities().contains(InitFlags::FUSE_HAS_RESEND));
        // This determines the number of pages of a read.
        let _ = config.set_max_write(MAX_READ);
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let result = self.requests.answer(Op::Lookup, req, parent, 0, |parent| {
            self.look_up(parent, name.as_bytes())
        });
        reply!(reply, result, attr => reply.entry(&FOREVER, &attr, GENERATION));
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let result = self.requests.answer(Op::Getattr, req, ino, 0, |ino| {
            self.attr(ino, &self.requests.rootfs().inode(ino)?)
        });
        reply!(reply, result, attr => reply.attr(&FOREVER, &attr));
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let result = self.requests.answer(Op::Readlink, req, ino, 0, |ino| {
            Ok(self.requests.rootfs().readlink(ino)?)
        });
        reply!(reply, result, target => reply.data(&target));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    /// Asked for holes and data only. If the image has no holes, the answer makes the kernel stop
    /// asking: a question at every copy-up would slow it down.
    fn lseek(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let offset = u64::try_from(offset).unwrap_or(u64::MAX);
        let result = self.requests.answer(Op::Lseek, req, ino, offset, |ino| {
            self.seek(ino, offset, whence)
        });
        reply!(reply, result, found => reply.offset(found));
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        // Mostly isatty(3).
        reply.error(Errno::ENOTTY);
    }

    fn bmap(&self, _req: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let reading = self.surplus.reading();
        BUFFER.with_borrow_mut(|buffer| {
            buffer.clear();
            match self.requests.answer(Op::Read, req, ino, offset, |ino| {
                Ok(self
                    .requests
                    .rootfs()
                    .read_decoded(ino, offset, size as usize, buffer)?)
            }) {
                Ok(decoded) => {
                    self.requests
                        .metrics()
                        .read(decoded.wanted.len(), buffer.len());
                    reply.data(&buffer[decoded.wanted.clone()]);
                    self.surplus.push(&reading, ino, decoded, buffer);
                }
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let result = self.requests.answer(Op::Readdir, req, ino, offset, |ino| {
            let mut added = false;
            let mut add = |reply: &mut ReplyDirectory, next, ino: u32, kind, name: &[u8]| {
                let full = reply.add(INodeNo(ino.into()), next, kind, OsStr::from_bytes(name));
                added |= !full;
                !full
            };
            if offset < 1 && !add(&mut reply, 1, ino, FileType::Directory, b".") {
                return Ok(());
            }
            if offset < DOTS
                && !add(
                    &mut reply,
                    DOTS,
                    self.requests.rootfs().parent(ino)?,
                    FileType::Directory,
                    b"..",
                )
            {
                return Ok(());
            }
            let from = offset.saturating_sub(DOTS);
            let result = self
                .requests
                .rootfs()
                .readdir(ino, from, &mut |next, ino, kind, name| {
                    // An unknown type is reported when the entry is looked up.
                    let kind = file_type(kind).unwrap_or(FileType::RegularFile);
                    add(&mut reply, next + DOTS, ino, kind, name)
                });
            // Entries before the damage are returned; the next call begins at the damage, and
            // fails.
            if added { Ok(()) } else { Ok(result?) }
        });
        reply!(reply, result, _unit => reply.ok());
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let result = self
            .requests
            .answer(Op::Readdirplus, req, ino, offset, |dir| {
                let mut added = false;
                let mut add =
                    |reply: &mut ReplyDirectoryPlus, next, attr: &FileAttr, name: &[u8]| {
                        let full = reply.add(
                            attr.ino,
                            next,
                            OsStr::from_bytes(name),
                            &FOREVER,
                            attr,
                            GENERATION,
                        );
                        added |= !full;
                        !full
                    };
                if offset < 1 && !add(&mut reply, 1, &self.look_up(dir, b".")?, b".") {
                    return Ok(());
                }
                if offset < DOTS && !add(&mut reply, DOTS, &self.look_up(dir, b"..")?, b"..") {
                    return Ok(());
                }
                let from = offset.saturating_sub(DOTS);
                let mut unknown = None;
                let result = self.requests.rootfs().readdir_plus(
                    dir,
                    from,
                    &mut |next, ino, inode, name| match self.attr(ino, inode) {
                        Ok(attr) => add(&mut reply, next + DOTS, &attr, name),
                        Err(refusal) => {
                            unknown = Some(refusal);
                            false
                        }
                    },
                );
                match (added, unknown) {
                    (true, _) => Ok(()),
                    (false, Some(refusal)) => Err(refusal),
                    (false, None) => Ok(result?),
                }
            });
        reply!(reply, result, _unit => reply.ok());
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        // After ENOSYS, the kernel never asks again; otherwise overlayfs asks at every lookup.
        if !self.requests.rootfs().has_xattrs() {
            return reply.error(Errno::ENOSYS);
        }
        let result = self
            .requests
            .answer(Op::Getxattr, req, ino, 0, |ino| match name.as_bytes() {
                name if name.starts_with(self.marks) => Err(Errno::NO_XATTR.into()),
                name => self
                    .requests
                    .rootfs()
                    .xattr(ino, name)?
                    .ok_or(Errno::NO_XATTR.into()),
            });
        reply!(reply, result, value => reply_xattr(reply, size, &value));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let result = self.requests.answer(Op::Listxattr, req, ino, 0, |ino| {
            // Asked for by users only, whom an error would make complain about each file.
            if !self.requests.rootfs().has_xattrs() {
                return Ok(Vec::new());
            }
            let mut list = Vec::new();
            for name in self
                .requests
                .rootfs()
                .xattr_names(ino)?
                .into_iter()
                .filter(|name| !name.starts_with(self.marks))
            {
                list.extend_from_slice(&name);
                list.push(0);
            }
            Ok(list)
        });
        reply!(reply, result, list => reply_xattr(reply, size, &list));
    }

    fn statfs(&self, req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let result = self
            .requests
            .answer(Op::Statfs, req, INodeNo(ROOT.into()), 0, |_| {
                Ok(self.requests.rootfs().statfs())
            });
        reply!(reply, result, s => {
            let blocks = s.bytes.div_ceil(BLOCK.into());
            reply.statfs(blocks, 0, 0, s.files, 0, BLOCK, 255, BLOCK)
        });
    }

    // The following requests would write. The kernel refuses them itself, because the mount is
    // read-only, unless it was made by hand.

    fn setattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(
        &self,
        _req: &Request,
        _dir: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(
        &self,
        _req: &Request,
        _dir: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _req: &Request, _dir: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _req: &Request, _dir: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(
        &self,
        _req: &Request,
        _dir: INodeNo,
        _name: &OsStr,
        _target: &Path,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn rename(
        &self,
        _req: &Request,
        _dir: INodeNo,
        _name: &OsStr,
        _new_dir: INodeNo,
        _new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn link(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _new_dir: INodeNo,
        _new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn create(
        &self,
        _req: &Request,
        _dir: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: fuser::CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }
}

/// `size` is the length of the caller's buffer; 0 requests the length that it needs.
fn reply_xattr(reply: ReplyXattr, size: u32, value: &[u8]) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}
