//! A file system with one file, a part of which ends whoever reads it: an image in it is one whose
//! decoding ends its worker.
#![allow(dead_code, clippy::unwrap_used)]

use std::ffi::OsStr;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEntry,
    ReplyOpen, Request, Session, SessionACL,
};
use rustix::process::{Pid, Signal, kill_process};

const FILE: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(60);

/// The file system.
pub struct Killer {
    bytes: Vec<u8>,
    deadly: Range<u64>,
    death: Death,
    killed: Arc<AtomicU32>,
}

/// How a reader ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// It is killed, as when memory is short.
    Kill,
    /// It executes an invalid instruction, as a process with a bug may.
    Crash,
}

impl Death {
    fn of(self, pid: i32) -> std::io::Result<()> {
        match self {
            Death::Kill => Ok(kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL)?),
            Death::Crash => {
                // Number and arguments of the system call that it waits in, stack pointer, and
                // where it goes on.
                let call = std::fs::read_to_string(format!("/proc/{pid}/syscall"))?;
                let next = call
                    .trim_end()
                    .rsplit(' ')
                    .next()
                    .and_then(|n| u64::from_str_radix(n.trim_start_matches("0x"), 16).ok())
                    .ok_or(std::io::ErrorKind::NotFound)?;
                let undefined: &[u8] = if cfg!(target_arch = "x86_64") {
                    &[0x0f, 0x0b]
                } else {
                    &[0; 4]
                };
                File::options()
                    .write(true)
                    .open(format!("/proc/{pid}/mem"))?
                    .write_all_at(undefined, next)
            }
        }
    }
}

impl Killer {
    /// Mounts it; the file has any name that is asked for. How many it has ended.
    pub fn mount(
        bytes: Vec<u8>,
        deadly: Range<u64>,
        death: Death,
        dir: &Path,
    ) -> (BackgroundSession, Arc<AtomicU32>) {
        let killed = Arc::new(AtomicU32::new(0));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::RO, MountOption::FSName("killer".to_owned())];
        config.acl = SessionACL::All;
        let files = Self {
            bytes,
            deadly,
            death,
            killed: killed.clone(),
        };
        let session = Session::new(files, dir, &config).unwrap().spawn().unwrap();
        (session, killed)
    }

    fn attr(&self, ino: INodeNo) -> FileAttr {
        let (kind, size) = if ino == FILE {
            (FileType::RegularFile, self.bytes.len() as u64)
        } else {
            (FileType::Directory, 0)
        };
        let time = SystemTime::UNIX_EPOCH;
        let (perm, nlink, blksize) = (0o755, 1, 4096);
        FileAttr {
            ino,
            size,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize,
            flags: 0,
        }
    }
}

impl Filesystem for Killer {
    fn lookup(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEntry) {
        reply.entry(&TTL, &self.attr(FILE), Generation(0));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Every read comes here.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let end = (offset + u64::from(size)).min(self.bytes.len() as u64);
        if offset < self.deadly.end && self.deadly.start < end {
            // Others of the same number may come: only a worker is killed.
            let pid = i32::try_from(req.pid()).unwrap();
            let name =
                std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/comm")).unwrap_or_default();
            if name.starts_with("fuser-")
                || name.starts_with("lxcri-fs-worker")
                || name.starts_with("push")
            {
                // Another of its requests may have ended it already.
                if self.death.of(pid).is_ok() {
                    self.killed.fetch_add(1, Ordering::Relaxed);
                }
                return reply.error(Errno::EIO);
            }
        }
        #[allow(clippy::cast_possible_truncation)] // within the vector
        let range = offset.min(end) as usize..end as usize;
        reply.data(&self.bytes[range]);
    }
}
