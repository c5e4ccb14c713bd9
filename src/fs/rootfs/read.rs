//! Reading the contents of files: a range, or all of one.

use std::ops::Range;

use bfc::content::Decoder;
use bfc::format::{Compression, Encryption, S_IFMT, S_IFREG};
use bfc::rootfs::format::{Content, Inode};
use rustix::io::Errno;

use super::super::error::{Error, Result};
use super::{Rootfs, kind_error};

/// Content up to this length is decoded for its reader without the cache: the kernel caches its
/// pages.
const SMALL: u64 = 128 << 10;

/// What [`Rootfs::read_decoded`] has appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// Offset in the file of the first byte that was appended.
    pub offset: u64,
    /// The requested bytes in the buffer.
    pub wanted: Range<usize>,
}

impl Decoded {
    /// Cuts what was appended to `out` after `start` down to the requested bytes.
    fn trim(&self, out: &mut Vec<u8>, start: usize) {
        out.truncate(self.wanted.end);
        out.drain(start..self.wanted.start);
    }
}

impl Rootfs {
    /// Appends at most `len` bytes of a file from `offset` to `out`; fewer only at its end. Nothing
    /// is appended that did not pass its check.
    ///
    /// # Errors
    /// As [`Rootfs::read_decoded`].
    pub fn read(&self, ino: u32, offset: u64, len: usize, out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        self.read_decoded(ino, offset, len, out)?.trim(out, start);
        Ok(())
    }

    /// Appends at most `len` bytes of a file from `offset`, with the rest of the frames that had to
    /// be decoded for them. Appends nothing that fails its check.
    ///
    /// # Errors
    /// [`Error::Image`] when content is damaged, [`Error::Temporary`], [`Error::Kind`] when it is
    /// no regular file.
    pub fn read_decoded(
        &self,
        ino: u32,
        offset: u64,
        len: usize,
        out: &mut Vec<u8>,
    ) -> Result<Decoded> {
        let inode = self.inode(ino)?;
        if inode.mode & S_IFMT != S_IFREG {
            return Err(kind_error(
                ino,
                "not a regular file",
                if inode.is_dir() {
                    Errno::ISDIR
                } else {
                    Errno::INVAL
                },
            ));
        }
        self.read_inode(&inode, offset, len, out)
    }

    fn read_inode(
        &self,
        inode: &Inode,
        offset: u64,
        len: usize,
        out: &mut Vec<u8>,
    ) -> Result<Decoded> {
        let len = usize::try_from(inode.size.saturating_sub(offset))
            .unwrap_or(usize::MAX)
            .min(len);
        let start = out.len();
        if len == 0 {
            return Ok(Decoded {
                offset,
                wanted: start..start,
            });
        }
        match self.read_content(inode, offset, len, out) {
            #[allow(clippy::cast_possible_truncation)] // within what was appended
            Ok(first) => {
                let skip = start + (offset - first) as usize;
                Ok(Decoded {
                    offset: first,
                    wanted: skip..skip + len,
                })
            }
            Err(error) => {
                out.truncate(start);
                Err(error)
            }
        }
    }

    /// Like [`Rootfs::read`], for the content with this number, even if no file has it any more.
    pub fn read_by_number(
        &self,
        number: u32,
        offset: u64,
        len: usize,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let size = self
            .section
            .content(number.into())
            .map_err(|e| self.image_error(e))?
            .size;
        let inode = Inode {
            mode: S_IFREG,
            size,
            data: number.into(),
            ..Inode::default()
        };
        let start = out.len();
        self.read_inode(&inode, offset, len, out)?.trim(out, start);
        Ok(())
    }

    /// Appends content that holds the range; the offset in the file of the first byte that was
    /// appended.
    fn read_content(
        &self,
        inode: &Inode,
        offset: u64,
        len: usize,
        out: &mut Vec<u8>,
    ) -> Result<u64> {
        let content = self.content(inode)?;
        let Some(image) = self.images.get(usize::from(content.source)) else {
            return Err(self.image_error(bfc::Error::Section {
                offset: inode.data,
                reason: "content of an image that does not exist",
            }));
        };
        let failed = |source| Error::Image {
            image: image.path.clone(),
            source,
        };
        let decoder = image.decoder(self.check_hash);
        let path = self.section.content_path(&content).map_err(failed)?;
        if content.frames > 0 {
            return self
                .read_frames(&decoder, &content, &path, offset, len, out)
                .map_err(failed);
        }
        #[allow(clippy::cast_possible_truncation)] // a content record's number
        let number = inode.data as u32;
        let content = decoder.resolve(&content).map_err(failed)?;
        if content.size <= SMALL {
            let start = out.len();
            #[allow(clippy::cast_possible_truncation)] // small
            out.resize(start + content.size as usize, 0);
            decoder
                .whole(&content, &path, &mut out[start..])
                .map_err(failed)?;
            return Ok(0);
        }
        if content.comp == Compression::None && content.enc == Encryption::None {
            // v1 has one checksum for all of it: it is checked on the first read, whole.
            self.checks.once(number, || {
                decoder
                    .stream(&content, &[], &mut std::io::sink())
                    .map_err(failed)
            })?;
            return read_stored(&decoder, &content, offset, len, out).map_err(failed);
        }
        let decoded = self.cache.get(number, content.size, |sink| {
            decoder.stream(&content, &path, sink).map_err(failed)
        })?;
        decoded.read(offset, len, out).map_err(|source| {
            failed(bfc::Error::Read {
                offset,
                len: len as u64,
                source,
            })
        })?;
        Ok(offset)
    }

    /// Announces that a range of a file will be read soon, so that its stored bytes are fetched
    /// into memory. Does nothing for content of one piece.
    pub fn will_need(&self, ino: u32, offset: u64, len: u64) -> Result<()> {
        let inode = self.inode(ino)?;
        if inode.mode & S_IFMT != S_IFREG || offset >= inode.size {
            return Ok(());
        }
        let content = self.content(&inode)?;
        let (Some(image), Some(last)) = (
            self.images.get(usize::from(content.source)),
            content.frames.checked_sub(1),
        ) else {
            return Ok(());
        };
        let log2 = self.section.header().frame_log2;
        let number = |at: u64| u32::try_from(at >> log2).unwrap_or(last).min(last);
        let frame = |number| {
            self.section
                .frame(&content, number)
                .map_err(|e| self.image_error(e))
        };
        let (first, last) = (
            frame(number(offset))?,
            frame(number(offset.saturating_add(len)))?,
        );
        let end = last.offset.saturating_add(last.stored.into());
        image.container.source().will_need(
            content.offset.saturating_add(first.offset),
            end.saturating_sub(first.offset),
        );
        Ok(())
    }

    /// The content of a regular file that is not empty.
    pub(super) fn content(&self, inode: &Inode) -> Result<Content> {
        let content = self
            .section
            .content(inode.data)
            .map_err(|e| self.image_error(e))?;
        if content.size != inode.size {
            let reason = "the length of an inode differs from its content's";
            return Err(self.image_error(bfc::Error::Section {
                offset: inode.data,
                reason,
            }));
        }
        Ok(content)
    }

    /// Decodes the frames that a read touches.
    fn read_frames(
        &self,
        decoder: &Decoder<'_>,
        content: &Content,
        path: &[u8],
        offset: u64,
        len: usize,
        out: &mut Vec<u8>,
    ) -> bfc::Result<u64> {
        let log2 = self.section.header().frame_log2;
        let (first, last) = (offset >> log2, (offset + len as u64 - 1) >> log2);
        #[allow(clippy::cast_possible_truncation)] // a content has at most 2^32 frames
        let numbers = first as u32..=last as u32;
        let frames = numbers
            .map(|number| self.section.frame(content, number))
            .collect::<bfc::Result<Vec<_>>>()?;
        let start = out.len();
        #[allow(clippy::cast_possible_truncation)]
        // the length asked for and two frames of at most 16 MiB
        let more = (content.size.min((last + 1) << log2) - (first << log2)) as usize;
        out.reserve_exact(more);
        out.resize(start + more, 0);
        #[allow(clippy::cast_possible_truncation)]
        decoder.frames(
            content,
            &frames,
            first as u32,
            path,
            1 << log2,
            &mut out[start..],
        )?;
        Ok(first << log2)
    }

    /// Decodes the whole content of a file into `sink`, in bounded memory, without the cache. The
    /// output may be used only if this succeeds.
    pub fn copy(&self, ino: u32, sink: &mut dyn std::io::Write) -> Result<()> {
        let inode = self.inode(ino)?;
        if inode.mode & S_IFMT != S_IFREG {
            return Err(kind_error(ino, "not a regular file", Errno::INVAL));
        }
        if inode.size == 0 {
            return Ok(());
        }
        let content = self.content(&inode)?;
        if content.frames == 0 && content.size > SMALL {
            let Some(image) = self.images.get(usize::from(content.source)) else {
                return Err(Error::NotFound);
            };
            let failed = |source| Error::Image {
                image: image.path.clone(),
                source,
            };
            let decoder = image.decoder(self.check_hash);
            let path = self.section.content_path(&content).map_err(failed)?;
            let content = decoder.resolve(&content).map_err(failed)?;
            return match decoder.stream(&content, &path, sink) {
                Err(bfc::Error::Write { source, .. }) => Err(Error::Output(source)),
                streamed => streamed.map_err(failed),
            };
        }
        let step = 1 << 20;
        let mut buf = Vec::with_capacity(step);
        let mut offset = 0;
        while offset < inode.size {
            buf.clear();
            self.read(ino, offset, step, &mut buf)?;
            sink.write_all(&buf).map_err(Error::Output)?;
            offset += buf.len() as u64;
        }
        Ok(())
    }
}

/// Reads stored content of one piece in place.
fn read_stored(
    decoder: &Decoder<'_>,
    content: &Content,
    offset: u64,
    len: usize,
    out: &mut Vec<u8>,
) -> bfc::Result<u64> {
    if content.stored != content.size {
        return Err(bfc::Error::Content {
            offset: content.offset,
            reason: "it is not compressed, but its stored length differs from its length",
        });
    }
    let start = out.len();
    out.resize(start + len, 0);
    bfc::source::read_exact_at(decoder.source, &mut out[start..], content.offset + offset)?;
    Ok(offset)
}
