//! An upper as a layer's tar.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use bfc::format::{S_IFBLK, S_IFCHR, S_IFLNK, S_IFMT, S_IFREG};
use bfc::rootfs::Attr;
use rustix::fs::{AtFlags, Mode, OFlags, openat, readlinkat, statat};

use super::plan::{Plan, Planned};
use super::{Upper, join, open_dir};
use crate::build::content::{ContentReader, attr_of};
use crate::build::error::{Error, Result};
use crate::build::export::WriteError;
use crate::build::sources::{TarSource, attributes};
use crate::error::Io;
use crate::layer::tar::{Body, Writer};
use crate::layer::{OPAQUE, WHITEOUT};

/// An upper that is about to be packed.
pub(super) struct UpperTar {
    pub(super) upper: Upper,
    pub(super) plan: Plan,
}

impl TarSource for UpperTar {
    fn write_to(
        self: Box<Self>,
        out: &mut dyn Write,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let Self { upper, plan } = *self;
        let index = if plan
            .items
            .iter()
            .any(|i| matches!(i.what, Planned::Index(..)))
        {
            Some(upper.directory("work/index")?)
        } else {
            None
        };
        let root = upper.directory("upper")?;
        let mut pack = Pack {
            upper: &upper,
            tar: Writer::new(out),
            root: Rc::new(root),
            dirs: Vec::new(),
            progress,
        };
        for item in &plan.items {
            let path = &item.path;
            let name = path.rsplit(|&b| b == b'/').next().unwrap_or_default();
            let is_mark = matches!(item.what, Planned::Whiteout | Planned::Opaque(_));
            if name.starts_with(WHITEOUT) && !is_mark {
                return Err(Error::Source {
                    name: format!("{}: {}", upper.name, String::from_utf8_lossy(path)),
                    reason: "in a layer, a name that begins with `.wh.` deletes another one".into(),
                    hint: Some("rename it in the container, or delete it".into()),
                });
            }
            match &item.what {
                Planned::Whiteout => pack.mark(&beside(path, WHITEOUT))?,
                Planned::Opaque(_) => pack.mark(&join(path, OPAQUE))?,
                Planned::HardLink(target) => pack.append(
                    path,
                    &Attr {
                        mode: S_IFREG,
                        ..Attr::default()
                    },
                    Body::HardLink(target),
                )?,
                Planned::Image(ino) => pack.of_image(path, *ino)?,
                Planned::Upper(content) => {
                    let name = if path.is_empty() { b"." } else { name };
                    let dir = pack.parent(path)?;
                    pack.of_upper(path, &dir, name, *content)?;
                }
                Planned::Index(name, content) => {
                    if let Some(dir) = &index {
                        pack.of_upper(path, dir, name, *content)?;
                    }
                }
            }
        }
        pack.tar
            .finish()
            .map_err(Io::at("packing", std::path::Path::new(&upper.name)))?;
        Ok(())
    }
}

struct Pack<'a> {
    upper: &'a Upper,
    tar: Writer<&'a mut dyn Write>,
    /// The upper's root.
    root: Rc<OwnedFd>,
    /// The directories below it that lead to the last entry.
    dirs: Vec<(Vec<u8>, Rc<OwnedFd>)>,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl Pack<'_> {
    /// The directory of the upper that contains `path`. Parents come first, so most directories on
    /// the path are open.
    fn parent(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>> {
        let parent = path
            .iter()
            .rposition(|&b| b == b'/')
            .map_or(&b""[..], |at| &path[..at]);
        let leads = |dir: &[u8]| {
            parent
                .strip_prefix(dir)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        while self.dirs.last().is_some_and(|(dir, _)| !leads(dir)) {
            self.dirs.pop();
        }
        loop {
            let (dir, fd) = self
                .dirs
                .last()
                .map_or((&b""[..], &self.root), |(dir, fd)| (dir, fd));
            if dir == parent {
                return Ok(fd.clone());
            }
            let rest = &parent[dir.len() + usize::from(!dir.is_empty())..];
            let name = rest.split(|&b| b == b'/').next().unwrap_or_default();
            let inner = join(dir, name);
            let opened = open_dir(fd, name)
                .map_err(self.upper.failed("opening", &join(b"upper", &inner)))?;
            self.dirs.push((inner, Rc::new(opened)));
        }
    }

    fn of_upper(
        &mut self,
        path: &[u8],
        dir: &OwnedFd,
        name: &[u8],
        content: Option<u32>,
    ) -> Result<()> {
        let upper = self.upper;
        let failed = |doing| upper.failed(doing, path);
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("reading"))?;
        let (xattrs, _) = attributes::read(dir.as_fd(), name, &[upper.marks.prefix()])
            .map_err(|(doing, e)| failed(doing)(e))?;
        let attr = Attr {
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime_s: stat.st_mtime,
            mtime_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            xattrs,
        };
        match stat.st_mode & S_IFMT {
            S_IFREG => {
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                match content {
                    Some(ino) => self.content(path, &attr, size, ino)?,
                    None => {
                        let flags =
                            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
                        let file =
                            openat(dir, name, flags, Mode::empty()).map_err(failed("opening"))?;
                        self.append(path, &attr, Body::File(size, &mut File::from(file)))?;
                    }
                }
                (self.progress)(size);
                Ok(())
            }
            S_IFLNK => {
                let target =
                    readlinkat(dir, name, Vec::new()).map_err(failed("reading the symlink"))?;
                self.append(path, &attr, Body::Symlink(target.as_bytes()))
            }
            S_IFCHR | S_IFBLK => self.append(
                path,
                &attr,
                Body::Device(
                    rustix::fs::major(stat.st_rdev),
                    rustix::fs::minor(stat.st_rdev),
                ),
            ),
            _ => self.append(path, &attr, Body::None),
        }
    }

    fn of_image(&mut self, path: &[u8], ino: u32) -> Result<()> {
        let image = &self.upper.image;
        let inode = image.inode(ino)?;
        let attr = attr_of(image, ino, &inode)?;
        match inode.mode & S_IFMT {
            S_IFREG => {
                self.content(path, &attr, inode.size, ino)?;
                (self.progress)(inode.size);
                Ok(())
            }
            S_IFLNK => {
                let target = image.readlink(ino)?.into_owned();
                self.append(path, &attr, Body::Symlink(&target))
            }
            S_IFCHR | S_IFBLK => {
                let (major, minor) = inode.rdev();
                self.append(path, &attr, Body::Device(major, minor))
            }
            _ => self.append(path, &attr, Body::None),
        }
    }

    /// Packs a file with at most `size` bytes of the content of a file in the image, and zeros for
    /// the rest.
    fn content(&mut self, path: &[u8], attr: &Attr, size: u64, ino: u32) -> Result<()> {
        let mut content = ContentReader::new(&self.upper.image, ino);
        let written = self.tar.append(path, attr, Body::File(size, &mut content));
        content
            .checked::<WriteError>(written)
            .map_err(|e| e.with_output(self.upper.name.as_ref()))
    }

    fn append(&mut self, path: &[u8], attr: &Attr, body: Body<'_>) -> Result<()> {
        self.tar.append(path, attr, body).map_err(|e| {
            use std::os::unix::ffi::OsStrExt;
            let path =
                std::path::Path::new(&self.upper.name).join(std::ffi::OsStr::from_bytes(path));
            Io::at("packing", &path)(e).into()
        })
    }

    /// Packs a whiteout or an opaque mark.
    fn mark(&mut self, path: &[u8]) -> Result<()> {
        self.append(
            path,
            &Attr {
                mode: S_IFREG,
                ..Attr::default()
            },
            Body::File(0, &mut std::io::empty()),
        )
    }
}

/// `path` with `prefix` before its last component.
fn beside(path: &[u8], prefix: &[u8]) -> Vec<u8> {
    let at = path.iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1);
    [&path[..at], prefix, &path[at..]].concat()
}
