//! The source of an image's bytes: a small trait, which a file, a byte slice or later a remote
//! store can implement.

use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::error::Error;

/// Random access to the bytes of an image, from several threads at once.
pub trait ReadAt: Send + Sync {
    /// Reads at most `buf.len()` bytes at `offset`, as pread(2) does; 0 is the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Says that a range will be read soon. Nothing happens where that is of no use.
    fn will_need(&self, _offset: u64, _len: u64) {}

    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether there are no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

impl ReadAt for std::fs::File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buf, offset)
    }

    fn will_need(&self, offset: u64, len: u64) {
        // A hint: a file system that does not know it loses nothing.
        let _ = rustix::fs::fadvise(
            self,
            offset,
            std::num::NonZeroU64::new(len),
            rustix::fs::Advice::WillNeed,
        );
    }

    fn len(&self) -> io::Result<u64> {
        // The metadata of a block device do not contain its length, and a confined process may not
        // read them. Moving the file offset is harmless: all reads give their own offsets.
        (&*self).seek(SeekFrom::End(0))
    }
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(Vec::len(self));
        let n = buf.len().min(Vec::len(self) - start);
        buf[..n].copy_from_slice(&self[start..start + n]);
        Ok(n)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(Vec::len(self) as u64)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for Arc<T> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_at(buf, offset)
    }

    fn will_need(&self, offset: u64, len: u64) {
        (**self).will_need(offset, len);
    }

    fn len(&self) -> io::Result<u64> {
        (**self).len()
    }
}

/// Fills `buf` from `offset`.
///
/// # Errors
/// [`Error::Read`] when the source fails or ends early.
pub fn read_exact_at(source: &dyn ReadAt, buf: &mut [u8], offset: u64) -> Result<(), Error> {
    let len = buf.len();
    let mut done = 0;
    while done < len {
        let result = match source.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                done += n;
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(e) => Err(e),
        };
        result.map_err(|source| Error::Read {
            offset,
            len: len as u64,
            source,
        })?;
    }
    Ok(())
}

/// The `len` bytes at `offset`. Memory follows the bytes that turn out to be there; how many may be
/// is the caller's to bound.
///
/// # Errors
/// As [`read_exact_at`].
pub(crate) fn read_vec_at(source: &dyn ReadAt, offset: u64, len: u64) -> Result<Vec<u8>, Error> {
    /// How much is read at once.
    const STEP: u64 = 1 << 20;
    let mut out = Vec::new();
    let mut done = 0;
    while done < len {
        let step = STEP.min(len - done);
        let start = out.len();
        #[allow(clippy::cast_possible_truncation)] // at most a step
        out.resize(start + step as usize, 0);
        read_exact_at(source, &mut out[start..], offset.saturating_add(done))?;
        done += step;
    }
    Ok(out)
}

/// A range of a source as a [`io::Read`], for streaming decoders.
pub struct RangeReader<'a> {
    source: &'a dyn ReadAt,
    offset: u64,
    left: u64,
}

impl std::fmt::Debug for RangeReader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RangeReader")
            .field("offset", &self.offset)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl<'a> RangeReader<'a> {
    /// The `len` bytes at `offset`.
    pub fn new(source: &'a dyn ReadAt, offset: u64, len: u64) -> Self {
        Self {
            source,
            offset,
            left: len,
        }
    }
}

impl io::Read for RangeReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        if want == 0 {
            return Ok(0);
        }
        let n = self.source.read_at(&mut buf[..want], self.offset)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}
