//! A directory as a layer: a root file system, an overlayfs upper directory, or a layer in OCI's
//! form.
//!
//! It becomes a tar in canonical form: directories first, names in byte order, overlayfs's marks as
//! OCI's whiteouts. So the same directory always has the same diff_id.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bfc::format::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use bfc::rootfs::Attr;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, Stat, openat, readlinkat, statat};
use rustix::io::Errno;

use super::attributes::{self, Marks};
use super::{SourceImage, SourceLayer, TarSource};
use crate::build::error::{Error, Result};
use crate::error::Io;
use crate::layer::tar::{Body, Writer};
use crate::layer::{OPAQUE, WHITEOUT};

/// Opens a directory.
pub(super) fn open(path: &Path) -> Result<SourceImage> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty())
        .map_err(Io::at("opening the directory", path))?;
    let name = path.display().to_string();
    let created_by = super::created_by("dir", path);
    let size = size_of(path, &fd)?;
    let tar = Box::new(DirTar {
        root: path.to_owned(),
        fd,
    });
    Ok(SourceImage {
        layers: vec![SourceLayer {
            name,
            created_by,
            diff_id: None,
            size,
            compressed: false,
            tar,
        }],
        ..SourceImage::default()
    })
}

/// Total length of the files in a directory, for progress and the check of free space. Changes
/// meanwhile do no harm.
fn size_of(root: &Path, fd: &OwnedFd) -> Result<u64> {
    let failed = |e: Errno| Io::at("listing", root)(e);
    let mut total = 0_u64;
    let mut levels = vec![Dir::read_from(fd).map_err(failed)?];
    while let Some(dir) = levels.last_mut() {
        let Some(entry) = dir.read().transpose().map_err(failed)? else {
            levels.pop();
            continue;
        };
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let at = dir.fd().map_err(failed)?;
        // Packing reports files that have disappeared or cannot be read.
        let Ok(stat) = statat(at, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        match stat.st_mode & S_IFMT {
            S_IFREG => total = total.saturating_add(held(&stat)),
            S_IFDIR => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                if let Ok(inner) = openat(at, name, flags, Mode::empty()).and_then(Dir::new) {
                    levels.push(inner);
                }
            }
            _ => {}
        }
    }
    Ok(total)
}

/// How many bytes a file holds, holes left out.
fn held(stat: &Stat) -> u64 {
    let blocks = u64::try_from(stat.st_blocks)
        .unwrap_or(0)
        .saturating_mul(512);
    u64::try_from(stat.st_size).unwrap_or(0).min(blocks)
}

struct DirTar {
    root: PathBuf,
    fd: OwnedFd,
}

impl TarSource for DirTar {
    fn write_to(
        self: Box<Self>,
        out: &mut dyn Write,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let mut walk = Walk {
            root: self.root,
            tar: Writer::new(out),
            links: HashMap::new(),
            progress,
        };
        walk.run(self.fd)?;
        let root = walk.root;
        walk.tar.finish().map_err(Io::at("packing", &root))?;
        Ok(())
    }
}

struct Walk<'a> {
    root: PathBuf,
    tar: Writer<&'a mut dyn Write>,
    /// First path of each file with several names, by device and inode number.
    links: HashMap<(u64, u64), Vec<u8>>,
    progress: &'a (dyn Fn(u64) + Sync),
}

/// A directory whose entries are being packed, the next one last.
struct Level {
    fd: OwnedFd,
    /// Its path with a slash behind it; the root's is empty.
    prefix: Vec<u8>,
    names: Vec<Vec<u8>>,
}

impl Walk<'_> {
    fn failed(&self, doing: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Error {
        let path = self.root.join(OsStr::from_bytes(path));
        move |e| Io::at(doing, &path)(e).into()
    }

    fn run(&mut self, root: OwnedFd) -> Result<()> {
        let stat = rustix::fs::fstat(&root).map_err(self.failed("reading", b""))?;
        let level = self.enter(root, b"", &stat, b".")?;
        let mut levels = vec![level];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.pop() else {
                levels.pop();
                continue;
            };
            let path = [&level.prefix[..], &name].concat();
            let stat = statat(&level.fd, &*name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(self.failed("reading", &path))?;
            if stat.st_mode & S_IFMT == S_IFDIR {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = openat(&level.fd, &*name, flags, Mode::empty())
                    .map_err(self.failed("opening", &path))?;
                let inner = self.enter(fd, &path, &stat, b".")?;
                levels.push(inner);
            } else if let Some(Level { fd, .. }) = levels.last() {
                self.entry(fd, &path, &name, &stat)?;
            }
        }
        Ok(())
    }

    /// Packs a directory's own entry, and lists it.
    fn enter(&mut self, fd: OwnedFd, path: &[u8], stat: &Stat, name: &[u8]) -> Result<Level> {
        let (attr, marks) = self.attr(&fd, path, name, stat)?;
        self.append(path, &attr, Body::None)?;
        let mut prefix = path.to_vec();
        if !prefix.is_empty() {
            prefix.push(b'/');
        }
        if marks.opaque {
            self.mark(&[&prefix[..], OPAQUE].concat())?;
        }
        let mut names = Vec::new();
        for entry in Dir::read_from(&fd).map_err(self.failed("listing", path))? {
            let entry = entry.map_err(self.failed("listing", path))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Level { fd, prefix, names })
    }

    fn entry(&mut self, dir: &OwnedFd, path: &[u8], name: &[u8], stat: &Stat) -> Result<()> {
        let kind = stat.st_mode & S_IFMT;
        let device = (
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        );
        let whiteout = |walk: &mut Self| {
            let parent = &path[..path.len() - name.len()];
            walk.mark(&[parent, WHITEOUT, name].concat())
        };
        if kind == S_IFCHR && device == (0, 0) {
            return whiteout(self);
        }
        let (attr, marks) = self.attr(dir, path, name, stat)?;
        if marks.whiteout {
            return whiteout(self);
        }
        if stat.st_nlink > 1 {
            let id = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&id).cloned() {
                return self.append(path, &attr, Body::HardLink(&first));
            }
            self.links.insert(id, path.to_vec());
        }
        match kind {
            S_IFREG => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let fd = openat(dir, name, flags, Mode::empty())
                    .map_err(self.failed("opening", path))?;
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                self.append(path, &attr, Body::File(size, &mut File::from(fd)))?;
                (self.progress)(held(stat));
                Ok(())
            }
            S_IFLNK => {
                let target = readlinkat(dir, name, Vec::new())
                    .map_err(self.failed("reading the symlink", path))?;
                self.append(path, &attr, Body::Symlink(target.as_bytes()))
            }
            S_IFCHR | S_IFBLK => self.append(path, &attr, Body::Device(device.0, device.1)),
            _ => self.append(path, &attr, Body::None),
        }
    }

    fn append(&mut self, path: &[u8], attr: &Attr, body: Body<'_>) -> Result<()> {
        let shown = || self.root.join(OsStr::from_bytes(path));
        let packed = self.tar.append(path, attr, body);
        Ok(packed.map_err(|e| Io::at("packing", &shown())(e))?)
    }

    /// Packs a whiteout or an opaque mark.
    fn mark(&mut self, path: &[u8]) -> Result<()> {
        let attr = Attr {
            mode: S_IFREG,
            ..Attr::default()
        };
        self.append(path, &attr, Body::File(0, &mut std::io::empty()))
    }

    fn attr(&self, dir: &OwnedFd, path: &[u8], name: &[u8], stat: &Stat) -> Result<(Attr, Marks)> {
        let (xattrs, marks) =
            attributes::read(dir.as_fd(), name, &[attributes::TRUSTED, attributes::USER])
                .map_err(|(doing, e)| self.failed(doing, path)(e))?;
        if marks.metacopy || marks.redirect.is_some() {
            return Err(Error::Source {
                name: self
                    .root
                    .join(OsStr::from_bytes(path))
                    .display()
                    .to_string(),
                reason:
                    "it is an overlayfs redirect or metacopy, whose content is in another layer"
                        .into(),
                hint: Some(
                    "use `lxcri-fs commit` for an upper of `lxcri-fs mount`; for another overlay, \
                     build from the directory that it is mounted on"
                        .into(),
                ),
            });
        }
        let attr = Attr {
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime_s: stat.st_mtime,
            mtime_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            xattrs,
        };
        Ok((attr, marks))
    }
}
