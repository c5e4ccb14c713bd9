//! Answers to requests, and what is logged when one fails.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Instant;

use bfc::format::{S_IFMT, S_IFREG};
use bfc::rootfs::format::Inode;
use fuser::{Errno, FileAttr, INodeNo, Request};

use super::super::attr::{file_attr, negative};
use super::super::stats::Op;
use super::Adapter;
use crate::error::chain;
use crate::fs::{self, Order, ROOT, Seek, Step};

/// How many different errors to log; further ones are only answered.
const MAX_LOGGED: usize = 4096;
/// For how many of them to search the path, which takes a walk of the tree.
const MAX_SEARCHES: usize = 64;
/// Most steps of a search, because the request waits for it.
const MAX_SEARCHED: u32 = 1 << 20;
/// Stands for the offset when an inode of unknown type is logged; no read begins there.
const TYPE: u64 = u64::MAX;

/// Why a request fails.
pub(super) enum Refusal {
    /// An error of the file system; damage is logged.
    Fs(fs::Error),
    /// An expected answer.
    Errno(Errno),
}

impl From<fs::Error> for Refusal {
    fn from(error: fs::Error) -> Self {
        Refusal::Fs(error)
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Refusal::Errno(errno)
    }
}

pub(super) type Answer<T> = Result<T, Refusal>;

impl Adapter {
    /// Runs `f`. A panic is a bug, but it only makes this request fail with EIO.
    pub(super) fn answer<T>(
        &self,
        op: Op,
        req: &Request,
        ino: INodeNo,
        offset: u64,
        f: impl FnOnce(u32) -> Answer<T>,
    ) -> Result<T, Errno> {
        let Ok(number) = u32::try_from(ino.0) else {
            return Err(Errno::ESTALE);
        };
        let began = Instant::now();
        let Ok(_in_hand) = self.in_hand.begin(req.unique().0) else {
            tracing::error!(
                op = op.name(),
                ino = number,
                offset,
                "a request crashed several workers; answered it with an I/O error"
            );
            self.metrics.answered(op, ino.0, offset, began, true);
            return Err(Errno::EIO);
        };
        let result = match catch_unwind(AssertUnwindSafe(|| f(number))) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Refusal::Errno(errno))) => Err(errno),
            Ok(Err(Refusal::Fs(error))) => Err(self.refuse(number, offset, &error)),
            Err(_) => {
                if self.log_number(number, offset).is_some() {
                    tracing::error!(
                        op = op.name(),
                        ino = number,
                        offset,
                        "a request made the worker panic; answered it with an I/O error"
                    );
                }
                Err(Errno::EIO)
            }
        };
        self.metrics
            .answered(op, ino.0, offset, began, matches!(result, Err(Errno::EIO)));
        result
    }

    /// The errno of an error. Logs damage, once for each place.
    pub(super) fn refuse(&self, ino: u32, offset: u64, error: &fs::Error) -> Errno {
        let errno = error.errno();
        if errno == rustix::io::Errno::IO {
            self.metrics.damaged();
            if let Some(number) = self.log_number(ino, offset) {
                let path = if number <= MAX_SEARCHES {
                    self.path(ino)
                } else {
                    None
                };
                let path = path.unwrap_or_else(|| PathBuf::from("?"));
                tracing::error!(ino, offset, path = %path.display(), "{}", chain(error));
            }
        }
        Errno::from_i32(errno.raw_os_error())
    }

    /// The number of this error in the log, from 1; `None` if it was logged before, or if too many
    /// were: an image must not fill the log.
    pub(super) fn log_number(&self, ino: u32, offset: u64) -> Option<usize> {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        (logged.len() < MAX_LOGGED && logged.insert((ino, offset))).then(|| logged.len())
    }

    /// A path of an inode, for messages. The section records the parent of a directory, but not the
    /// names of a file, which a walk searches.
    pub(super) fn path(&self, wanted: u32) -> Option<PathBuf> {
        let absolute = |path: &[u8]| Path::new("/").join(OsStr::from_bytes(path));
        if let Ok(path) = self.rootfs.directory_path(wanted) {
            return Some(absolute(&path));
        }
        let mut walk = self.rootfs.walk(ROOT, Order::Depth).ok()?;
        for _ in 0..MAX_SEARCHED {
            match walk.step() {
                Ok(Some(Step::Enter(visit))) if visit.ino == wanted => {
                    return Some(absolute(walk.path()));
                }
                Ok(None) => break,
                // The search passes over what cannot be read.
                Ok(Some(_)) | Err(_) => {}
            }
        }
        None
    }

    pub(super) fn attr(&self, ino: u32, inode: &Inode) -> Answer<FileAttr> {
        let data = if inode.mode & S_IFMT == S_IFREG {
            // A damaged file is one without holes here: its readers are told.
            self.rootfs.data_bytes(inode).unwrap_or(inode.size)
        } else {
            0
        };
        file_attr(ino, inode, data).ok_or_else(|| {
            self.metrics.damaged();
            if self.log_number(ino, TYPE).is_some() {
                tracing::error!(ino, mode = inode.mode, "an inode of unknown type");
            }
            Errno::EIO.into()
        })
    }

    /// Where the next hole or data is, as lseek(2) asks for it.
    pub(super) fn seek(&self, ino: u32, offset: u64, whence: i32) -> Answer<i64> {
        let has_holes = || self.rootfs.has_holes().unwrap_or(true);
        if !self.has_holes.get_or_init(has_holes) {
            return Err(Errno::ENOSYS.into());
        }
        let seek = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return Err(Errno::EINVAL.into()),
        };
        let found = self.rootfs.seek(ino, offset, seek)?;
        let found = found.and_then(|found| i64::try_from(found).ok());
        found.ok_or_else(|| Errno::ENXIO.into())
    }

    pub(super) fn look_up(&self, parent: u32, name: &[u8]) -> Answer<FileAttr> {
        let (ino, inode) = match name {
            // NFS and overlayfs ask for these when they return with a file handle. The kernel calls
            // what they find `/` until it is looked up by its own name, and revalidates it under
            // that name.
            b"." | b"/" => (parent, self.rootfs.inode(parent)?),
            b".." => {
                let ino = self.rootfs.parent(parent)?;
                (ino, self.rootfs.inode(ino)?)
            }
            _ => match self.rootfs.lookup(parent, name)? {
                Some(found) => found,
                None => return Ok(negative()),
            },
        };
        self.attr(ino, &inode)
    }
}
