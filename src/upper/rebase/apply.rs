//! Carries out a judgement: changes the mount of the new image under the new upper, so that the
//! kernel's overlayfs makes the upper.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags,
    chmodat, chownat, fstat, linkat, lremovexattr, lsetxattr, mkdirat, mknodat, openat, readlinkat,
    renameat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::lookup::{Lookup, shown};
use super::sides::{ACL, Sides, path_in, xattrs};
use crate::error::Io;
use crate::sys::tree_copy::TreeCopy;
use crate::update::tree::above;
use crate::update::{Attributes, Judgement, Lost, Side, Step, What};

/// Opens a directory to list it.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// What a judgement takes to carry out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Bytes of files that are carried over.
    pub carried: u64,
    /// Bytes of what lost a conflict and is kept.
    pub lost: u64,
}

impl Cost {
    /// All of it.
    pub fn bytes(&self) -> u64 {
        self.carried + self.lost
    }
}

/// Finds out what a judgement takes to carry out.
///
/// # Errors
/// [`Io`].
pub fn cost(judgement: &Judgement, sides: &mut Sides) -> Result<Cost, Io> {
    const BLOCK: u64 = 512;
    let mut bytes = |side, path: &[u8]| {
        let shown = shown(&sides.name, path);
        let found = match sides.side(side).parent(path) {
            Ok(Some((dir, name))) => statat(dir, name, AtFlags::SYMLINK_NOFOLLOW),
            other => other.and(Err(Errno::NOENT)),
        };
        let stat = found.map_err(Io::at("reading", &shown))?;
        Ok::<_, Io>(stat.st_blocks.unsigned_abs() * BLOCK)
    };
    let mut cost = Cost::default();
    for Step { path, what } in &judgement.steps {
        cost.carried += match what {
            What::Mine(_) => bytes(Side::Mine, path)?,
            What::Text(text, _) => text.len() as u64,
            _ => 0,
        };
    }
    for Lost { side, path } in &judgement.lost {
        cost.lost += bytes(*side, path)?;
    }
    Ok(cost)
}

/// Changes theirs as it was judged. `done` is told how many bytes were carried over.
///
/// # Errors
/// [`Io`]; theirs is worthless then.
pub fn apply(judgement: &Judgement, sides: &mut Sides, done: &dyn Fn(u64)) -> Result<(), Io> {
    let name = sides.name.clone();
    let mut new = New {
        top: &name,
        touched: BTreeMap::new(),
        directories: BTreeMap::new(),
        done,
    };
    let Sides { mine, theirs, .. } = sides;
    for step in &judgement.steps {
        let made = new.step(step, mine, theirs);
        made.map_err(Io::at("updating", &shown(&name, &step.path)))?;
    }
    new.settle(theirs)
}

/// The new tree.
struct New<'a> {
    top: &'a Path,
    /// Directories in which something was changed, with the times that they had.
    touched: BTreeMap<Vec<u8>, (i64, u32)>,
    /// Attributes of directories, which are set last.
    directories: BTreeMap<Vec<u8>, Attributes>,
    done: &'a dyn Fn(u64),
}

impl New<'_> {
    fn step(&mut self, step: &Step, mine: &mut Lookup, theirs: &mut Lookup) -> io::Result<()> {
        let Step { path, what } = step;
        if path.is_empty() {
            // The root is there.
            if let What::Directory(attributes) = what {
                self.directories.insert(Vec::new(), attributes.clone());
            }
            return Ok(());
        }
        // It was found while the trees were read: only a lookup through memory can lose it.
        let first = match what {
            What::Link(first) => Some(owned(theirs, first)?),
            _ => None,
        };
        self.touch(path, theirs)?;
        let (dir, name) = owned(theirs, path)?;
        let found = match statat(&dir, &*name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => None,
            other => Some(other?),
        };
        let is_dir = found.is_some_and(|s| FileType::from_raw_mode(s.st_mode).is_dir());
        match what {
            What::Directory(attributes) => {
                if !is_dir {
                    if found.is_some() {
                        unlinkat(&dir, &*name, AtFlags::empty())?;
                    }
                    mkdirat(&dir, &*name, Mode::RWXU)?;
                    theirs.forget();
                }
                self.directories.insert(path.clone(), attributes.clone());
                return Ok(());
            }
            What::Attributes(attributes) => {
                if found.is_some_and(|stat| stat.st_nlink > 1) {
                    // Its other names stay as they are.
                    self.part(dir.as_fd(), &name)?;
                }
                return set(dir.as_fd(), &name, attributes);
            }
            _ => {}
        }
        if is_dir {
            remove(&dir, &name)?;
            theirs.forget();
        } else if found.is_some() {
            unlinkat(&dir, &*name, AtFlags::empty())?;
        }
        match (what, first) {
            (What::Mine(attributes), _) => {
                let (from, _) = owned(mine, path)?;
                copy(from.as_fd(), dir.as_fd(), &name, self.top, self.done)?;
                set(dir.as_fd(), &name, attributes)
            }
            (What::Text(text, attributes), _) => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let file = openat(&dir, &*name, flags, Mode::RUSR | Mode::WUSR)?;
                File::from(file).write_all(text)?;
                (self.done)(text.len() as u64);
                set(dir.as_fd(), &name, attributes)
            }
            (_, Some((at, first))) => Ok(linkat(at, &*first, &dir, &*name, AtFlags::empty())?),
            _ => Ok(()),
        }
    }

    /// Makes a name of a file with several a file of its own.
    fn part(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        // The copy is made beside it, under its own name in another directory. The container may
        // have one of any name that it can guess.
        let new = loop {
            let random = RandomState::new().build_hasher().finish();
            let new = OsString::from(format!(".lxcri-fs-{random:016x}"));
            match mkdirat(dir, &*new, Mode::RWXU) {
                Err(Errno::EXIST) => {}
                made => break made.map(|()| new)?,
            }
        };
        let beside = openat(dir, &*new, DIRECTORY, Mode::empty())?;
        copy(dir, beside.as_fd(), name, self.top, self.done)?;
        // A new inode has no attributes to lose: all are set afterwards.
        renameat(&beside, name, dir, name)?;
        Ok(unlinkat(dir, &*new, AtFlags::REMOVEDIR)?)
    }

    /// Notes the time of the directory that a path is in, before it is changed.
    fn touch(&mut self, path: &[u8], theirs: &mut Lookup) -> io::Result<()> {
        let parent = above(path).next().unwrap_or_default();
        if !self.touched.contains_key(parent) {
            let (dir, _) = owned(theirs, path)?;
            let stat = fstat(&dir)?;
            let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
            self.touched
                .insert(parent.to_vec(), (stat.st_mtime, nanoseconds));
        }
        Ok(())
    }

    /// Gives directories their attributes and times.
    fn settle(self, theirs: &mut Lookup) -> Result<(), Io> {
        let attributes = self.directories.iter();
        for (path, attributes) in attributes.rev() {
            let (dir, name) = owned(theirs, path).map_err(failed(self.top, path))?;
            set(dir.as_fd(), &name, attributes).map_err(failed(self.top, path))?;
        }
        let touched = self.touched.iter().rev();
        for (path, mtime) in touched.filter(|(path, _)| !self.directories.contains_key(*path)) {
            let (dir, name) = owned(theirs, path).map_err(failed(self.top, path))?;
            let set = utimensat(&dir, &*name, &times(*mtime), AtFlags::SYMLINK_NOFOLLOW);
            set.map_err(failed(self.top, path))?;
        }
        Ok(())
    }
}

fn failed<E: Into<io::Error>>(top: &Path, path: &[u8]) -> impl FnOnce(E) -> Io + use<E> {
    let path = shown(top, path);
    move |e| Io::at("updating", &path)(e)
}

/// The directory of a path, open for itself, and the name.
pub(super) fn owned(tree: &mut Lookup, path: &[u8]) -> io::Result<(OwnedFd, OsString)> {
    let found = tree.parent(path)?;
    let (dir, name) = found.ok_or(io::ErrorKind::NotFound)?;
    Ok((dir.try_clone_to_owned()?, name.to_owned()))
}

/// Copies what is no directory, without attributes.
pub(super) fn copy(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &OsStr,
    top: &Path,
    done: &dyn Fn(u64),
) -> io::Result<()> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => TreeCopy::new(from, to, top, done).content(from, to, name, &stat),
        FileType::Symlink => {
            let target = readlinkat(from, name, Vec::new())?;
            Ok(symlinkat(target, to, name)?)
        }
        kind => Ok(mknodat(
            to,
            name,
            kind,
            Mode::RUSR | Mode::WUSR,
            stat.st_rdev,
        )?),
    }
}

/// Gives a name in a directory these attributes and no others.
fn set(dir: BorrowedFd<'_>, name: &OsStr, wanted: &Attributes) -> io::Result<()> {
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let is_symlink = FileType::from_raw_mode(stat.st_mode).is_symlink();
    // Owner first: a change clears set-user-id and file capabilities.
    if (stat.st_uid, stat.st_gid) != (wanted.uid, wanted.gid) {
        let (uid, gid) = (Uid::from_raw(wanted.uid), Gid::from_raw(wanted.gid));
        chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    let path = path_in(dir, name);
    let mut found = xattrs(dir, name)?;
    let acl = wanted.access.acl.iter().map(|acl| (ACL, acl));
    let xattrs = wanted.xattrs.iter().map(|(name, value)| (&name[..], value));
    for (name, value) in xattrs.chain(acl) {
        if found.remove(name).as_ref() != Some(value) {
            lsetxattr(&path, name, value, XattrFlags::empty())?;
        }
    }
    for name in found.keys() {
        // What a security module adds by itself may not be removable.
        match lremovexattr(&path, &name[..]) {
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(Errno::ACCESS | Errno::PERM) if name.starts_with(b"security.") => {}
            other => other?,
        }
    }
    if !is_symlink {
        chmodat(
            dir,
            name,
            Mode::from_raw_mode(wanted.access.mode),
            AtFlags::empty(),
        )?;
    }
    Ok(utimensat(
        dir,
        name,
        &times(wanted.mtime),
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds.into(),
        },
    }
}

/// Removes a directory with everything in it. Takes a descriptor for each level of the tree.
fn remove(dir: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let open = |at: BorrowedFd<'_>, name: &OsStr| -> io::Result<(OwnedFd, Vec<CString>)> {
        let dir = openat(at, name, DIRECTORY, Mode::empty())?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&dir)? {
            let name = entry?.file_name().to_owned();
            if !matches!(name.to_bytes(), b"." | b"..") {
                names.push(name);
            }
        }
        Ok((dir, names))
    };
    let mut levels = vec![(open(dir.as_fd(), name)?, name.to_owned())];
    while let Some(((at, mut names), own)) = levels.pop() {
        let Some(entry) = names.pop() else {
            let parent = levels.last().map_or(dir.as_fd(), |((at, _), _)| at.as_fd());
            unlinkat(parent, &*own, AtFlags::REMOVEDIR)?;
            continue;
        };
        let inner = match unlinkat(&at, &entry, AtFlags::empty()) {
            Err(Errno::ISDIR) => {
                let name = OsString::from_vec(entry.into_bytes());
                Some((open(at.as_fd(), &name)?, name))
            }
            other => {
                other?;
                None
            }
        };
        levels.push(((at, names), own));
        levels.extend(inner);
    }
    Ok(())
}
