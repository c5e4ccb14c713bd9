//! The merged tree as a tar.

use std::collections::HashMap;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use bfc::format::{S_IFBLK, S_IFCHR, S_IFLNK, S_IFMT, S_IFREG};
use bfc::rootfs::Attr;
use bfc::rootfs::format::Inode;

use super::WriteError;
use crate::build::error::Error;
use crate::build::output::Output;
use crate::fs::{ROOT, Rootfs};
use crate::layer::tar::{Body, Writer};

/// How much content is decoded at a time, bytes.
const PIECE: usize = 1 << 20;

/// Writes the tree as a tar in canonical form: the same tree gives the same bytes.
///
/// # Errors
/// When the image is damaged, or `out` fails.
pub fn tree_tar(rootfs: &Rootfs, out: &mut dyn Write, progress: &(dyn Fn(u64) + Sync)) -> Result<(), WriteError> {
    let mut tar = Writer::new(out);
    let mut links: HashMap<u32, Vec<u8>> = HashMap::new();
    // What is still to be written, the next last.
    let mut stack = vec![(Vec::new(), ROOT)];
    while let Some((path, ino)) = stack.pop() {
        let inode = rootfs.inode(ino)?;
        let attr = attr_of(rootfs, ino, &inode)?;
        if inode.is_dir() {
            tar.append(&path, &attr, Body::None)?;
            let start = stack.len();
            rootfs.readdir(ino, 0, &mut |_, child, _, name| {
                let mut inner = path.clone();
                if !inner.is_empty() {
                    inner.push(b'/');
                }
                inner.extend_from_slice(name);
                stack.push((inner, child));
                true
            })?;
            stack[start..].reverse();
            continue;
        }
        if inode.nlink > 1 {
            if let Some(first) = links.get(&ino) {
                tar.append(&path, &attr, Body::HardLink(first))?;
                continue;
            }
            links.insert(ino, path.clone());
        }
        match inode.mode & S_IFMT {
            S_IFREG => {
                let mut content = Content { rootfs, ino, offset: 0, piece: Vec::new(), at: 0, error: None };
                let written = tar.append(&path, &attr, Body::File(inode.size, &mut content));
                if let Some(error) = content.error {
                    return Err(error.into());
                }
                written?;
                progress(inode.size);
            }
            S_IFLNK => tar.append(&path, &attr, Body::Symlink(&rootfs.readlink(ino)?))?,
            S_IFCHR | S_IFBLK => {
                let (major, minor) = inode.rdev();
                tar.append(&path, &attr, Body::Device(major, minor))?;
            }
            _ => tar.append(&path, &attr, Body::None)?,
        }
    }
    tar.finish()?;
    Ok(())
}

/// As [`tree_tar`], into a file that does not exist. When something goes wrong, it is not there.
///
/// # Errors
/// As [`tree_tar`], and when there is something at `path`.
pub fn tree_tar_file(rootfs: &Rootfs, path: &Path, progress: &(dyn Fn(u64) + Sync)) -> Result<(), Error> {
    let output = Output::create(path, false)?;
    let mut out = BufWriter::with_capacity(1 << 18, output.file()?);
    tree_tar(rootfs, &mut out, progress).map_err(|e| e.with_output(path))?;
    let file = out.into_inner().map_err(|e| Error::io("writing", path)(e.into_error()))?;
    file.sync_all().map_err(Error::io("writing", path))?;
    output.publish()
}

fn attr_of(rootfs: &Rootfs, ino: u32, inode: &Inode) -> crate::fs::Result<Attr> {
    Ok(Attr {
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        mtime_s: inode.mtime_s,
        mtime_ns: inode.mtime_ns,
        xattrs: if inode.xattr == 0 { Vec::new() } else { rootfs.xattrs(ino)? },
    })
}

/// Reads a file's content. Keeps what went wrong, which an [`io::Error`] cannot hold well.
struct Content<'a> {
    rootfs: &'a Rootfs,
    ino: u32,
    offset: u64,
    piece: Vec<u8>,
    at: usize,
    error: Option<crate::fs::Error>,
}

impl Read for Content<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            self.piece.clear();
            self.at = 0;
            if let Err(error) = self.rootfs.read(self.ino, self.offset, PIECE, &mut self.piece) {
                self.error = Some(error);
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.offset += self.piece.len() as u64;
        }
        let n = buf.len().min(self.piece.len() - self.at);
        buf[..n].copy_from_slice(&self.piece[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}
