//! A blob: a tar, plain or compressed, in a file or in a part of one.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};

use super::packed::Packed;
use super::{SourceImage, SourceLayer, TarSource, stdin};
use crate::build::digest::Digest;
use crate::build::error::{Error, Mismatch, Result};
use crate::error::Io;
use crate::layer::read::fill;

/// How much is read, decompressed and handed on at a time, bytes.
const PIECE: usize = 1 << 18;

/// A part of a file.
#[derive(Debug, Clone)]
pub(super) struct FilePart {
    /// The file.
    pub file: Arc<File>,
    /// Its path, for messages.
    pub path: PathBuf,
    /// Where the part begins.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
}

impl FilePart {
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

    /// How it is compressed.
    pub(super) fn packed(&self) -> Result<Packed> {
        let magic = self.magic::<{ Packed::MAGIC }>()?;
        Packed::of(&self.path.display().to_string(), &magic)
    }

    /// Reads it from its beginning.
    pub(super) fn reader(&self) -> FilePartReader {
        FilePartReader {
            range: self.clone(),
            at: 0,
        }
    }
}

/// Reads a [`FilePart`].
pub(super) struct FilePartReader {
    range: FilePart,
    at: u64,
}

impl Read for FilePartReader {
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
    pub range: FilePart,
    /// The digest that its bytes must have.
    pub digest: Option<Digest>,
}

impl Blob {
    /// The layer that it is.
    pub(super) fn layer(self, created_by: Vec<u8>, diff_id: Option<Digest>) -> Result<SourceLayer> {
        let (name, size) = (self.name.clone(), self.range.len);
        let compressed = self.range.packed()? != Packed::No;
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
    let mut magic = [0; Packed::MAGIC];
    let len = fill(&mut checked, &mut magic).map_err(reading())?;
    let found = if decompress {
        Packed::of(name, &magic[..len])
    } else {
        Ok(Packed::No)
    };
    let unpacked = found.map(|found| {
        let input = magic[..len].chain(&mut checked);
        let mut tar = found
            .reader(BufReader::with_capacity(PIECE, input))
            .map_err(Failed::Read)?;
        copy(&mut *tar, out)
    });
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
    match unpacked? {
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

/// A tar in standard input, whose length is not known.
struct Input<R> {
    name: String,
    input: R,
}

impl<R: Read + Send> TarSource for Input<R> {
    fn write_to(
        self: Box<Self>,
        out: &mut dyn Write,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let Self { name, mut input } = *self;
        let mut first = [0; 1];
        let len = fill(&mut input, &mut first).map_err(Io::at("reading", name.as_ref()))?;
        if len == 0 {
            // A program that failed before the pipe is no empty layer.
            return Err(Error::Source {
                name,
                reason: "it is empty".to_owned(),
                hint: None,
            });
        }
        let input = first.chain(input);
        unpack(&name, name.as_ref(), input, None, true, out, progress)
    }
}

/// Opens a tar of a root file system, or of a layer; `-` is standard input.
pub(super) fn open_tar(path: &Path) -> Result<SourceImage> {
    let created_by = super::created_by("tar", path);
    let layer = if stdin::is_named(path) {
        let name = "standard input".to_owned();
        SourceLayer {
            name: name.clone(),
            created_by,
            diff_id: None,
            size: 0,
            compressed: true,
            tar: Box::new(Input {
                name,
                input: stdin::open()?,
            }),
        }
    } else {
        let blob = Blob {
            name: path.display().to_string(),
            range: FilePart::whole(path)?,
            digest: None,
        };
        blob.layer(created_by, None)?
    };
    Ok(SourceImage {
        layers: vec![layer],
        ..SourceImage::default()
    })
}
