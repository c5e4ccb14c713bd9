//! The root file system of one image, or of several merged images: all operations of a read-only
//! file system.

mod holes;
mod read;

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bfc::rootfs::format::{Dentry, Inode};
use bfc::rootfs::{Section, Xattr};
use bfc::source::ReadAt;
use bfc::{Container, Secret};
use rustix::io::Errno;

use super::cache::{Cache, CacheCounts, Checks};
use super::error::{Error, Result};
use super::image::{ImageFile, OpenImage, check_digest};
use super::options::ImageOptions;
use super::spool::{Spool, TempDir};
use super::stack::stack;
use super::walk::{Order, Shown, Walk};
use crate::layer::MAX_PATH;
use crate::sync::Mutex;

pub(super) use holes::is_zero;
pub use holes::{Seek, Zeros};
pub use read::Decoded;

/// Inode number of the root.
pub const ROOT: u32 = bfc::rootfs::format::ROOT;

/// Called for a directory's entries: the number of the next entry, the inode number, the type (bits
/// 12..16 of the mode), the name. Returns false to stop.
pub type EachEntry<'a> = dyn FnMut(u64, u32, u8, &[u8]) -> bool + 'a;

/// A name and its inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedInode {
    /// Inode number of the directory.
    pub dir: u32,
    /// The name.
    pub name: Vec<u8>,
    /// Inode number.
    pub ino: u32,
    /// The inode.
    pub inode: Inode,
}

/// As [`EachEntry`], with the inode instead of the type.
pub type EachInode<'a> = dyn FnMut(u64, u32, &Inode, &[u8]) -> bool + 'a;

/// Values for statfs(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statfs {
    /// Number of inodes.
    pub files: u64,
    /// Length of the image, bytes.
    pub bytes: u64,
}

/// A read-only root file system.
pub struct Rootfs {
    images: Vec<OpenImage>,
    section: Section,
    /// Inode number of the root.
    root: u32,
    check_hash: bool,
    hide_xattrs: bool,
    cache: Cache,
    /// Stored content of one piece that is read in place, once its checksum was found right.
    checks: Checks,
    holes: Mutex<holes::Known>,
}

impl std::fmt::Debug for Rootfs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rootfs")
            .field("section", &self.section)
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

fn kind_error(ino: u32, reason: &'static str, errno: Errno) -> Error {
    Error::Kind { ino, reason, errno }
}

impl Rootfs {
    /// Opens an image. Checks what concerns the whole image now, and everything else when it is
    /// used. If there are several images, the first is the lowest, and their layers are merged.
    ///
    /// # Errors
    /// [`Error::Image`] for anything wrong with an image, its key or its digest; [`Error::Subdir`].
    pub fn open(sources: Vec<ImageFile>, options: &ImageOptions) -> Result<Self> {
        Self::open_with(
            sources,
            options,
            Box::new(TempDir(options.temp_dir.clone())),
        )
    }

    /// As [`Rootfs::open`], with another place for content that does not fit the cache.
    ///
    /// # Errors
    /// As [`Rootfs::open`].
    pub fn open_with(
        sources: Vec<ImageFile>,
        options: &ImageOptions,
        spool: Box<dyn Spool>,
    ) -> Result<Self> {
        Self::merge(
            sources
                .into_iter()
                .map(OpenImage::open)
                .collect::<Result<_>>()?,
            options,
            spool,
        )
    }

    fn merge(
        mut opened: Vec<(OpenImage, Section)>,
        options: &ImageOptions,
        spool: Box<dyn Spool>,
    ) -> Result<Self> {
        let (images, section) = match (opened.len(), opened.pop()) {
            (1, Some((image, section))) => (vec![image], section),
            (_, Some(top)) => {
                opened.push(top);
                let stacked = stack(&opened);
                let images: Vec<_> = opened.into_iter().map(|(image, _)| image).collect();
                let section = stacked.map_err(|(number, source)| Error::Stack {
                    image: images[number].path.clone(),
                    source,
                })?;
                (images, section)
            }
            (_, None) => return Err(Error::NotFound),
        };
        if let Some(wanted) = &options.digest {
            check_digest(&images, wanted)?;
        }
        Self::assemble(images, section, options, spool)
    }

    /// Opens an image that is not in a file: `bytes` answers for it, `path` is for messages.
    ///
    /// # Errors
    /// As [`Rootfs::open`].
    pub fn open_bytes(
        path: PathBuf,
        bytes: Arc<dyn ReadAt>,
        secret: Option<Secret>,
        options: &ImageOptions,
    ) -> Result<Self> {
        Self::open_all(vec![(path, bytes, secret)], options)
    }

    /// As [`Rootfs::open_bytes`], of several images.
    ///
    /// # Errors
    /// As [`Rootfs::open`].
    pub fn open_all(
        images: Vec<(PathBuf, Arc<dyn ReadAt>, Option<Secret>)>,
        options: &ImageOptions,
    ) -> Result<Self> {
        let opened = images
            .into_iter()
            .map(|(path, bytes, secret)| OpenImage::open_bytes(path, bytes, secret))
            .collect::<Result<_>>()?;
        Self::merge(opened, options, Box::new(TempDir(options.temp_dir.clone())))
    }

    /// Opens only the tree of an image, which needs no key; encrypted content cannot be read.
    ///
    /// # Errors
    /// As [`Rootfs::open`].
    pub fn open_tree(source: ImageFile, options: &ImageOptions) -> Result<Self> {
        let (image, section) = OpenImage::open_tree(source)?;
        Self::assemble(
            vec![image],
            section,
            options,
            Box::new(TempDir(options.temp_dir.clone())),
        )
    }

    fn assemble(
        images: Vec<OpenImage>,
        section: Section,
        options: &ImageOptions,
        spool: Box<dyn Spool>,
    ) -> Result<Self> {
        let mut rootfs = Self {
            images,
            section,
            root: ROOT,
            check_hash: options.digest.is_some() || options.check_hash,
            hide_xattrs: options.hide_xattrs,
            cache: Cache::new(options.cache_bytes, spool, options.spool_bytes),
            checks: Checks::default(),
            holes: Mutex::default(),
        };
        if let Some(subdir) = &options.subdir {
            rootfs.root = rootfs.resolve_dir(subdir)?;
        }
        Ok(rootfs)
    }

    /// The section that answers for the tree.
    pub fn section(&self) -> &Section {
        &self.section
    }

    /// The containers, lowest first.
    pub fn containers(&self) -> impl Iterator<Item = &Container> {
        self.images.iter().map(|i| &i.container)
    }

    /// The images' paths, lowest first.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.images.iter().map(|i| i.path.as_path())
    }

    /// How often content that can only be decoded whole was in the cache.
    pub fn cache_counts(&self) -> CacheCounts {
        self.cache.counts()
    }

    /// Total length of all decoded contents, bytes.
    pub fn content_bytes(&self) -> u64 {
        let contents =
            (0..self.section.content_count()).filter_map(|n| self.section.content(n).ok());
        contents.fold(0, |sum, content| sum.saturating_add(content.size))
    }

    /// Reads and checks all of the section.
    pub fn verify_section(&self) -> Result<()> {
        self.section.verify().map_err(|e| self.image_error(e))
    }

    fn resolve_dir(&self, path: &Path) -> Result<u32> {
        match self.resolve(path) {
            Ok((ino, inode)) if inode.is_dir() => Ok(ino),
            Ok(_) | Err(Error::NotFound) => Err(Error::Subdir {
                path: path.to_owned(),
            }),
            Err(error) => Err(error),
        }
    }

    /// The inode at a path from the root. Symlinks are not followed; `.` and empty components are
    /// passed over, `..` finds nothing.
    pub fn resolve(&self, path: &Path) -> Result<(u32, Inode)> {
        use std::os::unix::ffi::OsStrExt;
        let mut at = (ROOT, self.inode(ROOT)?);
        for name in path
            .as_os_str()
            .as_bytes()
            .split(|&b| b == b'/')
            .filter(|n| !n.is_empty() && *n != b".")
        {
            at = self.lookup(at.0, name)?.ok_or(Error::NotFound)?;
        }
        Ok(at)
    }

    /// Whether the root that is shown is the image's.
    pub(super) fn shows_all(&self) -> bool {
        self.root == ROOT
    }

    fn shown(&self) -> Shown<'_> {
        Shown {
            section: &self.section,
            root: self.root,
        }
    }

    pub(super) fn image_error(&self, source: bfc::Error) -> Error {
        Error::Image {
            image: self
                .images
                .first()
                .map(|i| i.path.clone())
                .unwrap_or_default(),
            source,
        }
    }

    /// The inode with this number.
    ///
    /// # Errors
    /// [`Error::NotFound`], and [`Error::Image`] as for all that follow.
    pub fn inode(&self, ino: u32) -> Result<Inode> {
        self.shown()
            .inode(ino)
            .map_err(|e| self.image_error(e))?
            .ok_or(Error::NotFound)
    }

    fn directory(&self, ino: u32) -> Result<Inode> {
        let inode = self.inode(ino)?;
        if inode.is_dir() {
            Ok(inode)
        } else {
            Err(kind_error(ino, "not a directory", Errno::NOTDIR))
        }
    }

    /// The inode of `name` in a directory; `None` if there is no such name.
    pub fn lookup(&self, parent: u32, name: &[u8]) -> Result<Option<(u32, Inode)>> {
        let dir = self.directory(parent)?;
        let failed = |e| self.image_error(e);
        let Some(dentry) = self.section.lookup(&dir, name).map_err(failed)? else {
            return Ok(None);
        };
        self.shown().follow(&dentry).map(Some).map_err(failed)
    }

    /// Calls `each` for a directory's entries, sorted by name, from number `from`: the number of
    /// the next entry, the inode number, the type (bits 12..16 of the mode), the name. It returns
    /// false to stop. `.` and `..` are not among them. Where the entries lead is not checked: see
    /// [`Rootfs::walk`] for what descends.
    pub fn readdir(&self, dir: u32, from: u64, each: &mut EachEntry<'_>) -> Result<()> {
        self.dentries(dir, from, |next, dentry, name| {
            Ok(each(next, self.shown().swap(dentry.ino), dentry.kind, name))
        })
    }

    /// As [`Rootfs::readdir`], with each entry's inode instead of its type.
    pub fn readdir_plus(&self, dir: u32, from: u64, each: &mut EachInode<'_>) -> Result<()> {
        self.dentries(dir, from, |next, dentry, name| {
            let (ino, inode) = self
                .shown()
                .follow(dentry)
                .map_err(|e| self.image_error(e))?;
            Ok(each(next, ino, &inode, name))
        })
    }

    fn dentries<E>(&self, dir: u32, from: u64, mut each: E) -> Result<()>
    where
        E: FnMut(u64, &Dentry, &[u8]) -> Result<bool>,
    {
        let record = self.directory(dir)?;
        let mut index = from;
        while let Some((dentry, name)) = self
            .shown()
            .dentry(&record, index)
            .map_err(|e| self.image_error(e))?
        {
            index += 1;
            if !each(index, &dentry, &name)? {
                break;
            }
        }
        Ok(())
    }

    /// Walks everything below a directory.
    pub fn walk(&self, dir: u32, order: Order) -> Result<Walk<'_>> {
        let inode = self.directory(dir)?;
        let image = self
            .images
            .first()
            .map_or(Path::new(""), |image| &image.path);
        Ok(Walk::new(self.shown(), image, dir, inode, order))
    }

    /// The parent of a directory; the root's is the root.
    pub fn parent(&self, dir: u32) -> Result<u32> {
        Ok(if dir == ROOT {
            ROOT
        } else {
            self.shown().swap(self.directory(dir)?.parent)
        })
    }

    /// Path of a directory from the root, without a slash before or behind it, found from its
    /// record upwards.
    pub fn directory_path(&self, dir: u32) -> Result<Vec<u8>> {
        let (mut names, mut len, mut at) = (Vec::new(), 0, dir);
        while at != ROOT {
            let inode = self.directory(at)?;
            let parent = self.parent(at)?;
            let record = self.directory(parent)?;
            let damaged = |reason| {
                self.image_error(bfc::Error::Section {
                    offset: inode.dentry.into(),
                    reason,
                })
            };
            let index = u64::from(inode.dentry)
                .checked_sub(record.data)
                .ok_or_else(|| damaged("a dentry of another directory"))?;
            let found = self
                .shown()
                .dentry(&record, index)
                .map_err(|e| self.image_error(e))?;
            let (dentry, name) = found.ok_or_else(|| damaged("a dentry of another directory"))?;
            if self.shown().swap(dentry.ino) != at {
                return Err(damaged("a dentry of another directory"));
            }
            len += name.len() + 1;
            if len > MAX_PATH + 1 {
                return Err(damaged("a path that is too long"));
            }
            names.push(name);
            at = parent;
        }
        names.reverse();
        Ok(names.join(&b'/'))
    }

    /// A symlink's target.
    pub fn readlink(&self, ino: u32) -> Result<Cow<'_, [u8]>> {
        let inode = self.inode(ino)?;
        self.section
            .target(&inode)
            .map_err(|e| self.image_error(e))?
            .ok_or_else(|| kind_error(ino, "not a symlink", Errno::INVAL))
    }

    /// Whether any inode has extended attributes to show.
    pub fn has_xattrs(&self) -> bool {
        !self.hide_xattrs && self.section.has_xattrs()
    }

    /// Whether the image lists the inodes with extended attributes.
    ///
    /// # Errors
    /// As [`Rootfs::xattr_entries`].
    pub fn lists_xattrs(&self) -> Result<bool> {
        Ok(self
            .section
            .xattr_dentries()
            .map_err(|e| self.image_error(e))?
            .is_some())
    }

    /// The names that lead to inodes with extended attributes, each directory's before those in it.
    /// `None` when the image does not list them: there are many.
    ///
    /// # Errors
    /// [`Error::Image`] when the list is damaged.
    pub fn xattr_entries(&self) -> Result<Option<Vec<NamedInode>>> {
        let Some(list) = self
            .section
            .xattr_dentries()
            .map_err(|e| self.image_error(e))?
        else {
            return Ok(None);
        };
        let mut reached = HashSet::from([ROOT]);
        let mut entries = Vec::with_capacity(list.len());
        for (dir, index) in list {
            let dir = self.shown().swap(dir);
            // A directory outside the visible tree.
            if !reached.contains(&dir) {
                continue;
            }
            self.readdir_plus(dir, index.into(), &mut |_, ino, inode, name| {
                if inode.is_dir() {
                    reached.insert(ino);
                }
                entries.push(NamedInode {
                    dir,
                    name: name.to_vec(),
                    ino,
                    inode: *inode,
                });
                false
            })?;
        }
        Ok(Some(entries))
    }

    /// The value of an extended attribute, `None` when the inode has none of that name.
    pub fn xattr(&self, ino: u32, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let inode = self.inode(ino)?;
        let xattrs = self
            .section
            .xattrs(&inode)
            .map_err(|e| self.image_error(e))?;
        Ok(xattrs.into_iter().find(|x| x.name == name).map(|x| x.value))
    }

    /// All extended attributes of an inode.
    pub fn xattrs(&self, ino: u32) -> Result<Vec<Xattr>> {
        let inode = self.inode(ino)?;
        self.section.xattrs(&inode).map_err(|e| self.image_error(e))
    }

    /// The names of all extended attributes of an inode.
    pub fn xattr_names(&self, ino: u32) -> Result<Vec<Vec<u8>>> {
        let inode = self.inode(ino)?;
        let xattrs = self
            .section
            .xattrs(&inode)
            .map_err(|e| self.image_error(e))?;
        Ok(xattrs.into_iter().map(|x| x.name).collect())
    }

    /// Values for statfs(2).
    pub fn statfs(&self) -> Statfs {
        Statfs {
            files: u64::from(self.section.inode_count()),
            bytes: self.images.iter().map(|i| i.container.len()).sum(),
        }
    }
}
