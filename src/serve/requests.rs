//! How requests are answered, whatever serves them: counted, with a record of what is in hand, and
//! with a line in the log for each place that is damaged.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bfc::format::{S_IFMT, S_IFREG};
use fuser::{Errno, INodeNo, Request};

use super::in_hand::InHand;
use super::stats::{Metrics, Op};
use crate::error::chain;
use crate::fs::{self, Order, ROOT, Rootfs, Step};

/// How many different errors to log; further ones are only answered.
const MAX_LOGGED: usize = 4096;
/// For how many of them to search the path, which takes a walk of the tree.
const MAX_SEARCHES: usize = 64;
/// Most steps of a search, because the request waits for it.
const MAX_SEARCHED: u32 = 1 << 20;

/// What a failed request was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    /// The inode with this number.
    Inode(u32),
    /// The content with this number, which several files may have.
    Content(u32),
}

/// Why a request fails.
pub(super) enum Refusal {
    /// An error of the file system; damage is logged.
    Fs(fs::Error),
    /// The same, in a content of those that a request is for: its number, the offset in it.
    Content(u32, u64, fs::Error),
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

/// Replies with the value, or the errno.
macro_rules! reply {
    ($reply:ident, $result:expr, $value:ident => $ok:expr) => {
        match $result {
            Ok($value) => $ok,
            Err(errno) => $reply.error(errno),
        }
    };
}
pub(super) use reply;

/// Answers the requests for an image.
pub(super) struct Requests {
    rootfs: Arc<Rootfs>,
    metrics: Arc<Metrics>,
    in_hand: Arc<InHand>,
    logged: Mutex<HashSet<(Subject, u64)>>,
}

impl Requests {
    pub(super) fn new(rootfs: Arc<Rootfs>, metrics: Arc<Metrics>, in_hand: Arc<InHand>) -> Self {
        Self {
            rootfs,
            metrics,
            in_hand,
            logged: Mutex::default(),
        }
    }

    /// The image.
    pub(super) fn rootfs(&self) -> &Rootfs {
        &self.rootfs
    }

    /// The counters.
    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

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
        let subject = Subject::Inode(number);
        let result = match catch_unwind(AssertUnwindSafe(|| f(number))) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Refusal::Errno(errno))) => Err(errno),
            Ok(Err(Refusal::Fs(error))) => Err(self.refuse(subject, offset, &error)),
            Ok(Err(Refusal::Content(content, offset, error))) => {
                Err(self.refuse(Subject::Content(content), offset, &error))
            }
            Err(_) => {
                if self.log_number(subject, offset).is_some() {
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
    fn refuse(&self, subject: Subject, offset: u64, error: &fs::Error) -> Errno {
        let errno = error.errno();
        if errno == rustix::io::Errno::IO {
            self.metrics.damaged();
            if let Some(number) = self.log_number(subject, offset) {
                let path = if number <= MAX_SEARCHES {
                    self.path(subject)
                } else {
                    None
                };
                let path = path.unwrap_or_else(|| PathBuf::from("?"));
                let (kind, number) = match subject {
                    Subject::Inode(number) => ("inode", number),
                    Subject::Content(number) => ("content", number),
                };
                tracing::error!(
                    kind,
                    number,
                    offset,
                    path = %path.display(),
                    "{}",
                    chain(error)
                );
            }
        }
        Errno::from_i32(errno.raw_os_error())
    }

    /// The number of this error in the log, from 1; `None` if it was logged before, or if too many
    /// were: an image must not fill the log.
    pub(super) fn log_number(&self, subject: Subject, offset: u64) -> Option<usize> {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        (logged.len() < MAX_LOGGED && logged.insert((subject, offset))).then(|| logged.len())
    }

    /// A path, for messages. The section records the parent of a directory, but not the names of a
    /// file, which a walk searches.
    fn path(&self, wanted: Subject) -> Option<PathBuf> {
        let absolute = |path: &[u8]| Path::new("/").join(OsStr::from_bytes(path));
        if let Subject::Inode(ino) = wanted
            && let Ok(path) = self.rootfs.directory_path(ino)
        {
            return Some(absolute(&path));
        }
        let mut walk = self.rootfs.walk(ROOT, Order::Depth).ok()?;
        for _ in 0..MAX_SEARCHED {
            match walk.step() {
                Ok(Some(Step::Enter(visit))) => {
                    let inode = &visit.inode;
                    let found = match wanted {
                        Subject::Inode(ino) => visit.ino == ino,
                        Subject::Content(number) => {
                            inode.mode & S_IFMT == S_IFREG
                                && inode.size > 0
                                && inode.data == u64::from(number)
                        }
                    };
                    if found {
                        return Some(absolute(walk.path()));
                    }
                }
                Ok(None) => break,
                // The search passes over what cannot be read.
                Ok(Some(_)) | Err(_) => {}
            }
        }
        None
    }
}
