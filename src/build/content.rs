//! Passes the content of an image's tree to a tar.

use std::collections::VecDeque;
use std::io::{self, Read};

use bfc::rootfs::Attr;
use bfc::rootfs::format::Inode;

use crate::fs::Rootfs;

/// How much content is decoded at a time, bytes.
const PIECE: usize = 1 << 20;

/// The attributes of an inode for a tar.
///
/// # Errors
/// If the image is damaged.
pub(super) fn attr_of(rootfs: &Rootfs, ino: u32, inode: &Inode) -> crate::fs::Result<Attr> {
    Ok(Attr {
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        mtime_s: inode.mtime_s,
        mtime_ns: inode.mtime_ns,
        xattrs: if inode.xattr == 0 {
            Vec::new()
        } else {
            rootfs.xattrs(ino)?
        },
    })
}

/// Reads a file's content, or parts of it. Keeps the error, for which an [`io::Error`] has no room.
pub(super) struct ContentReader<'a> {
    rootfs: &'a Rootfs,
    ino: u32,
    /// The parts that are still to be read: offset and length.
    parts: VecDeque<(u64, u64)>,
    piece: Vec<u8>,
    at: usize,
    error: Option<crate::fs::Error>,
}

impl<'a> ContentReader<'a> {
    /// Reads the file with this inode number.
    pub(super) fn new(rootfs: &'a Rootfs, ino: u32) -> Self {
        Self::of_parts(rootfs, ino, &[(0, u64::MAX)])
    }

    /// Reads these parts of the file, each an offset and a length, one behind the other.
    pub(super) fn of_parts(rootfs: &'a Rootfs, ino: u32, parts: &[(u64, u64)]) -> Self {
        Self {
            rootfs,
            ino,
            parts: parts.iter().copied().collect(),
            piece: Vec::new(),
            at: 0,
            error: None,
        }
    }

    /// Combines the results of reading the image and of writing the content; the image's error
    /// comes first.
    ///
    /// # Errors
    /// The image's, or the writer's.
    pub(super) fn checked<E: From<crate::fs::Error> + From<io::Error>>(
        self,
        written: io::Result<()>,
    ) -> Result<(), E> {
        match self.error {
            Some(error) => Err(error.into()),
            None => Ok(written?),
        }
    }
}

impl Read for ContentReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            self.piece.clear();
            self.at = 0;
            let Some((offset, len)) = self.parts.front_mut() else {
                return Ok(0);
            };
            let want = usize::try_from(*len).unwrap_or(PIECE).min(PIECE);
            if let Err(error) = self.rootfs.read(self.ino, *offset, want, &mut self.piece) {
                self.error = Some(error);
                return Err(io::ErrorKind::InvalidData.into());
            }
            let read = self.piece.len() as u64;
            *offset += read;
            *len -= read;
            if *len == 0 || read == 0 {
                self.parts.pop_front();
            }
        }
        let n = buf.len().min(self.piece.len() - self.at);
        buf[..n].copy_from_slice(&self.piece[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}
