//! Extracts a root file system to a directory.
//!
//! Every name is created through the descriptor of its directory, without following symlinks, so
//! nothing is written outside the target. Few directories are open at a time; one that is needed
//! again is opened again, below the target and without following symlinks.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::rc::Rc;

use bfc::format::{S_IFDIR, S_IFMT};
use bfc::rootfs::format::Inode;
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, XattrFlags, fchmod, fchown, fsetxattr,
    fstat, futimens, linkat, mkdirat, openat, openat2, unlinkat,
};
use rustix::io::Errno;

use super::create::{make_node, set_attributes, times};
use super::sparse_file::SparseFile;
use super::{Error, Order, Rootfs, Step, Visit};

/// Flags to open a directory that is ours to fill.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Flags to open a directory of which only a name is needed.
const LINK_DIRECTORY: OFlags = DIRECTORY.union(OFlags::PATH);
/// How many of the directories that are being filled are open at most.
const MAX_OPEN: usize = 64;
/// Longest path that one system call is given, bytes: PATH_MAX without its NUL.
const MAX_CALL_PATH: usize = 4095;

/// How to extract.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExtractOptions {
    /// Replace files that exist, and give directories that exist the image's attributes.
    pub force: bool,
    /// Restore owners, which only root can.
    pub owner: bool,
}

/// One thing that was not extracted, or not completely.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}", path.display())]
pub struct Failure {
    /// Path in the image.
    pub path: PathBuf,
    /// What was being done.
    pub what: &'static str,
    /// Why.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// The result of extracting.
#[derive(Debug, Default)]
pub struct Extracted {
    /// Entries that were extracted.
    pub entries: u64,
    /// Bytes of content that were written.
    pub bytes: u64,
    /// Failures; everything else was extracted.
    pub failures: Vec<Failure>,
}

/// Extracts the trees at `paths` (from the root; everything if it is empty) to the same paths in
/// the directory `dir`. Calls `progress` with the bytes that are written.
pub fn extract(
    rootfs: &Rootfs,
    dir: &File,
    paths: &[PathBuf],
    options: ExtractOptions,
    progress: &dyn Fn(u64),
) -> Extracted {
    let mut extractor = Extractor {
        rootfs,
        options,
        progress,
        target: dir,
        levels: Vec::new(),
        links: HashMap::new(),
        link_dir: None,
        path: Vec::new(),
        done: Extracted::default(),
    };
    let whole = [PathBuf::new()];
    for path in if paths.is_empty() { &whole[..] } else { paths } {
        extractor.path.clear();
        extractor.levels.clear();
        if let Err(failure) = extractor.select(path) {
            extractor.done.failures.push(failure);
        }
        // From the inside out: filling a directory changes its time.
        while extractor.levels.len() > 1 {
            extractor.leave();
        }
    }
    extractor.done
}

struct Extractor<'a> {
    rootfs: &'a Rootfs,
    options: ExtractOptions,
    progress: &'a dyn Fn(u64),
    target: &'a File,
    /// The directories on the current path, the target first.
    levels: Vec<Level>,
    /// The first name of each inode with several links: the inode number of its directory, and its
    /// name there.
    links: HashMap<u32, (u32, Vec<u8>)>,
    /// The directory where a first name was looked for last.
    link_dir: Option<(u32, Rc<OwnedFd>)>,
    /// The current path in the image.
    path: Vec<u8>,
    done: Extracted,
}

/// A directory that is being filled.
struct Level {
    /// The directory, unless it was closed meanwhile because others were opened below it.
    fd: Option<Rc<OwnedFd>>,
    inode: Inode,
    /// Length of its path.
    path: usize,
    /// Whether the directory is to get its attributes when it is filled.
    attributes: bool,
    /// Whether it counts as extracted: directories that only lead to the requested paths do not.
    counts: bool,
}

impl Extractor<'_> {
    fn fail(
        &self,
        what: &'static str,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Failure {
        Failure {
            path: PathBuf::from(OsStr::from_bytes(&self.path)),
            what,
            source: Box::new(source),
        }
    }

    /// Extracts one tree, making the directories above it.
    fn select(&mut self, path: &std::path::Path) -> Result<(), Failure> {
        let names: Vec<&[u8]> = path
            .as_os_str()
            .as_bytes()
            .split(|&b| b == b'/')
            .filter(|n| !n.is_empty() && *n != b".")
            .collect();
        let target = self
            .target
            .as_fd()
            .try_clone_to_owned()
            .map_err(|e| self.fail("opening the target", e))?;
        let (mut ino, mut inode) = (
            super::ROOT,
            self.rootfs
                .inode(super::ROOT)
                .map_err(|e| self.fail("looking it up", e))?,
        );
        self.levels.push(Level {
            fd: Some(Rc::new(target)),
            inode,
            path: 0,
            attributes: false,
            counts: false,
        });
        for (depth, name) in names.iter().enumerate() {
            let dir = ino;
            self.descend(name);
            (ino, inode) = match self.rootfs.lookup(dir, name) {
                Ok(Some(found)) => found,
                Ok(None) => return Err(self.fail("looking it up", Error::NotFound)),
                Err(e) => return Err(self.fail("looking it up", e)),
            };
            let is_last = depth + 1 == names.len();
            if !inode.is_dir() && is_last {
                return self.entry(name, &Visit { dir, ino, inode });
            }
            self.enter(name, &inode, is_last)?;
        }
        self.fill(ino)?;
        if names.is_empty() {
            self.path.clear();
            let root = self.top().map_err(|e| self.fail("opening the target", e))?;
            self.done.entries += 1;
            self.attributes(&*root, &inode)?;
        }
        Ok(())
    }

    /// Adds a name to the path.
    fn descend(&mut self, name: &[u8]) {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
    }

    /// The directory that is being filled.
    fn top(&mut self) -> Result<Rc<OwnedFd>, Errno> {
        let Some(level) = self.levels.last_mut() else {
            return Err(Errno::NOENT);
        };
        if let Some(fd) = &level.fd {
            return Ok(fd.clone());
        }
        let fd = Rc::new(beneath(
            self.target.as_fd(),
            &self.path[..level.path],
            DIRECTORY,
        )?);
        level.fd = Some(fd.clone());
        Ok(fd)
    }

    /// Creates a directory, or opens an existing one, to fill it. The current path is its own.
    /// `wanted` means that it belongs to the requested paths.
    fn enter(&mut self, name: &[u8], inode: &Inode, wanted: bool) -> Result<(), Failure> {
        let parent = self
            .top()
            .map_err(|e| self.fail("opening the directory", e))?;
        let (fd, made) = self.directory(&*parent, name)?;
        let attributes = made || (wanted && self.options.force);
        self.levels.push(Level {
            fd: Some(Rc::new(fd)),
            inode: *inode,
            path: self.path.len(),
            attributes,
            counts: wanted,
        });
        if let Some(far) = self
            .levels
            .len()
            .checked_sub(MAX_OPEN)
            .and_then(|at| self.levels.get_mut(at))
        {
            far.fd = None;
        }
        Ok(())
    }

    /// Gives the directory that was filled its attributes.
    fn leave(&mut self) {
        let top = self.top();
        let Some(level) = self.levels.pop() else {
            return;
        };
        self.path.truncate(level.path);
        self.done.entries += u64::from(level.counts);
        if level.attributes {
            let opened = top.map_err(|e| self.fail("opening the directory", e));
            if let Err(failure) = opened.and_then(|fd| self.attributes(&*fd, &level.inode)) {
                self.done.failures.push(failure);
            }
        }
    }

    /// Creates a directory, or opens an existing one. Returns whether it was created.
    fn directory(&self, parent: impl AsFd, name: &[u8]) -> Result<(OwnedFd, bool), Failure> {
        let name = OsStr::from_bytes(name);
        let made = match mkdirat(&parent, name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(e) => return Err(self.fail("making the directory", e)),
        };
        match openat(&parent, name, DIRECTORY, Mode::empty()) {
            Ok(fd) => Ok((fd, made)),
            Err(Errno::NOTDIR | Errno::LOOP) if self.options.force => {
                unlinkat(&parent, name, AtFlags::empty())
                    .map_err(|e| self.fail("replacing what is in the way", e))?;
                mkdirat(&parent, name, Mode::RWXU)
                    .map_err(|e| self.fail("making the directory", e))?;
                let fd = openat(&parent, name, DIRECTORY, Mode::empty())
                    .map_err(|e| self.fail("opening the directory", e))?;
                Ok((fd, true))
            }
            Err(e) => Err(self.fail(
                "making the directory, where something else exists (--force replaces it)",
                e,
            )),
        }
    }

    /// Fills a directory, which is the innermost level, with everything below it. A failure of one
    /// entry is kept, and the rest continues.
    fn fill(&mut self, dir: u32) -> Result<(), Failure> {
        let mut walk = self
            .rootfs
            .walk(dir, Order::Depth)
            .map_err(|e| self.fail("reading the directory", e))?;
        let top = self.path.clone();
        loop {
            let step = walk.step();
            self.path.clone_from(&top);
            if !walk.path().is_empty() {
                self.descend(walk.path());
            }
            let result = match step {
                Ok(None) => break,
                Ok(Some(Step::Leave(_))) => {
                    self.leave();
                    Ok(())
                }
                Ok(Some(Step::Enter(visit))) if visit.inode.is_dir() => self
                    .enter(walk.name(), &visit.inode, true)
                    .inspect_err(|_| walk.skip()),
                Ok(Some(Step::Enter(visit))) => self.entry(walk.name(), &visit),
                Err(e) => Err(self.fail("reading the directory", e)),
            };
            if let Err(failure) = result {
                self.done.failures.push(failure);
            }
        }
        self.path = top;
        Ok(())
    }

    /// Extracts anything that is not a directory.
    fn entry(&mut self, name: &[u8], visit: &Visit) -> Result<(), Failure> {
        let parent = self
            .top()
            .map_err(|e| self.fail("opening the directory", e))?;
        let os_name = OsStr::from_bytes(name);
        match self.create(&parent, os_name, visit) {
            Err(Errno::EXIST) if self.options.force => {
                unlinkat(&*parent, os_name, AtFlags::empty())
                    .map_err(|e| self.fail("replacing what exists", e))?;
                self.create(&parent, os_name, visit)
            }
            other => other,
        }
        .map_err(|e| match e {
            Errno::EXIST => self.fail("it exists (--force replaces it)", e),
            e => self.fail("creating it", e),
        })
        .and_then(|file| match file {
            Some(file) => self
                .content(file, visit.ino, &visit.inode)
                .inspect_err(|_| {
                    // A partial file is worse than none.
                    let _ = unlinkat(&*parent, os_name, AtFlags::empty());
                }),
            None => Ok(()),
        })?;
        if visit.inode.nlink > 1 {
            self.links
                .entry(visit.ino)
                .or_insert_with(|| (visit.dir, name.to_vec()));
        }
        self.done.entries += 1;
        Ok(())
    }

    /// Creates it, with all but a file's content and attributes: that file is returned.
    fn create(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        visit: &Visit,
    ) -> Result<Option<File>, Errno> {
        let Visit { ino, inode, .. } = visit;
        if let Some((dir, first)) = self.links.get(ino) {
            let dir = match &self.link_dir {
                Some((known, fd)) if known == dir => fd.clone(),
                _ => {
                    let path = self.rootfs.directory_path(*dir).map_err(|e| e.errno())?;
                    let fd = Rc::new(beneath(self.target.as_fd(), &path, LINK_DIRECTORY)?);
                    self.link_dir = Some((*dir, fd.clone()));
                    fd
                }
            };
            return linkat(
                &*dir,
                OsStr::from_bytes(first),
                parent,
                name,
                AtFlags::empty(),
            )
            .map(|()| None);
        }
        if let Some(file) = make_node(self.rootfs, parent.as_fd(), name, *ino, inode)? {
            return Ok(Some(file));
        }
        let xattrs = self.xattrs(inode).map_err(|_| Errno::IO)?;
        set_attributes(parent.as_fd(), name, inode, &xattrs, self.options.owner)?;
        Ok(None)
    }

    fn content(&mut self, mut file: File, ino: u32, inode: &Inode) -> Result<(), Failure> {
        let mut counted = Counted {
            file: SparseFile::new(&mut file),
            progress: self.progress,
        };
        self.rootfs
            .copy(ino, &mut counted)
            .map_err(|e| self.fail("writing its content", e))?;
        counted
            .file
            .finish()
            .map_err(|e| self.fail("writing its content", e))?;
        self.done.bytes += inode.size;
        self.attributes(&file, inode)
    }

    /// Owner first: it clears setuid and file capabilities.
    fn attributes(&self, fd: impl AsFd, inode: &Inode) -> Result<(), Failure> {
        if self.options.owner {
            let (uid, gid) = (Uid::from_raw(inode.uid), Gid::from_raw(inode.gid));
            fchown(&fd, Some(uid), Some(gid)).map_err(|e| self.fail("setting its owner", e))?;
        }
        fchmod(&fd, Mode::from_raw_mode(inode.mode & 0o7777))
            .map_err(|e| self.fail("setting its mode", e))?;
        for xattr in self
            .xattrs(inode)
            .map_err(|e| self.fail("reading its attributes", e))?
        {
            match fsetxattr(
                &fd,
                OsStr::from_bytes(&xattr.name),
                &xattr.value,
                XattrFlags::empty(),
            ) {
                Err(Errno::PERM | Errno::NOTSUP) if !self.options.owner => {}
                other => other.map_err(|e| self.fail("setting its extended attributes", e))?,
            }
        }
        futimens(&fd, &times(inode)).map_err(|e| self.fail("setting its times", e))
    }

    fn xattrs(&self, inode: &Inode) -> Result<Vec<bfc::rootfs::Xattr>, bfc::Error> {
        self.rootfs.section().xattrs(inode)
    }
}

struct Counted<'a> {
    file: SparseFile<'a>,
    progress: &'a dyn Fn(u64),
}

impl std::io::Write for Counted<'_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let n = self.file.write(buf)?;
        (self.progress)(n as u64);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Opens `dir` to extract to. Creates it, but not its parents, if it does not exist.
///
/// # Errors
/// The errors of mkdir(2) and open(2).
pub fn open_target(dir: &std::path::Path) -> std::io::Result<File> {
    match mkdirat(
        CWD,
        dir,
        Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH,
    ) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let fd = openat(
        CWD,
        dir,
        DIRECTORY.difference(OFlags::NOFOLLOW),
        Mode::empty(),
    )?;
    debug_assert_eq!(fstat(&fd)?.st_mode & S_IFMT, S_IFDIR);
    Ok(fd.into())
}

/// Opens the directory at a path of any length beneath `root`, with no symlink on the way.
fn beneath(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let mut at: Option<OwnedFd> = None;
    let mut rest = path;
    loop {
        let (now, later) = match rest.len() {
            len if len <= MAX_CALL_PATH => (if rest.is_empty() { &b"."[..] } else { rest }, None),
            _ => match rest[..MAX_CALL_PATH].iter().rposition(|&b| b == b'/') {
                Some(slash) => (&rest[..slash], Some(&rest[slash + 1..])),
                None => return Err(Errno::NAMETOOLONG),
            },
        };
        let flags = if later.is_some() {
            LINK_DIRECTORY
        } else {
            flags
        };
        let fd = openat2(
            at.as_ref().map_or(root, |fd| fd.as_fd()),
            OsStr::from_bytes(now),
            flags,
            Mode::empty(),
            resolve,
        )?;
        match later {
            Some(later) => (at, rest) = (Some(fd), later),
            None => return Ok(fd),
        }
    }
}
