//! Writes images: first contents, in parallel; then the tree, as a rootfs section and as a v1
//! index.

mod pipeline;
mod v1;

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::aead;
use crate::container::Container;
use crate::crc::Flavour;
use crate::error::{Error, Result};
use crate::format::{Compression, FEATURE_AEAD, FEATURE_ZSTD, Footer, HEADER_LEN, Header, SECTOR};
use crate::key::{CHECK_AAD, Key};
use crate::rootfs::format::{LOCATOR_LEN, LayerRecord, Locator, SECTION_ALIGN};
use crate::rootfs::{Extras, LayerEntry, Section, Tree};

use pipeline::{Pipeline, Start};

/// Default frame length, binary logarithm: 64 KiB (docs/PERFORMANCE.md).
pub const FRAME_LOG2: u8 = 16;
/// Default zstd level: on frames as short as ours it is as fast as level 3, and 1.5 % smaller
/// (docs/PERFORMANCE.md).
pub const LEVEL: i32 = 4;

/// How to write.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// Compression of contents; contents that do not shrink are stored uncompressed.
    pub compression: Compression,
    /// zstd level, 1 to 22.
    pub level: i32,
    /// Frame length, binary logarithm, 12 to 24.
    pub frame_log2: u8,
    /// Encrypts contents, with the salt that the key was derived with (zero for a key file).
    pub key: Option<(Key, [u8; 32])>,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self {
            compression: Compression::Zstd,
            level: LEVEL,
            frame_log2: FRAME_LOG2,
            key: None,
        }
    }
}

/// Takes the contents of layers; identical content is stored once.
pub trait ContentSink {
    /// Stores the `size` bytes of `input`, the file at `path` (which encrypted content is tied to).
    /// Returns the content's number, `None` when there are no bytes.
    ///
    /// # Errors
    /// [`Error::Input`] when `input` fails or ends early, [`Error::Write`].
    fn add(&mut self, path: &[u8], size: u64, input: &mut dyn Read) -> Result<Option<u32>>;

    /// Ends a layer: all contents so far belong to it or to those below. The counts and the offset
    /// are set in the record.
    fn end_layer(&mut self) -> Result<LayerRecord>;
}

/// The parts of an image besides its contents.
#[derive(Debug, Clone, Default)]
pub struct Documents {
    /// The layers, lowest first, those of the image that is continued included.
    pub layers: Vec<LayerEntry>,
    /// OCI image configuration, JSON.
    pub config: Vec<u8>,
    /// OCI manifest, JSON.
    pub manifest: Vec<u8>,
}

/// An image that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Length of the image, bytes.
    pub len: u64,
    /// The root digest.
    pub root_digest: [u8; 32],
    /// How many paths the v1 index does not show.
    pub unsaid: u64,
    /// How many contents there are, and how many bytes they are when decoded.
    pub contents: u64,
    /// Bytes of all contents when decoded.
    pub content_bytes: u64,
    /// Bytes of all contents as stored.
    pub stored_bytes: u64,
}

/// How much of an image that is continued is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// The whole image, in place: it stays valid until the header contains the new length.
    All,
    /// The first so many layers. For a copy (or clone) of the image, which is cut behind them.
    Layers(usize),
}

/// How the header is written at the end, which makes the new image valid.
enum NewHeader {
    /// A whole one, of a new image.
    Whole(Header),
    /// Change the committed length in the header of the continued image.
    Commit {
        bytes: Box<[u8; HEADER_LEN]>,
        generation: u64,
    },
}

/// Writes an image into a file.
pub struct ImageWriter {
    file: Arc<File>,
    options: WriteOptions,
    pipeline: Pipeline,
    header: NewHeader,
    flavour: Flavour,
}

impl std::fmt::Debug for ImageWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageWriter")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl ImageWriter {
    /// Begins a new image in `file`, which is empty.
    ///
    /// # Errors
    /// [`Error::Write`] when no threads can be started.
    pub fn create(file: File, options: WriteOptions) -> Result<Self> {
        let file = Arc::new(file);
        let start = Start {
            position: HEADER_LEN as u64,
            ..Start::default()
        };
        let header = NewHeader::Whole(new_header(&options));
        let pipeline = Pipeline::start(file.clone(), &options, Flavour::Raw, start)?;
        Ok(Self {
            file,
            options,
            pipeline,
            header,
            flavour: Flavour::Raw,
        })
    }

    /// Continues the image in `file`, open for reading and writing. Frame length and salt are the
    /// image's.
    ///
    /// # Errors
    /// [`Error::Section`] and [`Error::Read`] when it is damaged, [`Error::WrongKey`] and
    /// [`Error::KeyNeeded`] when the key is not the image's, [`Error::Write`].
    pub fn resume(
        file: File,
        container: &Container,
        section: &Section,
        keep: Keep,
        mut options: WriteOptions,
    ) -> Result<Self> {
        let mut sealed = section.header().key_check;
        match (&options.key, sealed != [0; 28]) {
            (None, true) => return Err(Error::KeyNeeded),
            (Some((key, _)), true) if aead::open(key, CHECK_AAD, &mut sealed).is_none() => {
                return Err(Error::WrongKey);
            }
            (Some(_), false) => {
                return Err(Error::Unsupported(
                    "encrypted content beside content that is not".into(),
                ));
            }
            _ => {}
        }
        options.frame_log2 = section.header().frame_log2;
        let (position, contents, frames, header) = match keep {
            Keep::All => {
                let generation = container
                    .header()
                    .generation
                    .checked_add(1)
                    .ok_or(Error::TooLarge("the image's generation"))?;
                let header = NewHeader::Commit {
                    bytes: Box::new(*container.header_bytes()),
                    generation,
                };
                (
                    container.len(),
                    section.content_count(),
                    section.frame_count(),
                    header,
                )
            }
            Keep::Layers(0) => (
                HEADER_LEN as u64,
                0,
                0,
                NewHeader::Whole(new_header(&options)),
            ),
            Keep::Layers(n) => {
                let layers = section.layers()?;
                let layer = layers
                    .get(n - 1)
                    .ok_or(Error::TooLarge("the number of layers to keep"))?;
                let header = Header {
                    salt: container.header().salt,
                    ..new_header(&options)
                };
                (
                    layer.data_end,
                    layer.contents_end.into(),
                    layer.frames_end.into(),
                    NewHeader::Whole(header),
                )
            }
        };
        let mut start = Start {
            position,
            ..Start::default()
        };
        for number in 0..contents {
            start.contents.push(section.content(number)?);
        }
        for number in 0..frames {
            start.frames.push(section.raw_frame(number)?);
        }
        if options.key.is_some() {
            for (number, content) in (0_u32..).zip(&start.contents) {
                start
                    .paths
                    .insert(number, section.content_path(content)?.into_owned());
            }
        }
        let file = Arc::new(file);
        let failed = |offset| move |source| Error::Write { offset, source };
        if let NewHeader::Whole(_) = header {
            // The header of the copied image would not fit what follows.
            file.write_all_at(&[0; SECTOR], 0)
                .and_then(|()| file.sync_data())
                .map_err(failed(0))?;
        }
        // Cuts off remains of an interrupted write, and layers that are not kept.
        file.set_len(position).map_err(failed(position))?;
        let flavour = container.flavour();
        let pipeline = Pipeline::start(file.clone(), &options, flavour, start)?;
        Ok(Self {
            file,
            options,
            pipeline,
            header,
            flavour,
        })
    }

    /// Writes section, index and footer, and waits until all of it is on the disk. `tree.contents`
    /// is filled in here.
    ///
    /// # Errors
    /// [`Error::Write`], [`Error::TooLarge`].
    pub fn finish(mut self, mut tree: Tree, documents: Documents) -> Result<Written> {
        let done = self.pipeline.finish()?;
        // A duplicate that was written and discarded may reach further than what follows.
        self.file
            .set_len(done.position)
            .map_err(|source| Error::Write {
                offset: done.position,
                source,
            })?;
        tree.contents = done.contents;
        let mut tail = Tail {
            bytes: Vec::new(),
            offset: done.position,
        };
        let index = v1::index(&tree, &done.paths, &mut tail, self.flavour)?;
        let mut extras = Extras {
            frames: done.frames,
            frame_log2: self.options.frame_log2,
            layers: documents.layers,
            config: documents.config,
            manifest: documents.manifest,
            unsaid: index.unsaid,
            key_check: [0; 28],
            paths: done.paths,
        };
        if let Some((key, _)) = &self.options.key {
            extras.key_check.copy_from_slice(&aead::seal(
                key,
                &pipeline::nonce()?,
                CHECK_AAD,
                &[],
            )?);
        }
        let section = crate::rootfs::build(&tree, &extras)?;
        tail.pad(SECTION_ALIGN);
        let root_digest =
            *blake3::hash(&section[..crate::rootfs::format::SECTION_HEADER_LEN]).as_bytes();
        let locator = Locator {
            offset: tail.position(),
            size: section.len() as u64,
            root_digest,
        };
        tail.bytes.extend_from_slice(&section);
        drop(section);
        {
            let index_offset = tail.position();
            let mut blob = index.blob;
            blob.extend_from_slice(&locator.encode(self.flavour));
            debug_assert!(blob.len() > LOCATOR_LEN);
            let footer = Footer {
                index_size: blob.len() as u64,
                index_crc: self.flavour.crc(&blob),
                index_offset,
            };
            tail.bytes.extend_from_slice(&blob);
            tail.bytes.extend_from_slice(&footer.encode());
        }
        self.write_tail(&tail, &root_digest)?;
        Ok(Written {
            len: tail.position(),
            root_digest,
            unsaid: index.unsaid,
            contents: tree.contents.len() as u64,
            content_bytes: tree.contents.iter().map(|c| c.size).sum(),
            stored_bytes: tree.contents.iter().map(|c| c.stored).sum(),
        })
    }

    /// Writes everything else first, and then the header with the image's length: until then, the
    /// file is the previous image. If an image is continued, only the header's first sector is
    /// written, which a disk writes atomically.
    fn write_tail(&self, tail: &Tail, root_digest: &[u8; 32]) -> Result<()> {
        let failed = |offset| move |source| Error::Write { offset, source };
        self.file
            .write_all_at(&tail.bytes, tail.offset)
            .map_err(failed(tail.offset))?;
        self.file.sync_data().map_err(failed(tail.offset))?;
        let committed = tail.position();
        match &self.header {
            NewHeader::Whole(header) => {
                // Derived from the content, so that the same input gives the same bytes; marked as
                // version 8, variant 1 (RFC 9562).
                let mut uuid = [0; 16];
                uuid.copy_from_slice(&root_digest[..16]);
                uuid[6] = uuid[6] & 0x0f | 0x80;
                uuid[8] = uuid[8] & 0x3f | 0x80;
                let mut bytes = Header {
                    uuid,
                    ..header.clone()
                }
                .encode();
                Header::commit(&mut bytes, self.flavour, committed, 1);
                self.file
                    .write_all_at(&bytes, 0)
                    .and_then(|()| self.file.sync_all())
                    .map_err(failed(0))
            }
            NewHeader::Commit { bytes, generation } => {
                let mut new = **bytes;
                Header::commit(&mut new, self.flavour, committed, *generation);
                let written = self
                    .file
                    .write_all_at(&new[..SECTOR], 0)
                    .and_then(|()| self.file.sync_all());
                written.map_err(|error| {
                    // After a reported failure, the previous image is still valid.
                    let _ = self.file.write_all_at(&bytes[..SECTOR], 0);
                    failed(0)(error)
                })
            }
        }
    }
}

impl ContentSink for ImageWriter {
    fn add(&mut self, path: &[u8], size: u64, input: &mut dyn Read) -> Result<Option<u32>> {
        self.pipeline.add(path, size, input)
    }

    fn end_layer(&mut self) -> Result<LayerRecord> {
        self.pipeline.end_layer()
    }
}

fn new_header(options: &WriteOptions) -> Header {
    let zstd = if options.compression == Compression::Zstd {
        FEATURE_ZSTD
    } else {
        0
    };
    let aead = if options.key.is_some() {
        FEATURE_AEAD
    } else {
        0
    };
    let salt = options.key.as_ref().map_or([0; 32], |(_, salt)| *salt);
    Header {
        crc: 0,
        block_size: 4096,
        features: zstd | aead,
        uuid: [0; 16],
        salt,
        committed: 0,
        generation: 0,
    }
}

/// The bytes after the contents, before they are written.
struct Tail {
    bytes: Vec<u8>,
    /// Where it begins in the file.
    offset: u64,
}

impl Tail {
    fn position(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }

    fn pad(&mut self, align: u64) {
        let gap = self.position().next_multiple_of(align) - self.position();
        #[allow(clippy::cast_possible_truncation)] // less than `align`
        self.bytes.resize(self.bytes.len() + gap as usize, 0);
    }
}

/// Paths of encrypted contents, by number.
type Paths = HashMap<u32, Vec<u8>>;
