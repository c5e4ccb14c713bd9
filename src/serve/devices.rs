//! Serves the decoded devices: files that hold the contents of an image one behind the other, from
//! which the kernel's EROFS reads. As the adapter of the file system, it keeps no state between two
//! requests.
//!
//! A request is answered wholly or not at all: EROFS takes what is short for zeros.

mod ahead;
mod frames;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, Request,
};

use self::ahead::{Ahead, Decoding};
use self::frames::{Content, Frames};
use super::attr::BLOCK;
use super::in_hand::InHand;
use super::requests::{Answer, Refusal, Requests, reply};
use super::stats::Op;
use crate::erofs::{DEVICES, Layout, Piece};
use crate::fs::{ROOT, Rootfs};

/// A century: nothing ever changes.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86400);
const GENERATION: Generation = Generation(0);
/// Longest read, bytes; longer ones of the kernel come in parts, which are decoded at the same
/// time.
const MAX_READ: u32 = 128 << 10;
/// Contents up to this length are mostly read at once, bytes.
const AT_ONCE: u64 = 128 << 10;
/// Features to enable if the kernel has them.
const WANTED: [InitFlags; 2] = [InitFlags::FUSE_ASYNC_READ, InitFlags::FUSE_MAX_PAGES];
/// Inode number of the first device.
const FIRST: u32 = ROOT + 1;
/// Names of the devices.
pub(super) const NAMES: [&str; DEVICES] = ["0", "1"];

thread_local! {
    /// The buffer of this thread's reads.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Serves the decoded devices of an image.
pub(super) struct Devices {
    requests: Requests,
    layout: Layout,
    frames: Arc<Frames>,
    ahead: Ahead,
    resends: Arc<OnceLock<bool>>,
}

impl Devices {
    /// The devices, and what decodes ahead of requests in a thread of its own. `resends` receives
    /// whether the kernel can send requests again.
    pub(super) fn new(
        requests: Requests,
        rootfs: Arc<Rootfs>,
        layout: Layout,
        in_hand: Arc<InHand>,
        resends: Arc<OnceLock<bool>>,
    ) -> (Self, Decoding) {
        let frames = Arc::new(Frames::new(rootfs.section().header().frame_log2));
        let (ahead, decoding) = ahead::channel(rootfs, frames.clone(), in_hand);
        let devices = Self {
            requests,
            layout,
            frames,
            ahead,
            resends,
        };
        (devices, decoding)
    }

    /// The attributes of a device, or of the directory with all of them.
    fn attr(&self, ino: u32) -> Answer<FileAttr> {
        let (kind, size) = match ino {
            ROOT => (FileType::Directory, 0),
            _ => (FileType::RegularFile, self.layout.bytes(device(ino)?)),
        };
        Ok(FileAttr {
            ino: INodeNo(ino.into()),
            size,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: if kind == FileType::Directory {
                0o500
            } else {
                0o400
            },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK,
            flags: 0,
        })
    }

    /// Where the piece begins that has a checksum of its own, a frame or all of the content: its
    /// pages are asked for one by one when it is damaged.
    fn piece_at(&self, content: Content, offset: u64) -> u64 {
        let section = self.requests.rootfs().section();
        match section.content(content.number.into()) {
            Ok(record) if record.frames > 0 => self.frames.at(content, offset).start,
            _ => 0,
        }
    }

    /// Appends `len` bytes of a device from `offset`; fewer only at its end.
    fn read(&self, device: u8, offset: u64, len: u64, out: &mut Vec<u8>) -> Answer<()> {
        for piece in self.layout.pieces(device, offset, len) {
            let before = out.len() as u64;
            let added = match piece {
                Piece::Zeros(len) => {
                    #[allow(clippy::cast_possible_truncation)] // part of a request
                    out.resize(out.len() + len as usize, 0);
                    len
                }
                Piece::Content {
                    content,
                    offset,
                    len,
                } => {
                    // The layout is made of the same records.
                    let size = self.layout.size(content).unwrap_or_default();
                    let (number, range) = (content, offset..offset + len);
                    let content = Content { number, size };
                    self.frames
                        .read(self.requests.rootfs(), content, range.clone(), out)
                        .map_err(|error| {
                            Refusal::Content(number, self.piece_at(content, offset), error)
                        })?;
                    if size > AT_ONCE
                        && let Some(place) = self.layout.place(number)
                    {
                        let ino = INodeNo(u64::from(FIRST) + u64::from(device));
                        self.ahead
                            .read(ino, place.offset, content, range, device == 0);
                    }
                    len
                }
            };
            // What a content lacks must not move those behind it.
            if out.len() as u64 - before != added {
                return Err(Errno::EIO.into());
            }
        }
        Ok(())
    }
}

/// The device with this inode number.
fn device(ino: u32) -> Answer<u8> {
    let device = ino.checked_sub(FIRST).and_then(|d| u8::try_from(d).ok());
    device
        .filter(|&device| usize::from(device) < DEVICES)
        .ok_or_else(|| Errno::ENOENT.into())
}

impl Filesystem for Devices {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for flag in WANTED {
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
        let result = self.requests.answer(Op::Lookup, req, parent, 0, |_| {
            match NAMES.iter().position(|known| name == *known) {
                #[allow(clippy::cast_possible_truncation)] // one of DEVICES
                Some(device) => self.attr(FIRST + device as u32),
                // The kernel must not remember it: whoever asks wants to know whether we answer.
                None => Err(Errno::ENOENT.into()),
            }
        });
        reply!(reply, result, attr => reply.entry(&FOREVER, &attr, GENERATION));
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let result = self
            .requests
            .answer(Op::Getattr, req, ino, 0, |ino| self.attr(ino));
        reply!(reply, result, attr => reply.attr(&FOREVER, &attr));
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Small contents are read ahead; of large ones, several requests are under way at a time,
        // and their pages are not held twice.
        let flags = if ino.0 == u64::from(FIRST) {
            FopenFlags::FOPEN_KEEP_CACHE
        } else {
            FopenFlags::FOPEN_DIRECT_IO
        };
        reply.opened(FileHandle(0), flags);
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
        BUFFER.with_borrow_mut(|buffer| {
            buffer.clear();
            let result = self.requests.answer(Op::Read, req, ino, offset, |ino| {
                self.read(device(ino)?, offset, size.into(), buffer)
            });
            reply!(reply, result, _unit => {
                self.requests.metrics().read(buffer.len(), buffer.len());
                reply.data(buffer);
            });
        });
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, BLOCK, 255, BLOCK);
    }
}
