//! Reads one layer tar: passes contents to a sink and the rest to a skeleton, and returns the
//! changes of the layer.

use std::io::{self, Read};

use bfc::rootfs::Kind;
use bfc::rootfs::skeleton::{Skeleton, SkeletonWriter};
use bfc::writer::ContentSink;

use super::change::{self, change, clean_path};
use super::merge::{Change, What};
use super::tar::{self, BLOCK, Block, EntryKind, Expand, Parser, Reason, Step, TarEntry, padding};

/// How much may follow the end of the archive, when it is not zeros.
const MAX_TRAILER: u64 = 1 << 20;
/// Most memory for the entries of one image's layers: their paths, targets, attributes and
/// skeletons. Enough for some two million entries.
const MAX_METADATA: u64 = 1 << 30;
/// Most memory of an entry besides those, bytes: its change and its node, each in an array that may
/// have grown to twice what it needs, its name in its directory, and then its records in the
/// section and in the v1 index (tests/images/hostile.rs measures it).
const ENTRY: usize = 512;

/// An error in a layer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tar does not parse.
    #[error(transparent)]
    Tar(#[from] tar::Error),
    /// An entry cannot be part of a layer.
    #[error(transparent)]
    Entry(#[from] change::Error),
    /// Reading the tar failed.
    #[error("reading the layer")]
    Read(#[source] io::Error),
    /// The image could not be written, or a skeleton not be read.
    #[error(transparent)]
    Image(#[from] bfc::Error),
    /// More than the caller allows.
    #[error("the layers are larger than {0} bytes when unpacked (--max-size allows more)")]
    MaxSize(u64),
    /// More names and attributes than memory should hold.
    #[error(
        "the entries of the layers, paths and attributes included, take more than {0} bytes of \
         memory"
    )]
    Metadata(u64),
    /// Something other than zeros behind the archive's end.
    #[error("more than {MAX_TRAILER} bytes follow the end of the archive")]
    Trailer,
    /// A skeleton and its tar headers contradict each other.
    #[error("the layer's skeleton is damaged: {0}")]
    Skeleton(&'static str),
}

/// Limits for all layers of an image together.
#[derive(Debug, Clone)]
pub struct Budget {
    max_size: u64,
    size: u64,
    max_metadata: u64,
    metadata: u64,
}

impl Budget {
    /// At most `max_size` bytes of tar, sparse files counted at their full length.
    pub fn new(max_size: u64) -> Self {
        Self {
            max_size,
            size: max_size,
            max_metadata: MAX_METADATA,
            metadata: MAX_METADATA,
        }
    }

    /// Sets another limit for the memory of entries.
    pub fn with_memory(self, max_metadata: u64) -> Self {
        Self {
            max_metadata,
            metadata: max_metadata,
            ..self
        }
    }

    fn take(&mut self, n: u64) -> Result<(), Error> {
        self.size = self
            .size
            .checked_sub(n)
            .ok_or(Error::MaxSize(self.max_size))?;
        Ok(())
    }

    /// Counts the memory for a change.
    ///
    /// # Errors
    /// [`Error::Metadata`] if the limit is exceeded.
    pub fn take_metadata(&mut self, change: &Change) -> Result<(), Error> {
        let attr_len = |node: &bfc::rootfs::Node| {
            let xattrs = node
                .attr
                .xattrs
                .iter()
                .map(|x| x.name.len() + x.value.len() + 48)
                .sum::<usize>();
            xattrs
                + if let Kind::Symlink(target) = &node.kind {
                    target.len()
                } else {
                    0
                }
        };
        // A path is in the change, and then in the v1 index.
        let len = ENTRY
            + 2 * change.path.len()
            + match &change.what {
                What::HardLink(target) => target.len(),
                What::Node(node) => attr_len(node),
                What::Whiteout | What::Opaque => 0,
            };
        self.take_memory(len as u64)
    }

    fn take_memory(&mut self, len: u64) -> Result<(), Error> {
        self.metadata = self
            .metadata
            .checked_sub(len)
            .ok_or(Error::Metadata(self.max_metadata))?;
        Ok(())
    }
}

/// A layer that was read.
#[derive(Debug)]
pub struct ReadLayer {
    /// The changes it makes, in its order.
    pub changes: Vec<Change>,
    /// Its skeleton.
    pub skeleton: Skeleton,
    /// How many entries its tar has.
    pub entries: u64,
}

/// Reads a layer tar to its last byte.
///
/// # Errors
/// [`Error`].
pub fn read(
    input: &mut dyn Read,
    sink: &mut dyn ContentSink,
    budget: &mut Budget,
) -> Result<ReadLayer, Error> {
    let mut parser = Parser::default();
    let mut skeleton = SkeletonWriter::new()?;
    let mut changes = Vec::new();
    let mut block: Block = [0; BLOCK];
    loop {
        match fill(input, &mut block).map_err(Error::Read)? {
            0 => {
                parser.end_of_input()?;
                break;
            }
            BLOCK => {}
            _ => return Err(parser.error(Reason::CutOff).into()),
        }
        budget.take(BLOCK as u64)?;
        skeleton.raw(&block)?;
        match parser.block(&block)? {
            Step::More => {}
            Step::Entry(entry) => {
                let content = store(&entry, input, sink, &mut skeleton, budget)?;
                let pad = padding(entry.stored);
                // Of the last entry, it may be missing, as the blocks of zeros behind it may.
                let pad = fill(input, &mut block[..pad]).map_err(Error::Read)?;
                skeleton.raw(&block[..pad])?;
                if let Some(change) = change(*entry, content)? {
                    budget.take_metadata(&change)?;
                    changes.push(change);
                }
            }
            Step::End => {
                trailer(input, &mut skeleton, budget)?;
                break;
            }
        }
    }
    let skeleton = skeleton.finish()?;
    budget.take_memory(skeleton.compressed.len() as u64)?;
    Ok(ReadLayer {
        changes,
        skeleton,
        entries: parser.entries(),
    })
}

/// Stores the content of a file; its number.
///
/// A sparse file is stored expanded, as a mount shows it. The skeleton then refers to the parts
/// that the tar contains.
fn store(
    entry: &TarEntry,
    input: &mut dyn Read,
    sink: &mut dyn ContentSink,
    skeleton: &mut SkeletonWriter,
    budget: &mut Budget,
) -> Result<Option<u32>, Error> {
    let EntryKind::File { size, sparse } = &entry.kind else {
        return Ok(None);
    };
    budget.take(*size)?;
    let path = clean_path(&entry.path, "its path").map_err(|reason| change::Error {
        path: entry.path.clone(),
        reason,
    })?;
    let mut stored = Stored {
        input,
        left: entry.stored,
        error: None,
    };
    let added = match sparse {
        None => sink.add(&path, *size, &mut stored),
        Some(map) => sink.add(&path, *size, &mut Expand::new(&mut stored, map, *size)),
    };
    let (left, error) = (stored.left, stored.error);
    // The sink sees an error in the tar as a read error; the cause is kept here.
    match (added, error) {
        (_, Some(None)) => Err(cut_off(entry).into()),
        (_, Some(Some(source))) => Err(Error::Read(source)),
        (Err(e), None) => Err(e.into()),
        (Ok(_), None) if left > 0 => Err(Error::Skeleton("a content was not read to its end")),
        (Ok(None), None) => Ok(None),
        (Ok(Some(id)), None) => {
            match sparse.as_ref().map(|map| map.regions()) {
                None => skeleton.content(id, 0, *size)?,
                // So that replay finds the content's number.
                Some([]) => skeleton.content(id, 0, 0)?,
                Some(regions) => {
                    for &(offset, len) in regions {
                        skeleton.content(id, offset, len)?;
                    }
                }
            }
            Ok(Some(id))
        }
    }
}

fn cut_off(entry: &TarEntry) -> tar::Error {
    tar::Error {
        offset: 0,
        path: entry.path.clone(),
        reason: Reason::CutOff,
    }
}

/// The stored bytes of an entry. Remembers the error: `Some(None)` means the end of the input.
struct Stored<'a> {
    input: &'a mut dyn Read,
    left: u64,
    error: Option<Option<io::Error>>,
}

impl Read for Stored<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        if want == 0 {
            return Ok(0);
        }
        match self.input.read(&mut buf[..want]) {
            Ok(0) => {
                self.error = Some(None);
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Ok(n) => {
                self.left -= n as u64;
                Ok(n)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(e),
            Err(e) => {
                let copy = io::Error::from(e.kind());
                self.error = Some(Some(e));
                Err(copy)
            }
        }
    }
}

/// Fills `buf` as far as the input goes, and returns how far that is.
///
/// # Errors
/// What `input` fails with.
pub fn fill(input: &mut dyn Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match input.read(&mut buf[done..]) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Reads what follows the end of the archive, which belongs to the tar's digest: any number of
/// zeros, and little else.
fn trailer(
    input: &mut dyn Read,
    skeleton: &mut SkeletonWriter,
    budget: &mut Budget,
) -> Result<(), Error> {
    let mut buf = vec![0; 1 << 16];
    let mut other = 0;
    loop {
        let n = fill(input, &mut buf).map_err(Error::Read)?;
        if n == 0 {
            return Ok(());
        }
        budget.take(n as u64)?;
        if buf[..n].iter().any(|&b| b != 0) {
            other += n as u64;
            if other > MAX_TRAILER {
                return Err(Error::Trailer);
            }
        }
        skeleton.raw(&buf[..n])?;
    }
}
