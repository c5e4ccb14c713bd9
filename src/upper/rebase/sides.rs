//! The three trees of an update, as containers see them: each is a mount of an image under an upper
//! that nobody else uses.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, lgetxattr, llistxattr, llistxattr_query, openat,
    readlinkat, statat,
};
use rustix::io::Errno;

use super::lookup::{Lookup, shown};
use crate::error::Io;
use crate::update::{Access, Attributes, Entry, Kind, Side, Trees};

/// How much is compared at once, bytes.
const PIECE: usize = 1 << 18;
/// The kernel's limit for the value of an attribute, bytes.
const MAX_XATTR: usize = 1 << 16;
/// Name of the attribute with a file's access control list.
pub(super) const ACL: &[u8] = b"system.posix_acl_access";

/// Three mounts.
pub struct Sides {
    /// The old image.
    pub(super) base: Lookup,
    /// The old image under the upper.
    pub(super) mine: Lookup,
    /// The new image, under the new upper.
    pub(super) theirs: Lookup,
    /// What messages call the upper.
    pub(super) name: PathBuf,
}

impl std::fmt::Debug for Sides {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sides")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Sides {
    /// The trees of three directories; messages call the upper `name`.
    pub fn new(base: OwnedFd, mine: OwnedFd, theirs: OwnedFd, name: &Path) -> Self {
        let [base, mine, theirs] = [base, mine, theirs].map(Lookup::new);
        let name = name.to_owned();
        Self {
            base,
            mine,
            theirs,
            name,
        }
    }

    pub(super) fn side(&mut self, side: Side) -> &mut Lookup {
        match side {
            Side::Base => &mut self.base,
            Side::Mine => &mut self.mine,
            Side::Theirs => &mut self.theirs,
        }
    }

    fn failed(&self, path: &[u8]) -> impl FnOnce(io::Error) -> Io + use<> {
        let path = shown(&self.name, path);
        move |e| Io::at("reading", &path)(e)
    }

    fn open(&mut self, side: Side, path: &[u8]) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let found = self.side(side).parent(path)?;
        let (dir, name) = found.ok_or(io::ErrorKind::NotFound)?;
        Ok(File::from(openat(dir, name, flags, Mode::empty())?))
    }
}

impl Trees for Sides {
    type Error = Io;

    fn entry(&mut self, side: Side, path: &[u8]) -> Result<Option<Entry>, Io> {
        let failed = self.failed(path);
        let found = self.side(side).parent(path).map_err(io::Error::from);
        let found = found.and_then(|found| match found {
            None => Ok(None),
            Some((dir, name)) => match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => Ok(None),
                Err(e) => Err(e.into()),
                Ok(stat) => entry(dir, name, &stat).map(Some),
            },
        });
        found.map_err(failed)
    }

    fn names(&mut self, side: Side, path: &[u8]) -> Result<Vec<Vec<u8>>, Io> {
        let failed = self.failed(path);
        let listed = self.open(side, path).and_then(|dir| {
            let mut names = Vec::new();
            for entry in Dir::read_from(dir)? {
                let name = entry?.file_name().to_bytes().to_vec();
                if name != b"." && name != b".." {
                    names.push(name);
                }
            }
            Ok(names)
        });
        listed.map_err(failed)
    }

    fn same_content(&mut self, path: &[u8], a: Side, b: Side) -> Result<bool, Io> {
        let failed = self.failed(path);
        let files = self
            .open(a, path)
            .and_then(|a| Ok((a, self.open(b, path)?)));
        files.and_then(|(a, b)| is_same(a, b)).map_err(failed)
    }

    fn read(&mut self, side: Side, path: &[u8], limit: u64) -> Result<Option<Vec<u8>>, Io> {
        let failed = self.failed(path);
        let read = self.open(side, path).and_then(|file| {
            let mut bytes = Vec::new();
            file.take(limit + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        });
        let bytes = read.map_err(failed)?;
        Ok(Some(bytes).filter(|bytes| bytes.len() as u64 <= limit))
    }
}

/// Whether two files have the same content.
fn is_same(mut a: File, mut b: File) -> io::Result<bool> {
    let (mut left, mut right) = (vec![0; PIECE], vec![0; PIECE]);
    loop {
        let len = a.read(&mut left)?;
        if len == 0 {
            return Ok(b.read(&mut right[..1])? == 0);
        }
        match b.read_exact(&mut right[..len]) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            other => other?,
        }
        if left[..len] != right[..len] {
            return Ok(false);
        }
    }
}

fn entry(dir: BorrowedFd<'_>, name: &OsStr, stat: &Stat) -> io::Result<Entry> {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Kind::Directory,
        FileType::RegularFile => Kind::File(stat.st_size.unsigned_abs()),
        FileType::Symlink => Kind::Symlink(readlinkat(dir, name, Vec::new())?.into_bytes()),
        other => Kind::Special(other.as_raw_mode(), stat.st_rdev),
    };
    let mut xattrs = xattrs(dir, name)?;
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
    let attributes = Attributes {
        uid: stat.st_uid,
        gid: stat.st_gid,
        access: Access {
            mode: stat.st_mode & 0o7777,
            acl: xattrs.remove(ACL),
        },
        mtime: (stat.st_mtime, nanoseconds),
        xattrs,
    };
    let linked = kind != Kind::Directory && stat.st_nlink > 1;
    let file = linked.then_some((stat.st_dev, stat.st_ino));
    Ok(Entry {
        kind,
        attributes,
        file,
    })
}

/// The path of a name in a directory, for calls that take no descriptor.
pub(super) fn path_in(dir: BorrowedFd<'_>, name: &OsStr) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name)
}

/// The extended attributes of a name in a directory.
pub(super) fn xattrs(
    dir: BorrowedFd<'_>,
    name: &OsStr,
) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Errno> {
    let path = path_in(dir, name);
    let len = match llistxattr_query(&path) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => 0,
        other => other?,
    };
    let mut names = vec![0; len];
    let len = match len {
        0 => 0,
        _ => llistxattr(&path, &mut names[..])?,
    };
    let mut found = BTreeMap::new();
    let mut value = Vec::new();
    for name in names[..len].split(|&b| b == 0).filter(|n| !n.is_empty()) {
        value.resize(MAX_XATTR, 0);
        let len = lgetxattr(&path, name, &mut value[..])?;
        found.insert(name.to_vec(), value[..len].to_vec());
    }
    Ok(found)
}
