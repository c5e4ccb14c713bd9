//! Puts the extended attributes of an image under an upper into a lower layer of their own, in
//! memory.
//!
//! Overlayfs reads an attribute of every file that it looks up, and the kernel does not cache
//! attributes for FUSE: because of attributes on three files, all files cost a request
//! (docs/PERFORMANCE.md). The inodes with attributes are therefore laid out in a tmpfs, files
//! without content as overlayfs's metacopy defines, and the image below is mounted as if it had no
//! attributes.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bfc::rootfs::Xattr;
use rustix::fs::{AtFlags, Mode, XattrFlags, fsetxattr, ftruncate, linkat, mkdirat};
use rustix::io::Errno;

use super::error::Result;
use crate::error::Io;
use crate::fs::create::{make_node, set_attributes};
use crate::fs::{ImageFile, ImageOptions, NamedInode, ROOT, Rootfs};
use crate::sys::idmap::in_user_namespace;
use crate::sys::kernel;
use crate::sys::tmpfs;

/// Prefix of overlayfs's own attributes, which an image must not set.
const OVERLAY: &[u8] = b"trusted.overlay.";
/// The attribute of a file whose content is in a lower layer.
const METACOPY: &[u8] = b"trusted.overlay.metacopy";
/// Most bytes of attributes to lay out in memory.
const MAX_BYTES: usize = 1 << 20;

/// The attributes of an image that can be laid out.
pub(super) struct Attributes {
    rootfs: Rootfs,
}

impl Attributes {
    /// The attributes of an image; `None` if it has none, or if they cannot be laid out, so that
    /// the image itself must show them.
    ///
    /// # Errors
    /// [`Error::Fs`](super::Error::Fs) when the image is damaged.
    pub(super) fn of(
        images: &[PathBuf],
        files: &[File],
        options: &ImageOptions,
    ) -> Result<Option<Self>> {
        let ([image], [file]) = (images, files) else {
            return Ok(None);
        };
        // Only the host's root may give overlayfs files without content. If it can keep an index,
        // hard links matter more than speed: the index belongs to the uppermost lower layer, which
        // must be the same in every mount.
        if in_user_namespace() || kernel::finds_fuse_handles() {
            return Ok(None);
        }
        let file = file
            .try_clone()
            .map_err(Io::at("opening the image", image))?;
        let rootfs = Rootfs::open_tree(
            ImageFile {
                path: image.clone(),
                file,
                secret: None,
            },
            options,
        )?;
        Ok(if rootfs.has_xattrs() && rootfs.lists_xattrs()? {
            Some(Self { rootfs })
        } else {
            None
        })
    }

    /// Makes the layer, as a detached mount; `None` if there are too many attributes, or the host
    /// refuses them.
    ///
    /// # Errors
    /// [`Error::Fs`](super::Error::Fs) when the image is damaged.
    pub(super) fn layer(&self) -> Result<Option<OwnedFd>> {
        let rootfs = &self.rootfs;
        let Some(entries) = rootfs.xattr_entries()? else {
            return Ok(None);
        };
        let mut xattrs = HashMap::from([(ROOT, shown(rootfs.xattrs(ROOT)?))]);
        for entry in &entries {
            xattrs.insert(entry.ino, shown(rootfs.xattrs(entry.ino)?));
        }
        let bytes: usize = xattrs
            .values()
            .flatten()
            .map(|x| x.name.len() + x.value.len())
            .sum();
        if bytes > MAX_BYTES {
            return Ok(None);
        }
        match (Layout {
            rootfs,
            entries: &entries,
            xattrs: &xattrs,
        })
        .mount()
        {
            Ok(mount) => Ok(Some(mount)),
            // For instance a label that the host does not know, or a file that is too long.
            Err(error) => {
                let image = rootfs.paths().next().unwrap_or(Path::new("")).display();
                tracing::warn!(
                    %image,
                    %error,
                    "extended attributes cannot be kept in memory, which slows down lookups",
                );
                Ok(None)
            }
        }
    }
}

fn shown(mut xattrs: Vec<Xattr>) -> Vec<Xattr> {
    xattrs.retain(|x| !x.name.starts_with(OVERLAY));
    xattrs
}

/// The inodes to lay out.
struct Layout<'a> {
    rootfs: &'a Rootfs,
    /// Directories before what is in them.
    entries: &'a [NamedInode],
    /// By inode number.
    xattrs: &'a HashMap<u32, Vec<Xattr>>,
}

impl Layout<'_> {
    fn mount(&self) -> Result<OwnedFd, Errno> {
        let mount = tmpfs::mount(&[])?;
        self.fill(mount.as_fd())?;
        Ok(mount)
    }

    /// All paths lead through directories that are created here, so no symlink is followed.
    fn fill(&self, top: BorrowedFd<'_>) -> Result<(), Errno> {
        let mut directories = HashMap::from([(ROOT, PathBuf::new())]);
        let mut linked: HashMap<u32, PathBuf> = HashMap::new();
        let root = self.rootfs.inode(ROOT).map_err(|e| e.errno())?;
        let mut made = vec![(PathBuf::from("."), ROOT, root)];
        for entry in self.entries {
            let path = directories
                .get(&entry.dir)
                .ok_or(Errno::NOENT)?
                .join(OsStr::from_bytes(&entry.name));
            if entry.inode.is_dir() {
                mkdirat(top, &path, Mode::RWXU)?;
                directories.insert(entry.ino, path.clone());
            } else if let Some(first) = linked.get(&entry.ino) {
                linkat(top, first, top, &path, AtFlags::empty())?;
                continue;
            } else {
                self.file(top, &path, entry)?;
                linked.insert(entry.ino, path.clone());
            }
            made.push((path, entry.ino, entry.inode));
        }
        // When all is made: what is made in a directory changes its time, and inherits from its
        // access control list.
        for (path, ino, inode) in &made {
            let xattrs = self.xattrs.get(ino).map_or(&[][..], |x| x);
            set_attributes(top, path.as_os_str(), inode, xattrs, true)?;
        }
        Ok(())
    }

    /// Anything but a directory; a regular file has its length, and the mark that its content is
    /// below.
    fn file(&self, top: BorrowedFd<'_>, path: &Path, entry: &NamedInode) -> Result<(), Errno> {
        let Some(file) = make_node(self.rootfs, top, path.as_os_str(), entry.ino, &entry.inode)?
        else {
            return Ok(());
        };
        ftruncate(&file, entry.inode.size)?;
        fsetxattr(&file, METACOPY, b"", XattrFlags::CREATE)
    }
}
