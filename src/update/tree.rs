//! The trees that are merged, as far as a merge looks at them.

use std::collections::BTreeMap;

/// One of the three trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The old image.
    Base,
    /// What the container sees: the old image under its upper.
    Mine,
    /// The new image.
    Theirs,
}

impl Side {
    /// The other one of mine and theirs.
    pub(super) fn other(self) -> Self {
        match self {
            Self::Mine => Self::Theirs,
            _ => Self::Mine,
        }
    }
}

/// What is at a path, without its attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file of this length, bytes.
    File(u64),
    /// A symlink, and its target.
    Symlink(Vec<u8>),
    /// A device, fifo or socket: the type bits of its mode, and its number.
    Special(u32, u64),
}

/// Who may do what: mode and access control list, which follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// The twelve permission bits.
    pub mode: u32,
    /// The value of `system.posix_acl_access`.
    pub acl: Option<Vec<u8>>,
}

/// The attributes of a file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Mode and access control list.
    pub access: Access,
    /// Time of the last modification: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes except the access control list.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The identity of a file in its tree: device and inode number.
pub type FileId = (u64, u64);

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Its attributes.
    pub attributes: Attributes,
    /// Its identity, if it has several names.
    pub file: Option<FileId>,
}

impl Entry {
    /// Whether both are files, symlinks or special files of one type: attributes of one mean
    /// nothing for another.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (&self.kind, &other.kind) {
            (Kind::Special(mine, _), Kind::Special(theirs, _)) => mine == theirs,
            (mine, theirs) => std::mem::discriminant(mine) == std::mem::discriminant(theirs),
        }
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind == Kind::Directory
    }
}

/// The three trees. Paths have no leading slash; the root is the empty path.
pub trait Trees {
    /// The error of reading them.
    type Error;

    /// What is at a path; `None` if there is nothing, also because something above is no directory.
    ///
    /// # Errors
    /// The tree's error.
    fn entry(&mut self, side: Side, path: &[u8]) -> Result<Option<Entry>, Self::Error>;

    /// The names in a directory.
    ///
    /// # Errors
    /// The tree's error.
    fn names(&mut self, side: Side, path: &[u8]) -> Result<Vec<Vec<u8>>, Self::Error>;

    /// Whether two sides have the same content at a path where both have files of one length.
    ///
    /// # Errors
    /// The tree's error.
    fn same_content(&mut self, path: &[u8], a: Side, b: Side) -> Result<bool, Self::Error>;

    /// The content of a file; `None` if it is longer than `limit`, bytes.
    ///
    /// # Errors
    /// The tree's error.
    fn read(&mut self, side: Side, path: &[u8], limit: u64)
    -> Result<Option<Vec<u8>>, Self::Error>;
}

/// `name` in the directory `path`.
pub(crate) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    match path {
        b"" => name.to_vec(),
        _ => [path, b"/", name].concat(),
    }
}

/// The directories above a path, the nearest first; the root is the last.
pub(crate) fn above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let parent = |path: &[u8]| path.iter().rposition(|&b| b == b'/').unwrap_or(0);
    let first = (!path.is_empty()).then(|| &path[..parent(path)]);
    std::iter::successors(first, move |path| {
        (!path.is_empty()).then(|| &path[..parent(path)])
    })
}

/// Whether a path is `top`, or below it.
pub(crate) fn is_within(path: &[u8], top: &[u8]) -> bool {
    let rest = path.strip_prefix(top);
    top.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}
