//! Where an upper is: a directory with `upper/` and `work/`, and who provides it.

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, FsWord, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;

use super::dataset::{self, Limits};
use super::error::{Error, Result};
use super::tmpfs;
use crate::serve::idmap::in_user_namespace;
use crate::serve::shared::Hidden;
use crate::zfs::{self, Dataset};

const UPPER: &str = "upper";
const WORK: &str = "work";
/// What stands before the name of a dataset.
const DATASET: &[u8] = b"zfs:";
/// Largest set of attribute names, and largest value, that the kernel gives.
const MAX_XATTR: usize = 1 << 16;

/// Where a container is to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upper {
    /// In a directory, which is made when it is missing.
    Dir(PathBuf),
    /// In a ZFS dataset, which is made when it is missing.
    Zfs {
        /// The dataset.
        dataset: Dataset,
        /// How much room it gets.
        limits: Limits,
    },
    /// In memory, and nowhere after the unmount.
    Ephemeral {
        /// How much at most, bytes; half of the memory when it is not said.
        size: Option<u64>,
    },
}

impl Upper {
    /// What `--upper` names: a directory, or `zfs:DATASET`.
    ///
    /// # Errors
    /// [`zfs::Error::Name`].
    pub fn parse(text: &OsStr) -> Result<Self, zfs::Error> {
        match text.as_encoded_bytes().strip_prefix(DATASET) {
            Some(name) => Ok(Self::Zfs { dataset: String::from_utf8_lossy(name).parse()?, limits: Limits::default() }),
            None => Ok(Self::Dir(PathBuf::from(text))),
        }
    }
}

/// The directories of an upper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The directory that holds all of it.
    pub place: PathBuf,
    /// What was written.
    pub upper: PathBuf,
    /// Overlayfs's own.
    pub work: PathBuf,
}

/// An upper that is there. A place in memory is gone when this is dropped, unless it is mounted by then.
#[derive(Debug)]
pub struct Place {
    /// Its directories.
    pub layout: Layout,
    /// Whether it is kept.
    pub is_kept: bool,
    _memory: Option<Hidden>,
}

impl Place {
    /// Makes sure that the place is there.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Unusable`].
    pub fn open(upper: &Upper) -> Result<Self> {
        match upper {
            Upper::Dir(path) => {
                std::fs::create_dir_all(path).map_err(Error::io("making the directory", path))?;
                Self::kept(path)
            }
            Upper::Zfs { dataset, limits } => Self::kept(&dataset::ready(dataset, *limits)?),
            Upper::Ephemeral { size } => {
                let memory = in_memory(*size)?;
                Ok(Self { layout: Layout::in_place(memory.path().to_owned()), is_kept: false, _memory: Some(memory) })
            }
        }
    }
}

impl Place {
    fn kept(path: &Path) -> Result<Self> {
        let path = path.canonicalize().map_err(Error::io("finding", path))?;
        check_type(&path)?;
        Ok(Self { layout: Layout::in_place(path), is_kept: true, _memory: None })
    }
}

impl Layout {
    /// The directories of an upper at `place`.
    pub fn in_place(place: PathBuf) -> Self {
        Self { upper: place.join(UPPER), work: place.join(WORK), place }
    }

    /// Refuses what is no upper.
    ///
    /// # Errors
    /// [`Error::NoUpper`].
    pub fn check(&self) -> Result<()> {
        if self.upper.is_dir() && self.work.is_dir() {
            return Ok(());
        }
        Err(Error::NoUpper { path: self.place.clone(), reason: "is no upper: it has no directories `upper` and `work`" })
    }

    /// Makes what is missing. A new upper directory looks like `root`, the image's root directory, since that is what the container's will look like.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Unusable`] when the file system cannot keep what overlayfs writes.
    pub fn prepare(&self, root: BorrowedFd<'_>) -> Result<()> {
        make_directory(&self.work, 0o700)?;
        if self.upper.is_dir() {
            return Ok(());
        }
        let new = self.place.join(format!(".{UPPER}-{}", std::process::id()));
        make_directory(&new, 0o700)?;
        let made = self
            .probe()
            .and_then(|()| copy_attributes(root, &new))
            .and_then(|()| std::fs::rename(&new, &self.upper).map_err(Error::io("making the directory", &self.upper)));
        made.inspect_err(|_| drop(std::fs::remove_dir(&new)))
    }

    /// Tries what overlayfs will do: a whiteout, and an attribute of its own.
    fn probe(&self) -> Result<()> {
        let path = self.place.join(format!(".probe-{}", std::process::id()));
        let unusable = |what: &str, e: Errno| Error::Unusable { path: self.place.clone(), reason: format!("{what} there: {e}") };
        let made = rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, Mode::empty(), 0);
        let removed = std::fs::remove_file(&path);
        made.map_err(|e| unusable("no whiteout can be made", e))?;
        removed.map_err(Error::io("removing", &path))?;
        make_directory(&path, 0o700)?;
        let name = if in_user_namespace() { "user.overlay.opaque" } else { "trusted.overlay.opaque" };
        let set = rustix::fs::lsetxattr(&path, name, b"y", XattrFlags::empty());
        std::fs::remove_dir(&path).map_err(Error::io("removing", &path))?;
        set.map_err(|e| unusable("no extended attribute can be set", e))
    }
}

fn make_directory(path: &Path, mode: u32) -> Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(Error::io("making the directory", path)(e)),
        _ => Ok(()),
    }
}

/// Gives a new directory the owner, mode, attributes and times of another.
fn copy_attributes(from: BorrowedFd<'_>, to: &Path) -> Result<()> {
    let failed = || Error::io("giving the image's attributes to", to);
    // The descriptor of a mount may be good for finding things only.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let from = rustix::fs::openat(from, ".", flags, Mode::empty()).map_err(failed())?;
    let stat = rustix::fs::fstat(&from).map_err(failed())?;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(CWD, to, Some(uid), Some(gid), rustix::fs::AtFlags::empty()).map_err(failed())?;
    rustix::fs::chmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777)).map_err(failed())?;
    let mut names = vec![0_u8; MAX_XATTR];
    let len = match rustix::fs::flistxattr(&from, &mut names[..]) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => 0,
        other => other.map_err(failed())?,
    };
    for name in names[..len].split(|&b| b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0_u8; MAX_XATTR];
        let len = rustix::fs::fgetxattr(&from, name, &mut value[..]).map_err(failed())?;
        rustix::fs::lsetxattr(to, name, &value[..len], XattrFlags::empty()).map_err(failed())?;
    }
    let time = rustix::fs::Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec.cast_signed() };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, to, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).map_err(failed())
}

/// File systems that overlayfs cannot write to, by the magic number of statfs(2), and why.
const UNFIT: [(FsWord, &str); 6] = [
    (0x6573_5546, "it is on a FUSE file system, where overlayfs cannot write"),
    (0x6969, "it is on NFS, where overlayfs cannot write"),
    (0x794c_7630, "it is on overlayfs, and overlayfs cannot write to itself"),
    (0xff53_4d42, "it is on SMB, where overlayfs cannot write"),
    (0x0102_1997, "it is on 9p, where overlayfs cannot write"),
    (0x4d44, "it is on FAT, which has no attributes and no owners"),
];
const ZFS_MAGIC: FsWord = 0x2fc1_2fc1;

/// Refuses a place where overlayfs cannot write, with the reason, which the kernel's EINVAL does not tell.
fn check_type(path: &Path) -> Result<()> {
    let magic = rustix::fs::statfs(path).map_err(Error::io("looking at the file system of", path))?.f_type;
    let reason = UNFIT.iter().find(|(unfit, _)| *unfit == magic).map(|(_, reason)| (*reason).to_owned());
    let old_zfs = || {
        let version = std::fs::read_to_string("/sys/module/zfs/version").ok()?;
        let mut numbers = version.trim().split(['.', '-']).map(|n| n.parse::<u32>().ok());
        let (major, minor) = (numbers.next()??, numbers.next()??);
        ((major, minor) < (2, 2)).then(|| format!("it is on ZFS {}, and overlayfs needs 2.2 or later", version.trim()))
    };
    match reason.or_else(|| if magic == ZFS_MAGIC { old_zfs() } else { None }) {
        Some(reason) => Err(Error::Unusable { path: path.to_owned(), reason }),
        None => Ok(()),
    }
}

/// What the name of a directory begins with where an upper in memory was mounted.
const EPHEMERAL: &str = "ephemeral-";

/// Whether an upper directory is one in memory.
pub fn is_ephemeral(upper: &Path) -> bool {
    let name = upper.parent().and_then(Path::parent).and_then(Path::file_name);
    name.is_some_and(|name| name.as_encoded_bytes().starts_with(EPHEMERAL.as_bytes()))
}

/// A file system in memory, out of sight until an overlay holds it.
fn in_memory(size: Option<u64>) -> Result<Hidden> {
    let size = size.map(|size| size.to_string());
    let size = size.as_ref().map(|size| ("size", size.as_str()));
    let options: Vec<_> = [("mode", "0700")].into_iter().chain(size).collect();
    let mount = tmpfs::mount(&options).map_err(Error::io("mounting a tmpfs for", Path::new("an ephemeral upper")))?;
    Ok(Hidden::named(&format!("{EPHEMERAL}{}-{}", std::process::id(), mount.as_raw_fd()), mount)?)
}
