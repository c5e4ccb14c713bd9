//! The place of an upper: a directory with `upper/` and `work/`.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, FsWord, Mode, OFlags, XattrFlags, fchmod, fsetxattr, mkdirat, mknodat,
    openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;

use super::dataset::{self, Limits};
use super::directory_snapshots::{self, ROLLBACK, SNAPSHOTS};
use super::rebase::{self, LOST, PREVIOUS, UPDATE};

use super::error::{Error, Result};
use crate::error::Io;
use crate::serve::shared::Hidden;
use crate::sys::directory::{self, DirectoryEntry};
use crate::sys::idmap::in_user_namespace;
use crate::sys::mountinfo::EPHEMERAL;
use crate::sys::replace::UNFINISHED;
use crate::sys::tmpfs;
use crate::sys::tree_copy::attributes;
use crate::zfs::{self, Dataset};

/// Name of the directory of what was written.
pub(super) const UPPER: &str = "upper";
/// Name of the directory of a container's own volumes.
pub const VOLUMES: &str = "volumes";
/// Name of overlayfs's own directory.
pub(super) const WORK: &str = "work";
/// Names that a new place may contain: the parts of an upper, the store's files of a container, and
/// what file systems have in their root directories.
const BESIDE: [&str; 13] = [
    UPPER,
    WORK,
    VOLUMES,
    SNAPSHOTS,
    ROLLBACK,
    UPDATE,
    PREVIOUS,
    LOST,
    "store.json",
    "container.json",
    "unfinished",
    "lost+found",
    ".zfs",
];
/// Prefixes of temporary names, which a killed process may leave.
const TEMPORARY: [&str; 3] = [".upper-", ".probe-", ".tmp"];
/// Prefix of the name of a dataset.
const DATASET: &[u8] = b"zfs:";

/// Where a container writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upper {
    /// A directory, which is created if it is missing.
    Dir(PathBuf),
    /// A ZFS dataset, which is created if it is missing.
    Zfs {
        /// The dataset.
        dataset: Dataset,
        /// Its limits.
        limits: Limits,
    },
    /// Memory, which is discarded on unmount.
    Ephemeral {
        /// The limit in bytes; `None` for half of the memory.
        size: Option<u64>,
    },
}

impl Upper {
    /// Parses the value of `--upper`: a directory, or `zfs:DATASET`.
    ///
    /// # Errors
    /// [`zfs::Error::Name`].
    pub fn parse(text: &OsStr) -> Result<Self, zfs::Error> {
        match text.as_encoded_bytes().strip_prefix(DATASET) {
            Some(name) => Ok(Self::Zfs {
                dataset: String::from_utf8_lossy(name).parse()?,
                limits: Limits::default(),
            }),
            None => Ok(Self::Dir(PathBuf::from(text))),
        }
    }
}

/// The paths of the directories of an upper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The directory that holds all of it.
    pub place: PathBuf,
    /// What was written.
    pub upper: PathBuf,
    /// Overlayfs's own.
    pub work: PathBuf,
}

/// An open upper. Everything in it is found through its descriptor, because others may change the
/// path that leads to it. An upper in memory is lost when this is dropped, unless it is mounted by
/// then.
#[derive(Debug)]
pub struct UpperDir {
    /// Its directories.
    pub layout: Layout,
    /// Whether it is kept.
    pub is_kept: bool,
    dir: OwnedFd,
    _memory: Option<Hidden>,
}

/// The open directories of an upper, which were opened without following symlinks in it.
#[derive(Debug)]
pub struct Directories {
    /// What was written.
    pub upper: OwnedFd,
    /// Overlayfs's own.
    pub work: OwnedFd,
}

impl UpperDir {
    /// Opens the place, and creates it if it is missing.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Unusable`].
    pub fn open(upper: &Upper) -> Result<Self> {
        match upper {
            Upper::Dir(path) => {
                let dir = match directory::open(path) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => make(path)?,
                    other => other?,
                };
                Self::kept(path, &dir)
            }
            Upper::Zfs { dataset, limits } => {
                let path = dataset::ready(dataset, *limits)?;
                Self::kept(&path, &directory::open(&path)?)
            }
            Upper::Ephemeral { size } => {
                let memory = in_memory(*size)?;
                // The descriptor of a detached mount only serves to look up names.
                let dir = openat(memory.as_fd(), ".", DIRECTORY, Mode::empty())
                    .map_err(Io::at("opening", memory.path()))?;
                Ok(Self {
                    layout: Layout::in_place(memory.path().to_owned()),
                    is_kept: false,
                    dir,
                    _memory: Some(memory),
                })
            }
        }
    }

    fn kept(path: &Path, found: &OwnedFd) -> Result<Self> {
        let dir = openat(found, ".", DIRECTORY, Mode::empty()).map_err(Io::at("opening", path))?;
        let path = directory::path_of(dir.as_fd()).map_err(Io::at("finding", path))?;
        check_type(&path, dir.as_fd())?;
        directory_snapshots::finish(dir.as_fd(), &path)?;
        rebase::finish(dir.as_fd(), &path)?;
        Ok(Self {
            layout: Layout::in_place(path),
            is_kept: true,
            dir,
            _memory: None,
        })
    }

    /// The directory itself.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Refuses a directory without a record that contains anything: an upper of an unknown image,
    /// or foreign files. Makes a new upper private: users of the host must not reach a container's
    /// set-user-id programs and devices.
    ///
    /// # Errors
    /// [`Error::Occupied`], [`Error::Io`].
    pub fn claim(&self) -> Result<()> {
        let place = &self.layout.place;
        let refused = |reason| {
            Err(Error::Occupied {
                path: place.clone(),
                reason,
            })
        };
        for name in names(&self.dir).map_err(Io::at("listing", place))? {
            let is_known = BESIDE.iter().any(|known| name == known.as_bytes());
            let is_temporary = TEMPORARY
                .iter()
                .any(|prefix| name.starts_with(prefix.as_bytes()))
                || name.ends_with(UNFINISHED.as_bytes());
            if !is_known && !is_temporary {
                return refused("is not an upper, and not empty");
            }
        }
        match openat(&self.dir, UPPER, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => {}
            other => {
                let upper = other.map_err(Io::at("opening", &self.layout.upper))?;
                if !names(&upper)
                    .map_err(Io::at("listing", &self.layout.upper))?
                    .is_empty()
                {
                    return refused(
                        "was written to over an image that nothing tells of: it has no record of \
                         one",
                    );
                }
            }
        }
        if self.is_kept {
            fchmod(&self.dir, Mode::RWXU).map_err(Io::at("setting the mode of", place))?;
        }
        Ok(())
    }

    /// Opens the directories, and creates missing ones. A new upper directory gets the attributes
    /// of `root`, the image's root directory, because it becomes the container's.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Unusable`] if the file system cannot store what overlayfs
    /// writes.
    pub fn prepare(&self, root: BorrowedFd<'_>) -> Result<Directories> {
        let Layout { place, upper, work } = &self.layout;
        make_directory(self.as_fd(), Path::new(WORK), work)?;
        let open = |name, path| {
            openat(&self.dir, name, DIRECTORY, Mode::empty()).map_err(Io::at("opening", path))
        };
        let work = open(WORK, work)?;
        match openat(&self.dir, UPPER, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => {}
            other => {
                return Ok(Directories {
                    upper: other.map_err(Io::at("opening", upper))?,
                    work,
                });
            }
        }
        let new = format!(".{UPPER}-{}", std::process::id());
        make_directory(self.as_fd(), Path::new(&new), &place.join(&new))?;
        let made = self.probe().and_then(|()| {
            let dir = open(&new, upper)?;
            copy_attributes(root, dir.as_fd())
                .map_err(Io::at("giving the image's attributes to", upper))?;
            renameat(&self.dir, &*new, &self.dir, UPPER)
                .map_err(Io::at("making the directory", upper))?;
            Ok(dir)
        });
        let upper = made.inspect_err(|_| {
            let _ = unlinkat(&self.dir, &*new, AtFlags::REMOVEDIR);
        })?;
        Ok(Directories { upper, work })
    }

    /// Tries to make a whiteout and to set an attribute, as overlayfs will.
    fn probe(&self) -> Result<()> {
        let name = format!(".probe-{}", std::process::id());
        let path = self.layout.place.join(&name);
        let unusable = |what: &str, e: Errno| Error::Unusable {
            path: self.layout.place.clone(),
            reason: format!("{what}: {e}"),
        };
        let made = mknodat(
            &self.dir,
            &*name,
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        );
        let removed = unlinkat(&self.dir, &*name, AtFlags::empty());
        made.map_err(|e| unusable("creating a whiteout failed", e))?;
        removed.map_err(Io::at("removing", &path))?;
        make_directory(self.as_fd(), Path::new(&name), &path)?;
        let attribute = if in_user_namespace() {
            "user.overlay.opaque"
        } else {
            "trusted.overlay.opaque"
        };
        let set = openat(&self.dir, &*name, DIRECTORY, Mode::empty())
            .and_then(|dir| fsetxattr(&dir, attribute, b"y", XattrFlags::empty()));
        unlinkat(&self.dir, &*name, AtFlags::REMOVEDIR).map_err(Io::at("removing", &path))?;
        set.map_err(|e| unusable("setting an extended attribute failed", e))
    }
}

impl Layout {
    /// The directories of an upper at `place`.
    pub fn in_place(place: PathBuf) -> Self {
        Self {
            upper: place.join(UPPER),
            work: place.join(WORK),
            place,
        }
    }

    /// Fails if it is not an upper.
    ///
    /// # Errors
    /// [`Error::NoUpper`].
    pub fn check(&self) -> Result<()> {
        let is_directory = |path: &Path| path.symlink_metadata().is_ok_and(|m| m.is_dir());
        if is_directory(&self.upper) && is_directory(&self.work) {
            return Ok(());
        }
        Err(Error::NoUpper {
            path: self.place.clone(),
            reason: "is not an upper: it has no directories `upper` and `work`",
        })
    }
}

/// Flags for opening directories of an upper, never through a symlink.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Creates the directory of an upper, and those above it.
fn make(path: &Path) -> Result<OwnedFd> {
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        directory::make_all(parent, Mode::from_raw_mode(0o755))?;
    }
    Ok(DirectoryEntry::at(path)?.make_directory(0o700, None)?)
}

/// Creates a private directory, unless it exists. Messages call it `path`.
fn make_directory(at: BorrowedFd<'_>, name: &Path, path: &Path) -> Result<()> {
    match mkdirat(at, name, Mode::RWXU) {
        Err(e) if e != Errno::EXIST => Err(Io::at("making the directory", path)(e).into()),
        _ => Ok(()),
    }
}

/// What is in a directory.
pub(super) fn names(dir: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// Gives a directory the owner, mode, attributes and times of another.
pub(super) fn copy_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    // The descriptor of a mount may only serve to look up names.
    let this = OsStr::new(".");
    let stat = statat(from, this, AtFlags::SYMLINK_NOFOLLOW)?;
    attributes(from, to, this, &stat)
}

/// File systems that overlayfs cannot write to, by the magic number of statfs(2), and why.
const UNFIT: [(FsWord, &str); 6] = [
    (
        0x6573_5546,
        "it is on a FUSE file system, where overlayfs cannot write",
    ),
    (0x6969, "it is on NFS, where overlayfs cannot write"),
    (
        0x794c_7630,
        "it is on overlayfs, where overlayfs cannot write",
    ),
    (0xff53_4d42, "it is on SMB, where overlayfs cannot write"),
    (0x0102_1997, "it is on 9p, where overlayfs cannot write"),
    (
        0x4d44,
        "it is on FAT, which has no owners and no extended attributes",
    ),
];
const ZFS_MAGIC: FsWord = 0x2fc1_2fc1;

/// Refuses a place where overlayfs cannot write, with the reason, which the kernel's EINVAL does
/// not give.
fn check_type(path: &Path, dir: BorrowedFd<'_>) -> Result<()> {
    let magic = rustix::fs::fstatfs(dir)
        .map_err(Io::at("looking at the file system of", path))?
        .f_type;
    let reason = UNFIT
        .iter()
        .find(|(unfit, _)| *unfit == magic)
        .map(|(_, reason)| (*reason).to_owned());
    let old_zfs = || {
        let version = std::fs::read_to_string("/sys/module/zfs/version").ok()?;
        let mut numbers = version
            .trim()
            .split(['.', '-'])
            .map(|n| n.parse::<u32>().ok());
        let (major, minor) = (numbers.next()??, numbers.next()??);
        ((major, minor) < (2, 2)).then(|| {
            format!(
                "it is on ZFS {}, but overlayfs needs ZFS 2.2 or later",
                version.trim()
            )
        })
    };
    match reason.or_else(|| if magic == ZFS_MAGIC { old_zfs() } else { None }) {
        Some(reason) => Err(Error::Unusable {
            path: path.to_owned(),
            reason,
        }),
        None => Ok(()),
    }
}

/// Whether an upper directory is in memory.
pub fn is_ephemeral(upper: &Path) -> bool {
    let name = upper
        .parent()
        .and_then(Path::parent)
        .and_then(Path::file_name);
    name.is_some_and(|name| name.as_encoded_bytes().starts_with(EPHEMERAL.as_bytes()))
}

/// Makes a file system in memory, hidden until an overlay holds it.
fn in_memory(size: Option<u64>) -> Result<Hidden> {
    let size = size.map(|size| size.to_string());
    let size = size.as_ref().map(|size| ("size", size.as_str()));
    let options: Vec<_> = [("mode", "0700")].into_iter().chain(size).collect();
    let mount = tmpfs::mount(&options).map_err(Io::at(
        "mounting a tmpfs for",
        Path::new("an ephemeral upper"),
    ))?;
    Ok(Hidden::named(
        &format!("{EPHEMERAL}{}-{}", std::process::id(), mount.as_raw_fd()),
        mount,
    )?)
}
