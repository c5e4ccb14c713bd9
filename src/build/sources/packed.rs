//! How tars are compressed, and readers that decompress them.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;
use lzma_rust2::XzReader;

use crate::build::error::{Error, Result};

/// First bytes of a gzip member.
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// First bytes of an xz stream.
const XZ: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];
/// Compressed forms that are not read: their first bytes, their names, and what decompresses them.
const UNREAD: [(&[u8], &str, &str); 5] = [
    (b"BZh?1AY&SY", "bzip2", "bzip2 -d"),
    (b"BZh?\x17rE8P\x90", "bzip2", "bzip2 -d"),
    (b"\x04\x22\x4d\x18", "lz4", "lz4 -d"),
    (b"LZIP\x01", "lzip", "lzip -d"),
    (b"\x1f\x9d", "compress", "gzip -d"),
];
/// Most memory for decompressing xz, KiB: four times what `xz -9` needs.
const MAX_XZ_MEMORY: u32 = 256 << 10;

/// How a tar is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packed {
    /// Not.
    No,
    /// gzip, any number of members.
    Gzip,
    /// zstd, any number of frames; zstd:chunked is that, too.
    Zstd,
    /// xz, any number of streams.
    Xz,
}

impl Packed {
    /// How many bytes tell.
    pub(super) const MAGIC: usize = 10;

    /// Determined by the first bytes, because media types and names of files are often wrong.
    ///
    /// # Errors
    /// [`Error::Source`] when `name` is compressed in a way that is not read.
    pub(super) fn of(name: &str, magic: &[u8]) -> Result<Self> {
        let begins = |with: &[u8]| {
            magic.len() >= with.len()
                && with
                    .iter()
                    .zip(magic)
                    .all(|(want, is)| want == is || (*want == b'?' && is.is_ascii_digit()))
        };
        if let Some((_, form, command)) = UNREAD.iter().find(|(magic, ..)| begins(magic)) {
            return Err(Error::Source {
                name: name.to_owned(),
                reason: format!("it is compressed with {form}, which is not read here"),
                hint: Some(format!("`{command}` decompresses it")),
            });
        }
        Ok(match magic {
            _ if begins(&GZIP) => Self::Gzip,
            _ if begins(&XZ) => Self::Xz,
            // A zstd stream may begin with a skippable frame.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::No,
        })
    }

    /// A reader of the decompressed bytes.
    ///
    /// # Errors
    /// When the decompressor cannot be made.
    pub(super) fn reader<'a>(
        self,
        input: impl BufRead + Send + 'a,
    ) -> io::Result<Box<dyn Read + Send + 'a>> {
        Ok(match self {
            Self::No => Box::new(input),
            Self::Gzip => Box::new(Gzip(Some(GzDecoder::new(input)))),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
            Self::Xz => Box::new(Xz(XzReader::new_mem_limit(input, true, MAX_XZ_MEMORY))),
        })
    }
}

/// Reads the members of a gzip stream. Zeros may follow the last one, as tapes and some writers
/// leave them; gzip(1) ignores them too.
struct Gzip<R>(Option<GzDecoder<R>>);

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.0 {
            match member.read(buf)? {
                0 if !buf.is_empty() => {}
                n => return Ok(n),
            }
            let Some(mut input) = self.0.take().map(GzDecoder::into_inner) else {
                break;
            };
            let mut zeros = false;
            loop {
                let bytes = match input.fill_buf() {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    other => other?,
                };
                let count = bytes.iter().take_while(|b| **b == 0).count();
                match bytes.get(count) {
                    None if bytes.is_empty() => return Ok(0),
                    Some(byte) if zeros || count > 0 || *byte != GZIP[0] => {
                        let what = "something other than zeros follows the compressed data";
                        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                    }
                    Some(_) => break,
                    None => zeros = true,
                }
                input.consume(count);
            }
            self.0 = Some(GzDecoder::new(input));
        }
        Ok(0)
    }
}

/// Reads xz, and says in our words what it would need too much memory for.
struct Xz<R: Read>(XzReader<R>);

impl<R: Read> Read for Xz<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf).map_err(|e| match e.kind() {
            io::ErrorKind::OutOfMemory => io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "it was compressed with a larger dictionary than {} MiB",
                    MAX_XZ_MEMORY >> 10
                ),
            ),
            io::ErrorKind::UnexpectedEof => io::Error::new(e.kind(), "it ends too early"),
            _ => e,
        })
    }
}
