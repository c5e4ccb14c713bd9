//! Writing a root file system out into a directory.
//!
//! Every directory is held open and every name is created in its directory's descriptor without following symlinks, so no image and no
//! symlink that stands in the way leads outside.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use bfc::format::{S_IFDIR, S_IFMT};
use bfc::rootfs::format::Inode;
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Uid, XattrFlags, fchmod, fchown, fsetxattr, fstat, futimens, linkat, mkdirat, openat, unlinkat,
};
use rustix::io::Errno;

use super::create::{make_node, set_attributes, times};
use super::{Error, Rootfs};

/// Flags to open a directory that is ours to fill.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// How to extract.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExtractOptions {
    /// Replace files that exist, and give directories that exist the image's attributes.
    pub force: bool,
    /// Give files their owner; what only root can.
    pub owner: bool,
}

/// One thing that was not extracted, or not completely.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}", path.display())]
pub struct Failure {
    /// Path in the image.
    pub path: PathBuf,
    /// What failed.
    pub what: &'static str,
    /// Why.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Extracted {
    /// Entries that are there now.
    pub entries: u64,
    /// Bytes of content that were written.
    pub bytes: u64,
    /// What failed; the rest was extracted all the same.
    pub failures: Vec<Failure>,
}

/// Extracts the trees at `paths` (from the root; all when there are none) into the directory `dir`, at the same paths there. `progress` is told of bytes as they
/// are written.
pub fn extract(rootfs: &Rootfs, dir: &File, paths: &[PathBuf], options: ExtractOptions, progress: &dyn Fn(u64)) -> Extracted {
    let mut extractor = Extractor { rootfs, options, progress, links: HashMap::new(), path: Vec::new(), done: Extracted::default() };
    let whole = [PathBuf::new()];
    for path in if paths.is_empty() { &whole[..] } else { paths } {
        extractor.path.clear();
        if let Err(failure) = extractor.select(dir, path) {
            extractor.done.failures.push(failure);
        }
    }
    extractor.done
}

struct Extractor<'a> {
    rootfs: &'a Rootfs,
    options: ExtractOptions,
    progress: &'a dyn Fn(u64),
    /// Where each inode of several links was extracted first: its directory and its name there.
    links: HashMap<u32, (std::rc::Rc<OwnedFd>, Vec<u8>)>,
    /// Path in the image of what is being extracted.
    path: Vec<Vec<u8>>,
    done: Extracted,
}

/// A directory that is being filled.
struct Level {
    fd: std::rc::Rc<OwnedFd>,
    ino: u32,
    inode: Inode,
    next: u64,
    /// Whether the directory is to get its attributes when it is filled.
    attributes: bool,
}

impl Extractor<'_> {
    fn fail(&self, what: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> Failure {
        Failure { path: PathBuf::from(OsStr::from_bytes(&self.path.join(&b'/'))), what, source: Box::new(source) }
    }

    /// Extracts one tree, making the directories above it.
    fn select(&mut self, dir: &File, path: &std::path::Path) -> Result<(), Failure> {
        let names: Vec<&[u8]> = path.as_os_str().as_bytes().split(|&b| b == b'/').filter(|n| !n.is_empty() && *n != b".").collect();
        let mut at = dir.as_fd().try_clone_to_owned().map_err(|e| self.fail("opening the target", e))?;
        let (mut ino, mut inode) = (super::ROOT, self.rootfs.inode(super::ROOT).map_err(|e| self.fail("looking it up", e))?);
        let mut above = Vec::new();
        for (depth, name) in names.iter().enumerate() {
            self.path.push(name.to_vec());
            (ino, inode) = match self.rootfs.lookup(ino, name) {
                Ok(Some(found)) => found,
                Ok(None) => return Err(self.fail("looking it up", Error::NotFound)),
                Err(e) => return Err(self.fail("looking it up", e)),
            };
            if depth + 1 == names.len() {
                break;
            }
            let (fd, made) = self.directory(&at, name)?;
            above.push((at, inode, made));
            at = fd;
        }
        match names.last() {
            Some(name) => self.tree(at, name, ino, &inode)?,
            None => self.fill(Level { fd: at.into(), ino, inode, next: 0, attributes: true })?,
        }
        // From the inside out: filling a directory changes its time.
        while let Some((parent, inode, made)) = above.pop() {
            self.path.truncate(above.len() + 1);
            if made {
                let name = OsStr::from_bytes(&self.path[above.len()]);
                let own = openat(&parent, name, DIRECTORY, Mode::empty()).map_err(|e| self.fail("opening the directory", e))?;
                self.attributes(&own, &inode)?;
            }
        }
        Ok(())
    }

    /// Makes a directory, or opens the one that is there; whether it was made.
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
                unlinkat(&parent, name, AtFlags::empty()).map_err(|e| self.fail("replacing what is in the way", e))?;
                mkdirat(&parent, name, Mode::RWXU).map_err(|e| self.fail("making the directory", e))?;
                let fd = openat(&parent, name, DIRECTORY, Mode::empty()).map_err(|e| self.fail("opening the directory", e))?;
                Ok((fd, true))
            }
            Err(e) => Err(self.fail("making the directory, where something else exists (--force replaces it)", e)),
        }
    }

    fn tree(&mut self, parent: OwnedFd, name: &[u8], ino: u32, inode: &Inode) -> Result<(), Failure> {
        if !inode.is_dir() {
            return self.entry(&parent.into(), name, ino, inode);
        }
        let (fd, made) = self.directory(&parent, name)?;
        self.fill(Level { fd: fd.into(), ino, inode: *inode, next: 0, attributes: made || self.options.force })
    }

    /// Fills a directory and all below it. A failure of one entry is kept, and the rest goes on.
    fn fill(&mut self, top: Level) -> Result<(), Failure> {
        let depth = self.path.len();
        let mut stack = vec![top];
        while let Some(level) = stack.last_mut() {
            let mut entry = None;
            let found = self.rootfs.readdir_plus(level.ino, level.next, &mut |next, ino, inode, name| {
                entry = Some((next, ino, *inode, name.to_vec()));
                false
            });
            if let Err(e) = found {
                let failure = self.fail("reading the directory", e);
                self.done.failures.push(failure);
                entry = None;
            }
            let Some((next, ino, inode, name)) = entry else {
                if level.attributes {
                    let (fd, inode) = (level.fd.clone(), level.inode);
                    if let Err(failure) = self.attributes(&*fd, &inode) {
                        self.done.failures.push(failure);
                    }
                }
                self.done.entries += 1;
                stack.pop();
                if self.path.len() > depth {
                    self.path.pop();
                }
                continue;
            };
            level.next = next;
            let fd = level.fd.clone();
            self.path.push(name);
            let name = self.path[self.path.len() - 1].clone();
            let result = if inode.is_dir() {
                self.directory(&*fd, &name).map(|(fd, made)| {
                    let attributes = made || self.options.force;
                    stack.push(Level { fd: fd.into(), ino, inode, next: 0, attributes });
                    true
                })
            } else {
                self.entry(&fd, &name, ino, &inode).map(|()| false)
            };
            match result {
                Ok(true) => {}
                Ok(false) => {
                    self.path.pop();
                }
                Err(failure) => {
                    self.done.failures.push(failure);
                    self.path.pop();
                }
            }
        }
        Ok(())
    }

    /// Extracts anything that is not a directory.
    fn entry(&mut self, parent: &std::rc::Rc<OwnedFd>, name: &[u8], ino: u32, inode: &Inode) -> Result<(), Failure> {
        let os_name = OsStr::from_bytes(name);
        match self.create(parent, os_name, ino, inode) {
            Err(Errno::EXIST) if self.options.force => {
                unlinkat(&**parent, os_name, AtFlags::empty()).map_err(|e| self.fail("replacing what exists", e))?;
                self.create(parent, os_name, ino, inode)
            }
            other => other,
        }
        .map_err(|e| match e {
            Errno::EXIST => self.fail("it exists (--force replaces it)", e),
            e => self.fail("creating it", e),
        })
        .and_then(|file| match file {
            Some(file) => self.content(file, ino, inode).inspect_err(|_| {
                // Half a file is worse than none.
                let _ = unlinkat(&**parent, os_name, AtFlags::empty());
            }),
            None => Ok(()),
        })?;
        if inode.nlink > 1 {
            self.links.entry(ino).or_insert_with(|| (parent.clone(), name.to_vec()));
        }
        self.done.entries += 1;
        Ok(())
    }

    /// Creates it, with all but a file's content and attributes: that file is returned.
    fn create(&self, parent: &OwnedFd, name: &OsStr, ino: u32, inode: &Inode) -> Result<Option<File>, Errno> {
        if let Some((dir, first)) = self.links.get(&ino) {
            return linkat(&**dir, OsStr::from_bytes(first), parent, name, AtFlags::empty()).map(|()| None);
        }
        if let Some(file) = make_node(self.rootfs, parent.as_fd(), name, ino, inode)? {
            return Ok(Some(file));
        }
        let xattrs = self.xattrs(inode).map_err(|_| Errno::IO)?;
        set_attributes(parent.as_fd(), name, inode, &xattrs, self.options.owner)?;
        Ok(None)
    }

    fn content(&mut self, mut file: File, ino: u32, inode: &Inode) -> Result<(), Failure> {
        let mut counted = Counted { file: &mut file, progress: self.progress };
        self.rootfs.copy(ino, &mut counted).map_err(|e| self.fail("writing its content", e))?;
        self.done.bytes += inode.size;
        self.attributes(&file, inode)
    }

    /// Owner first: it clears setuid and file capabilities.
    fn attributes(&self, fd: impl AsFd, inode: &Inode) -> Result<(), Failure> {
        if self.options.owner {
            let (uid, gid) = (Uid::from_raw(inode.uid), Gid::from_raw(inode.gid));
            fchown(&fd, Some(uid), Some(gid)).map_err(|e| self.fail("setting its owner", e))?;
        }
        fchmod(&fd, Mode::from_raw_mode(inode.mode & 0o7777)).map_err(|e| self.fail("setting its mode", e))?;
        for xattr in self.xattrs(inode).map_err(|e| self.fail("reading its attributes", e))? {
            match fsetxattr(&fd, OsStr::from_bytes(&xattr.name), &xattr.value, XattrFlags::empty()) {
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
    file: &'a mut File,
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

/// Opens `dir` to extract into, making it (not its parents) when it is not there.
///
/// # Errors
/// What mkdir(2) or open(2) say.
pub fn open_target(dir: &std::path::Path) -> std::io::Result<File> {
    match mkdirat(CWD, dir, Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let fd = openat(CWD, dir, DIRECTORY.difference(OFlags::NOFOLLOW), Mode::empty())?;
    debug_assert_eq!(fstat(&fd)?.st_mode & S_IFMT, S_IFDIR);
    Ok(fd.into())
}
