//! The parser: a state machine over the blocks of a tar, file contents left out.

use bfc::format::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, S_IFSOCK};
use bfc::rootfs::Attr;

use super::error::{Error, Reason};
use super::header::{Header, until_nul};
use super::pax::Pax;
use super::sparse::{MAX_MAP, MapReader, SparseMap};
use super::{BLOCK, Block, xattrs};

/// Longest PAX header and GNU long name that is taken, bytes.
const MAX_EXTENSION: usize = 1 << 20;
/// Longest path, bytes.
const MAX_PATH: usize = 1 << 16;

/// The result of a block.
#[derive(Debug)]
pub enum Step {
    /// Nothing yet: the next block is the parser's.
    More,
    /// An entry is complete. [`TarEntry::stored`] bytes of content and their padding follow, which
    /// are not the parser's.
    Entry(Box<TarEntry>),
    /// The end of the archive; whatever follows has no meaning.
    End,
}

/// An entry of a tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarEntry {
    /// The path as in the tar.
    pub path: Vec<u8>,
    /// Attributes, type bits included; of no meaning for a hard link.
    pub attr: Attr,
    /// What it is.
    pub kind: EntryKind,
    /// How many bytes of content follow; not the file's length when it is sparse.
    pub stored: u64,
}

/// The kind of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File {
        /// Its length, holes included.
        size: u64,
        /// The places of the stored bytes, if the entry is sparse.
        sparse: Option<SparseMap>,
    },
    /// Another name of the file at this path.
    HardLink(Vec<u8>),
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A directory.
    Dir,
    /// A character or block device, as the mode says: major and minor number.
    Device(u32, u32),
    /// A fifo or a socket, as the mode says.
    Other,
}

enum Extension {
    Pax,
    GlobalPax,
    LongName,
    LongLink,
}

enum State {
    Header,
    /// The data of an extension header.
    Extension {
        what: Extension,
        size: usize,
        data: Vec<u8>,
    },
    /// Extension blocks of an old GNU sparse header.
    OldSparse {
        entry: Box<TarEntry>,
        size: u64,
        regions: Vec<(u64, u64)>,
        blocks: usize,
    },
    /// The map in front of the data of a PAX sparse file, form 1.0.
    MapInData {
        entry: Box<TarEntry>,
        size: u64,
        reader: MapReader,
    },
    /// One block of zeros was seen.
    Zero,
}

/// Makes entries of the blocks of a tar.
pub struct Parser {
    state: State,
    /// From global PAX headers: for all entries that follow.
    global: Pax,
    /// From PAX headers in front of the next entry.
    local: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    /// Bytes seen, contents included.
    offset: u64,
    /// How many entries there were.
    entries: u64,
    /// How many attributes they have that were left out.
    left_out: u32,
}

impl std::fmt::Debug for Parser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parser")
            .field("offset", &self.offset)
            .field("entries", &self.entries)
            .finish_non_exhaustive()
    }
}

impl Default for Parser {
    fn default() -> Self {
        Self {
            state: State::Header,
            global: Pax::default(),
            local: None,
            long_name: None,
            long_link: None,
            offset: 0,
            entries: 0,
            left_out: 0,
        }
    }
}

impl Parser {
    /// How many entries there were.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Takes the next block.
    ///
    /// # Errors
    /// [`Error`]; the parser is of no use afterwards.
    pub fn block(&mut self, block: &Block) -> Result<Step, Error> {
        let step = self.step(block).map_err(|reason| self.error(reason))?;
        self.offset += BLOCK as u64;
        if let Step::Entry(entry) = &step {
            self.offset = self
                .offset
                .saturating_add(entry.stored)
                .saturating_add(super::padding(entry.stored) as u64);
            self.entries += 1;
        }
        Ok(step)
    }

    /// Told that no block follows. Many tars lack the blocks that mark the end.
    ///
    /// # Errors
    /// [`Reason::CutOff`] when an entry has begun.
    pub fn end_of_input(&self) -> Result<(), Error> {
        match self.state {
            State::Header | State::Zero => {
                self.check_dangling().map_err(|reason| self.error(reason))
            }
            _ => Err(self.error(Reason::CutOff)),
        }
    }

    /// An error at the current place.
    pub fn error(&self, reason: Reason) -> Error {
        let pax_path = self.local.as_ref().and_then(|pax| pax.path.clone());
        let path = match &self.state {
            State::OldSparse { entry, .. } | State::MapInData { entry, .. } => entry.path.clone(),
            _ => pax_path
                .or_else(|| self.long_name.clone())
                .unwrap_or_default(),
        };
        Error {
            offset: self.offset,
            path,
            reason,
        }
    }

    fn check_dangling(&self) -> Result<(), Reason> {
        if self.local.is_some() || self.long_name.is_some() || self.long_link.is_some() {
            Err(Reason::Dangling)
        } else {
            Ok(())
        }
    }

    fn step(&mut self, block: &Block) -> Result<Step, Reason> {
        match std::mem::replace(&mut self.state, State::Header) {
            State::Header => self.header(block),
            State::Extension {
                what,
                size,
                mut data,
            } => {
                data.extend_from_slice(&block[..BLOCK.min(size - data.len())]);
                self.extension(what, size, data)
            }
            State::OldSparse {
                entry,
                size,
                mut regions,
                blocks,
            } => {
                if blocks * BLOCK > MAX_MAP {
                    return Err(Reason::TooLong("a sparse map", MAX_MAP));
                }
                let (more, extended) = Header(block).sparse_pairs(true)?;
                regions.extend(more);
                if extended {
                    self.state = State::OldSparse {
                        entry,
                        size,
                        regions,
                        blocks: blocks + 1,
                    };
                    return Ok(Step::More);
                }
                sparse_entry(entry, size, regions)
            }
            State::MapInData {
                mut entry,
                size,
                mut reader,
            } => {
                entry.stored = entry
                    .stored
                    .checked_sub(BLOCK as u64)
                    .ok_or(Reason::Sparse("it is longer than the data"))?;
                match reader.block(block)? {
                    Some(regions) => sparse_entry(entry, size, regions),
                    None => {
                        self.state = State::MapInData {
                            entry,
                            size,
                            reader,
                        };
                        Ok(Step::More)
                    }
                }
            }
            State::Zero if Header(block).is_zero() => Ok(Step::End),
            State::Zero => Err(Reason::LoneZeroBlock),
        }
    }

    fn header(&mut self, block: &Block) -> Result<Step, Reason> {
        let header = Header(block);
        if header.is_zero() {
            self.check_dangling()?;
            self.state = State::Zero;
            return Ok(Step::More);
        }
        header.check()?;
        let what = match header.kind() {
            b'x' | b'X' => Extension::Pax,
            b'g' => Extension::GlobalPax,
            b'L' => Extension::LongName,
            b'K' => Extension::LongLink,
            _ => return self.entry(&header),
        };
        let size = usize::try_from(header.size()?).unwrap_or(usize::MAX);
        if size > MAX_EXTENSION {
            return Err(Reason::TooLong("an extension header", MAX_EXTENSION));
        }
        self.extension(what, size, Vec::with_capacity(size.min(1 << 12)))
    }

    /// Takes in an extension header whose data may be complete.
    fn extension(&mut self, what: Extension, size: usize, data: Vec<u8>) -> Result<Step, Reason> {
        if data.len() < size {
            self.state = State::Extension { what, size, data };
            return Ok(Step::More);
        }
        match what {
            Extension::Pax => self
                .local
                .get_or_insert_with(|| self.global.clone())
                .read(&data)?,
            Extension::GlobalPax => self.global.read(&data)?,
            Extension::LongName => self.long_name = Some(until_nul(&data).to_vec()),
            Extension::LongLink => self.long_link = Some(until_nul(&data).to_vec()),
        }
        Ok(Step::More)
    }

    fn entry(&mut self, header: &Header<'_>) -> Result<Step, Reason> {
        let pax = self.local.take().unwrap_or_else(|| self.global.clone());
        let sparse = &pax.sparse;
        let path = sparse.name.clone().or(pax.path).or(self.long_name.take());
        let path = path.unwrap_or_else(|| header.name());
        let target = pax
            .linkpath
            .or(self.long_link.take())
            .unwrap_or_else(|| header.linkname().to_vec());
        (self.long_name, self.long_link) = (None, None);
        // From here on an error can name the entry.
        self.long_name = Some(path.clone());
        if path.len() > MAX_PATH {
            return Err(Reason::TooLong("a path", MAX_PATH));
        }
        let kind = match header.kind() {
            // Before POSIX, a directory was a file whose name ends in a slash.
            b'\0' | b'0' if path.ends_with(b"/") => b'5',
            b'\0' | b'7' => b'0',
            kind => kind,
        };
        let link = || {
            if target.is_empty() {
                Err(Reason::NoTarget)
            } else {
                Ok(target)
            }
        };
        let (type_bits, kind) = match kind {
            b'0' | b'S' => (
                S_IFREG,
                EntryKind::File {
                    size: 0,
                    sparse: None,
                },
            ),
            b'1' => (S_IFREG, EntryKind::HardLink(link()?)),
            b'2' => (S_IFLNK, EntryKind::Symlink(link()?)),
            b'3' | b'4' => {
                let (major, minor) = header.device()?;
                (
                    if kind == b'3' { S_IFCHR } else { S_IFBLK },
                    EntryKind::Device(major, minor),
                )
            }
            b'5' => (S_IFDIR, EntryKind::Dir),
            b'6' => (
                if pax.socket { S_IFSOCK } else { S_IFIFO },
                EntryKind::Other,
            ),
            other => return Err(Reason::EntryType(char::from(other))),
        };
        let owner = |pax: Option<u64>, plain: Result<u64, Reason>, what| {
            // The highest number means "no change" to chown, and no file can have it.
            let id = pax.map_or(plain, Ok)?;
            u32::try_from(id)
                .ok()
                .filter(|&id| id != u32::MAX)
                .ok_or(Reason::Number(what))
        };
        let (mtime_s, mtime_ns) = pax
            .mtime
            .map_or_else(|| header.mtime().map(|s| (s, 0)), Ok)?;
        let mut attr = Attr {
            // Without its list, the mode must not give the group what the mask gave others.
            mode: type_bits | header.mode()? & !(!pax.group.unwrap_or(7) << 3 & 0o070),
            uid: owner(pax.uid, header.uid(), "uid")?,
            gid: owner(pax.gid, header.gid(), "gid")?,
            mtime_s,
            mtime_ns,
            xattrs: pax.xattrs,
        };
        xattrs::fit(&path, &mut attr, &mut self.left_out);
        let is_file = matches!(kind, EntryKind::File { .. });
        // Only files have data, whatever the size field says of others: Go's reader and GNU tar (of
        // links) take it so.
        let stored = if is_file {
            pax.size.map_or_else(|| header.size(), Ok)?
        } else {
            0
        };
        let mut entry = Box::new(TarEntry {
            path,
            attr,
            kind,
            stored,
        });
        self.long_name = None;
        if header.kind() == b'S' {
            let size = header.real_size()?;
            let (regions, extended) = header.sparse_pairs(false)?;
            if extended {
                self.state = State::OldSparse {
                    entry,
                    size,
                    regions,
                    blocks: 1,
                };
                return Ok(Step::More);
            }
            return sparse_entry(entry, size, regions);
        }
        if is_file && pax.sparse.map_in_data() {
            let size = pax
                .sparse
                .size
                .ok_or(Reason::Sparse("the length of the expanded file is missing"))?;
            self.state = State::MapInData {
                entry,
                size,
                reader: MapReader::default(),
            };
            return Ok(Step::More);
        }
        if let (true, Some(regions)) = (is_file, pax.sparse.map) {
            let size = pax
                .sparse
                .size
                .ok_or(Reason::Sparse("the length of the expanded file is missing"))?;
            return sparse_entry(entry, size, regions);
        }
        if let EntryKind::File { size, .. } = &mut entry.kind {
            *size = stored;
        }
        Ok(Step::Entry(entry))
    }
}

fn sparse_entry(
    mut entry: Box<TarEntry>,
    size: u64,
    regions: Vec<(u64, u64)>,
) -> Result<Step, Reason> {
    let sparse = Some(SparseMap::new(regions, size, entry.stored)?);
    entry.kind = EntryKind::File { size, sparse };
    Ok(Step::Entry(entry))
}
