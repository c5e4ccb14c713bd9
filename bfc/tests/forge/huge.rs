//! An image in a source that claims to be longer than any disk.

use std::io;

use bfc::source::ReadAt;

use super::mend;

/// How long the hole is, bytes: what trusts a length or an offset takes more memory than there is.
const HOLE: u64 = 1 << 40;

/// An image whose section, index and footer are behind a hole of a tebibyte, so that what precedes
/// them may claim to be as long.
pub struct Huge {
    bytes: Vec<u8>,
    /// Where the hole is.
    hole: u64,
}

impl Huge {
    /// The image with a hole before its section, or before its index if it has no section.
    /// Bytes without an index stay together.
    pub fn new(mut bytes: Vec<u8>) -> Self {
        let hole = mend::move_back(&mut bytes, HOLE).unwrap_or(bytes.len()) as u64;
        let len = bytes.len() as u64 + HOLE;
        mend::commit(&mut bytes, len);
        Self { bytes, hole }
    }
}

impl ReadAt for Huge {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let end = self.hole + HOLE;
        if offset >= end {
            return self.bytes.read_at(buf, offset - HOLE);
        }
        let limit = if offset < self.hole { self.hole } else { end };
        let len = usize::try_from(limit - offset)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        if offset < self.hole {
            return self.bytes.read_at(&mut buf[..len], offset);
        }
        buf[..len].fill(0);
        Ok(len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64 + HOLE)
    }
}
