//! A blob: a tar, plain or compressed with gzip or zstd, in a file or in a part of one.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::bufread::GzDecoder;
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};

use super::{SourceImage, SourceLayer, TarSource};
use crate::build::digest::Digest;
use crate::build::error::{Error, Mismatch, Result};
use crate::error::Io;

/// How much is read, decompressed and handed on at a time, bytes.
const PIECE: usize = 1 << 18;

/// First bytes of a member of gzip's.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// How a blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not.
    None,
    /// gzip, any number of members.
    Gzip,
    /// zstd, any number of frames.
    Zstd,
}

impl Compression {
    /// Determined by the first bytes, because media types are often wrong.
    pub fn of(magic: &[u8]) -> Self {
        match magic {
            [first, second, ..] if [*first, *second] == GZIP => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    /// A reader of the decompressed bytes.
    pub fn reader<'a>(
        self,
        input: impl BufRead + Send + 'a,
    ) -> io::Result<Box<dyn Read + Send + 'a>> {
        Ok(match self {
            Self::None => Box::new(input),
            Self::Gzip => Box::new(Gzip(Some(GzDecoder::new(input)))),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
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
                let bytes = input.fill_buf()?;
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

/// A part of a file.
#[derive(Debug, Clone)]
pub(super) struct Range {
    /// The file.
    pub file: Arc<File>,
    /// Its path, for messages.
    pub path: PathBuf,
    /// Where the part begins.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
}

impl Range {
    /// All of a file.
    pub(super) fn whole(path: &Path) -> Result<Self> {
        // A fifo would wait for a writer.
        let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
        let file = File::options().read(true).custom_flags(flags).open(path);
        let file = file.map_err(Io::at("opening", path))?;
        let metadata = file.metadata().map_err(Io::at("opening", path))?;
        if !metadata.is_file() {
            let what = io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
            return Err(Io::at("opening", path)(what).into());
        }
        let len = metadata.len();
        Ok(Self {
            file: Arc::new(file),
            path: path.to_owned(),
            offset: 0,
            len,
        })
    }

    /// The first bytes, at most `N`.
    pub(super) fn magic<const N: usize>(&self) -> Result<Vec<u8>> {
        let mut magic = Vec::with_capacity(N);
        self.reader()
            .take(N as u64)
            .read_to_end(&mut magic)
            .map_err(Io::at("reading", &self.path))?;
        Ok(magic)
    }

    /// Reads it from its beginning.
    pub(super) fn reader(&self) -> RangeReader {
        RangeReader {
            range: self.clone(),
            at: 0,
        }
    }
}

/// Reads a [`Range`].
pub(super) struct RangeReader {
    range: Range,
    at: u64,
}

impl Read for RangeReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.range.len - self.at).unwrap_or(usize::MAX);
        let want = left.min(buf.len());
        let n = self
            .range
            .file
            .read_at(&mut buf[..want], self.range.offset + self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// A blob that holds a tar.
pub(super) struct Blob {
    /// Its name in messages.
    pub name: String,
    /// Its bytes.
    pub range: Range,
    /// The digest that its bytes must have.
    pub digest: Option<Digest>,
}

impl Blob {
    /// The layer that it is.
    pub(super) fn layer(self, created_by: Vec<u8>, diff_id: Option<Digest>) -> Result<SourceLayer> {
        let (name, size) = (self.name.clone(), self.range.len);
        let compressed = Compression::of(&self.range.magic::<4>()?) != Compression::None;
        Ok(SourceLayer {
            name,
            created_by,
            diff_id,
            size,
            compressed,
            tar: Box::new(self),
        })
    }
}

impl TarSource for Blob {
    fn write_to(
        self: Box<Self>,
        out: &mut dyn Write,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        unpack(
            &self.name,
            &self.range.path,
            self.range.reader(),
            self.digest,
            true,
            out,
            progress,
        )
    }
}

/// Writes `input`, decompressed if it is compressed, and checks its digest. Messages name it
/// `path`.
///
/// # Errors
/// [`Error::Mismatch`] if it has another digest, even if something else is wrong too;
/// [`Error::Decompress`], [`Error::Io`].
pub fn unpack(
    name: &str,
    path: &Path,
    input: impl Read + Send,
    digest: Option<Digest>,
    decompress: bool,
    out: &mut dyn Write,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<()> {
    let reading = || Io::at("reading", path);
    let mut checked = Checked {
        inner: input,
        hash: digest.map(|_| Sha256::new()),
        progress,
    };
    let unpacked = {
        let mut input = BufReader::with_capacity(PIECE, &mut checked);
        let found = Compression::of(input.fill_buf().map_err(reading())?);
        let mut tar = if decompress { found } else { Compression::None }
            .reader(&mut input)
            .map_err(reading())?;
        copy(&mut *tar, out)
    };
    // Decompressor and parser stop at the first error, but the digest covers all bytes and gives
    // the better message.
    io::copy(&mut checked, &mut io::sink()).map_err(reading())?;
    if let (Some(hash), Some(wanted)) = (checked.hash, digest) {
        let found = Digest(hash.finalize().into());
        if found != wanted {
            let reason = Mismatch::Digest {
                found: found.to_string(),
                wanted: wanted.to_string(),
            };
            return Err(Error::Mismatch {
                name: name.to_owned(),
                reason,
            });
        }
    }
    match unpacked {
        Err(Failed::Read(source)) => Err(Error::Decompress {
            name: name.to_owned(),
            source,
        }),
        Err(Failed::Write(source)) => Err(Io::at("unpacking", path)(source).into()),
        Ok(()) => Ok(()),
    }
}

enum Failed {
    Read(io::Error),
    Write(io::Error),
}

fn copy(input: &mut dyn Read, out: &mut dyn Write) -> Result<(), Failed> {
    let mut buf = vec![0; PIECE];
    loop {
        let n = match input.read(&mut buf) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Failed::Read(e)),
        };
        out.write_all(&buf[..n]).map_err(Failed::Write)?;
    }
}

/// Hashes and counts what is read.
struct Checked<'a, R> {
    inner: R,
    hash: Option<Sha256>,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl<R: Read> Read for Checked<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if let Some(hash) = &mut self.hash {
            hash.update(&buf[..n]);
        }
        (self.progress)(n as u64);
        Ok(n)
    }
}

/// Opens a tar of a root file system, or of a layer.
pub(super) fn open_tar(path: &Path) -> Result<SourceImage> {
    let range = Range::whole(path)?;
    let name = path.display().to_string();
    let created_by = super::created_by("tar", path);
    let layer = Blob {
        name,
        range,
        digest: None,
    }
    .layer(created_by, None)?;
    Ok(SourceImage {
        layers: vec![layer],
        ..SourceImage::default()
    })
}
