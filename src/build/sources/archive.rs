//! Archives of images: finds files in a tar by name, and reads them in place.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::SourceOptions;
use super::blob::FilePart;
use super::docker::Manifest;
use super::document::MAX_DOCUMENT;
use super::packed::Packed;
use super::spec::SourceKind;
use super::stdin;
use crate::build::error::{Error, Result};
use crate::error::Io;
use crate::layer::clean_path;
use crate::layer::read::fill;
use crate::layer::tar::{BLOCK, EntryKind, Parser, Reason, Step, padding};

/// Most entries that an archive may have: an image has three for each layer.
const MAX_ENTRIES: u64 = 100_000;
/// Most bytes of their names and of the names that they lead to.
const MAX_NAMES: usize = 16 << 20;
/// The list of the images in an archive of Docker's.
const DOCUMENT: &[u8] = b"manifest.json";
/// What says that an archive is an OCI image layout.
const OCI_LAYOUT: &[u8] = b"oci-layout";
/// How many links are followed from one entry to another.
const MAX_LINKS: usize = 8;

enum Member {
    File { offset: u64, size: u64 },
    Link(Vec<u8>),
}

/// An open archive.
pub(super) struct Archive {
    file: FilePart,
    entries: HashMap<Vec<u8>, Member>,
}

impl Archive {
    /// Opens an archive, or standard input if `path` says so. A compressed one is unpacked into a
    /// temporary file first, for its parts are needed in another order.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Archive`].
    pub(super) fn open(path: &Path, options: &SourceOptions) -> Result<Self> {
        if stdin::is_named(path) {
            return Self::read(path, stdin::open()?, options);
        }
        let file = FilePart::whole(path)?;
        match file.packed()? {
            Packed::No => Self::of(file),
            packed => Self::of(unpacked(path, file.reader(), packed, options)?),
        }
    }

    /// Reads an archive, compressed or not, into a temporary file. Messages name it `path`.
    ///
    /// # Errors
    /// As [`Archive::open`].
    pub(super) fn read(
        path: &Path,
        mut input: impl Read + Send,
        options: &SourceOptions,
    ) -> Result<Self> {
        let mut magic = [0; Packed::MAGIC];
        let len = fill(&mut input, &mut magic).map_err(Io::at("reading", path))?;
        let packed = Packed::of(&path.display().to_string(), &magic[..len])?;
        Self::of(unpacked(path, magic[..len].chain(input), packed, options)?)
    }

    fn of(file: FilePart) -> Result<Self> {
        let mut archive = Self {
            entries: HashMap::new(),
            file,
        };
        let range = archive.file.clone();
        let (mut room, mut is_cut) = (MAX_NAMES, false);
        each_entry(
            &mut SeekSkip(&range, 0),
            &range.path,
            &mut |path, found, _| {
                let target = match &found {
                    Member::File { offset, size } => {
                        is_cut |= offset.saturating_add(*size) > range.len;
                        0
                    }
                    Member::Link(target) => target.len(),
                };
                // Entries beyond the limit are dropped; looking one up then fails.
                if let Some(left) = room.checked_sub(path.len() + target) {
                    room = left;
                    archive.entries.insert(path, found);
                }
            },
        )?;
        if is_cut {
            let name = range.path.display().to_string();
            return Err(Error::document(name, "the archive is cut off"));
        }
        Ok(archive)
    }

    /// The kind of a file that is not a BFC image: an archive of an image or a tar; `None` if it is
    /// neither.
    pub(super) fn guess(path: &Path) -> Result<Option<SourceKind>> {
        let range = FilePart::whole(path)?;
        let packed = range.packed()?;
        let mut seen = Seen::default();
        let mut look = |path: Vec<u8>, _, document: Option<Vec<u8>>| seen.add(&path, document);
        let walked = match packed {
            Packed::No => each_entry(&mut SeekSkip(&range, 0), path, &mut look),
            _ => {
                let input = BufReader::with_capacity(1 << 18, range.reader());
                let reader = packed.reader(input).map_err(Io::at("reading", path))?;
                each_entry(&mut ReadSkip(reader), path, &mut look)
            }
        };
        match walked {
            // Not a tar at all.
            Err(Error::Archive { .. }) if !seen.any => Ok(None),
            Err(Error::Io(error)) if packed != Packed::No => Err(Error::Decompress {
                name: path.display().to_string(),
                source: error.source,
            }),
            Err(e) => Err(e),
            Ok(()) => Ok(seen.kind()),
        }
    }

    /// The archive's path, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.file.path
    }

    /// The file at `path`, links between entries followed; `None` when there is none.
    pub(super) fn get(&self, path: &str) -> Option<FilePart> {
        let mut at = clean_path(path.as_bytes(), "its path").ok()?;
        for _ in 0..MAX_LINKS {
            match self.entries.get(&at)? {
                Member::File { offset, size } => {
                    return Some(FilePart {
                        offset: self.file.offset + offset,
                        len: *size,
                        ..self.file.clone()
                    });
                }
                Member::Link(target) => at.clone_from(target),
            }
        }
        None
    }
}

/// What tells the kinds of archives apart. Their members have any names and any order, so all of
/// them are looked at.
#[derive(Default)]
struct Seen {
    any: bool,
    oci_layout: bool,
    /// The list of images of an OCI image layout.
    index: bool,
    /// The list of images, if that is what `manifest.json` is.
    manifests: bool,
    /// What Docker wrote before it wrote lists.
    repositories: bool,
    layer: bool,
}

/// The content of [`OCI_LAYOUT`].
#[derive(Deserialize)]
struct OciLayout {
    #[serde(rename = "imageLayoutVersion")]
    _version: String,
}

impl Seen {
    fn add(&mut self, path: &[u8], document: Option<Vec<u8>>) {
        self.any = true;
        match path {
            OCI_LAYOUT => {
                let layout = document.and_then(|d| serde_json::from_slice::<OciLayout>(&d).ok());
                self.oci_layout = layout.is_some();
            }
            b"index.json" => self.index = true,
            b"repositories" => self.repositories = true,
            DOCUMENT => {
                let list = document.and_then(|d| serde_json::from_slice::<Vec<Manifest>>(&d).ok());
                self.manifests = list.is_some_and(|list| !list.is_empty());
            }
            _ => {
                let directory = path.strip_suffix(b"/layer.tar").unwrap_or_default();
                self.layer |= directory.len() == 64 && directory.iter().all(u8::is_ascii_hexdigit);
            }
        }
    }

    fn kind(&self) -> Option<SourceKind> {
        if self.oci_layout && self.index {
            Some(SourceKind::OciArchive)
        } else if self.manifests || (self.repositories && self.layer) {
            Some(SourceKind::DockerArchive)
        } else {
            self.any.then_some(SourceKind::Tar)
        }
    }
}

/// The bytes of `input`, decompressed, in a temporary file. Messages name it `path`.
fn unpacked(
    path: &Path,
    input: impl Read + Send,
    packed: Packed,
    options: &SourceOptions,
) -> Result<FilePart> {
    let writing = || Io::at("unpacking the archive into", &options.temp_dir);
    let mut temp: File = tempfile::tempfile_in(&options.temp_dir).map_err(writing())?;
    let reader = packed
        .reader(BufReader::with_capacity(1 << 18, input))
        .map_err(Io::at("reading", path))?;
    let mut limited = reader.take(options.max_size.saturating_add(1));
    let len = io::copy(&mut limited, &mut temp).map_err(Io::at("decompressing", path))?;
    if len > options.max_size {
        return Err(Error::Source {
            name: path.display().to_string(),
            reason: format!("it is larger than {} bytes when unpacked", options.max_size),
            hint: Some("--max-size allows more".into()),
        });
    }
    temp.flush().map_err(writing())?;
    temp.seek(SeekFrom::Start(0)).map_err(writing())?;
    Ok(FilePart {
        file: Arc::new(temp),
        path: path.to_owned(),
        offset: 0,
        len,
    })
}

trait Skip {
    /// Fills `buf` as far as the input goes.
    fn fill(&mut self, buf: &mut [u8]) -> io::Result<usize>;
    /// Goes `n` bytes on.
    fn skip(&mut self, n: u64) -> io::Result<()>;
}

struct SeekSkip<'a>(&'a FilePart, u64);

impl Skip for SeekSkip<'_> {
    fn fill(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let at = self.1.min(self.0.len);
        let rest = FilePart {
            offset: self.0.offset + at,
            len: self.0.len - at,
            ..self.0.clone()
        };
        let n = fill(&mut rest.reader(), buf)?;
        self.1 += n as u64;
        Ok(n)
    }

    fn skip(&mut self, n: u64) -> io::Result<()> {
        self.1 = self.1.saturating_add(n);
        Ok(())
    }
}

struct ReadSkip<R>(R);

impl<R: Read> Skip for ReadSkip<R> {
    fn fill(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        fill(&mut self.0, buf)
    }

    fn skip(&mut self, n: u64) -> io::Result<()> {
        io::copy(&mut (&mut self.0).take(n), &mut io::sink()).map(drop)
    }
}

/// Calls `each` with the files and links of a tar, and with what [`DOCUMENT`] and
/// [`OCI_LAYOUT`] have in them.
fn each_entry(
    input: &mut dyn Skip,
    path: &Path,
    each: &mut dyn FnMut(Vec<u8>, Member, Option<Vec<u8>>),
) -> Result<()> {
    let archive = |source| Error::Archive {
        path: path.to_owned(),
        source,
    };
    let mut parser = Parser::default();
    let mut block = [0; BLOCK];
    let mut offset = 0;
    loop {
        match input.fill(&mut block).map_err(Io::at("reading", path))? {
            0 => return parser.end_of_input().map_err(archive),
            BLOCK => offset += BLOCK as u64,
            _ => return Err(archive(parser.error(Reason::CutOff))),
        }
        let entry = match parser.block(&block).map_err(archive)? {
            Step::More => continue,
            Step::End => return Ok(()),
            Step::Entry(entry) => entry,
        };
        let data = offset;
        let len = entry.stored.saturating_add(padding(entry.stored) as u64);
        // An invalid name cannot be looked up.
        let name = clean_path(&entry.path, "its path");
        let mut document = None;
        let mut left = len;
        let is_document = |name: &[u8]| [DOCUMENT, OCI_LAYOUT].contains(&name);
        if entry.stored <= MAX_DOCUMENT && name.as_deref().is_ok_and(is_document) {
            let mut bytes = vec![0; usize::try_from(entry.stored).unwrap_or(0)];
            let read = input.fill(&mut bytes).map_err(Io::at("reading", path))?;
            left -= read as u64;
            document = Some(bytes);
        }
        input.skip(left).map_err(Io::at("reading", path))?;
        offset = offset.saturating_add(len);
        if parser.entries() > MAX_ENTRIES {
            return Ok(());
        }
        let Ok(name) = name else {
            continue;
        };
        let found = match entry.kind {
            EntryKind::File { size, sparse: None } => Member::File { offset: data, size },
            EntryKind::Symlink(target) => Member::Link(beside(&name, &target)),
            EntryKind::HardLink(target) => {
                Member::Link(clean_path(&target, "its target").unwrap_or_default())
            }
            // Useless in itself, but its name may indicate the kind of archive.
            _ => Member::Link(Vec::new()),
        };
        each(name, found, document);
    }
}

/// The path that a symlink at `path` leads to, inside the archive.
fn beside(path: &[u8], target: &[u8]) -> Vec<u8> {
    let mut at: Vec<&[u8]> = path.split(|&b| b == b'/').collect();
    at.pop();
    if target.starts_with(b"/") {
        at.clear();
    }
    for name in target.split(|&b| b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(at.pop()),
            name => at.push(name),
        }
    }
    at.join(&b'/')
}
