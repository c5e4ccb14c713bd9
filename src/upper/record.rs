//! The record of an upper: the images that it belongs to, and its map of ids.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bfc::Container;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::xattrs::Attributes;
pub use crate::build::sources::upper::Marks;
use crate::build::sources::upper::Numbers;
use crate::erofs;
use crate::error::Io;
use crate::fs::{self, paths};
use crate::serve::engine::{Engine, Wanted};
use crate::sys::idmap::{IdMap, in_user_namespace};
use crate::sys::{kernel, replace};
use crate::text::hex;
use crate::zfs::recorded;

/// Name of the record in an upper's directory.
pub const NAME: &str = "lxcri-fs.json";
/// Version of the fields.
const VERSION: u32 = 1;
/// Longest record, bytes.
const MAX: u64 = 1 << 20;

/// An image in the record of an upper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LowerImage {
    /// Where it was when the upper was made.
    #[serde(with = "paths::path")]
    pub path: PathBuf,
    /// Its identity: `blake3:` and its root digest, or `uuid:` for an image without one.
    pub digest: String,
}

/// What belongs to an upper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpperRecord {
    version: u32,
    /// The images, lowest first.
    pub images: Vec<LowerImage>,
    /// The directory of the image that is the root.
    #[serde(
        default,
        with = "paths::optional_path",
        skip_serializing_if = "Option::is_none"
    )]
    pub subdir: Option<PathBuf>,
    /// The map of its ids; `None` for the ids in the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idmap: Option<IdMap>,
    /// How overlayfs writes it.
    #[serde(default = "Features::unsaid")]
    pub overlay: Features,
}

/// Options of overlayfs that shape an upper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// The kind of attributes that are overlayfs's marks.
    pub marks: Marks,
    /// Whether `work/index` holds files with several names.
    pub index: bool,
    /// Whether there may be files without their content (metacopy).
    pub metacopy: bool,
    /// Whether there may be directories that show another directory of the image (redirects).
    pub redirect_dir: bool,
    /// Whether files have the image's inode numbers.
    pub xino: bool,
    /// Whose numbers these are: what served the image.
    #[serde(default)]
    pub engine: Engine,
    /// The version of EROFS metadata, which gives them; 0 where FUSE does.
    #[serde(default)]
    pub numbering: u32,
    /// The type of the image's file handles, by which `work/index` names files; `None` if it has
    /// none, or if an earlier version of this program wrote the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handles: Option<i32>,
}

impl Features {
    /// The options that overlayfs gets on this host, over an image that `engine` serves.
    pub fn here(engine: Engine) -> Self {
        let numbering = match engine {
            Engine::Fuse => 0,
            Engine::Split => erofs::VERSION,
        };
        if in_user_namespace() {
            Self {
                marks: Marks::User,
                index: false,
                metacopy: false,
                redirect_dir: false,
                xino: true,
                engine,
                numbering,
                handles: None,
            }
        } else {
            Self {
                marks: Marks::Trusted,
                index: engine == Engine::Split || kernel::finds_fuse_handles(),
                metacopy: true,
                redirect_dir: true,
                xino: true,
                engine,
                numbering,
                handles: None,
            }
        }
    }

    /// Whether overlayfs would not find, with these options, what `work/index` of an upper with
    /// `known` names.
    pub(super) fn loses_index_of(&self, known: &Self) -> bool {
        let other_handles = known.handles.is_some() && known.handles != self.handles;
        known.index && (!self.index || other_handles)
    }

    /// Whose inode numbers overlayfs names files of the image by.
    pub(super) fn numbers(self) -> Numbers {
        match self.engine {
            Engine::Fuse => Numbers::Image,
            Engine::Split => Numbers::Erofs,
        }
    }

    /// The options of an upper with an old record, which does not contain them.
    fn unsaid() -> Self {
        Self {
            index: !in_user_namespace(),
            ..Self::here(Engine::Fuse)
        }
    }
}

/// A record that is written and synced, but not in its place yet. Dropping it removes it.
#[derive(Debug)]
pub struct Pending {
    file: replace::Pending,
    path: PathBuf,
}

impl Pending {
    /// Renames it to its place, and syncs the directory.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn keep(self) -> Result<()> {
        Ok(self.file.keep().map_err(Io::at("writing", &self.path))?)
    }
}

impl UpperRecord {
    /// A record for a new upper over these images.
    pub fn new(
        images: Vec<LowerImage>,
        subdir: Option<PathBuf>,
        idmap: Option<IdMap>,
        engine: Engine,
    ) -> Self {
        Self {
            version: VERSION,
            images,
            subdir,
            idmap,
            overlay: Features::here(engine),
        }
    }

    /// Reads the record of the upper in `place`; `None` when there is none.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Record`].
    pub fn read(place: &Path) -> Result<Option<Self>> {
        let dir = openat(
            CWD,
            place,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        Self::read_in(dir.map_err(Io::at("opening", place))?.as_fd(), place)
    }

    /// As [`UpperRecord::read`], of a place that is open.
    ///
    /// # Errors
    /// As [`UpperRecord::read`].
    pub fn read_in(dir: BorrowedFd<'_>, place: &Path) -> Result<Option<Self>> {
        let path = place.join(NAME);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(dir, NAME, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            other => File::from(other.map_err(Io::at("opening", &path))?),
        };
        let record: Self =
            serde_json::from_reader(file.take(MAX)).map_err(|source| Error::Record {
                path: path.clone(),
                source,
            })?;
        if record.version != VERSION {
            let source = serde::de::Error::custom(format_args!(
                "version {} is not supported",
                record.version
            ));
            return Err(Error::Record { path, source });
        }
        Ok(Some(record))
    }

    /// Writes it to a temporary file, which [`Pending::keep`] renames.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, dir: BorrowedFd<'_>, place: &Path) -> Result<Pending> {
        let path = place.join(NAME);
        let failed = || Io::at("writing", &path);
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(io::Error::from)
            .map_err(failed())?;
        text.push(b'\n');
        let file = replace::Pending::write(dir, OsStr::new(NAME), &text).map_err(failed())?;
        Ok(Pending { file, path })
    }

    /// Refuses an upper in which overlayfs would not find its own marks: one that was made in a
    /// user namespace and is used outside, or the other way round.
    ///
    /// # Errors
    /// [`Error::Foreign`].
    pub fn check_marks(&self, place: &Path) -> Result<()> {
        let text = |marks| match marks {
            Marks::Trusted => "the host's root, whose overlayfs attributes are trusted.overlay.*",
            Marks::User => "a user namespace, whose overlayfs attributes are user.overlay.*",
        };
        let here = Features::here(Engine::Fuse).marks;
        if self.overlay.marks == here {
            return Ok(());
        }
        Err(Error::Foreign {
            path: place.to_owned(),
            recorded: text(self.overlay.marks).to_owned(),
            wanted: text(here).to_owned(),
        })
    }

    /// Refuses an upper whose files have the numbers of an engine that the mount cannot have.
    ///
    /// # Errors
    /// [`Error::Foreign`].
    pub(super) fn check_engine(&self, wanted: Wanted, place: &Path) -> Result<()> {
        let Features {
            engine, numbering, ..
        } = self.overlay;
        let here = Features::here(engine).numbering;
        if wanted.allows(engine) && numbering == here {
            return Ok(());
        }
        let text = |engine, numbering| match engine {
            Engine::Fuse => "the fuse engine".to_owned(),
            Engine::Split => format!("the split engine, version {numbering}"),
        };
        let wanted = match wanted {
            Wanted::Fuse => text(Engine::Fuse, 0),
            Wanted::Auto | Wanted::Split => text(Engine::Split, erofs::VERSION),
        };
        Err(Error::Foreign {
            path: place.to_owned(),
            recorded: format!("inode numbers of {}", text(engine, numbering)),
            wanted: format!("inode numbers of {wanted}"),
        })
    }

    /// Refuses an upper of other images or with other ids: what overlayfs would show is undefined.
    ///
    /// # Errors
    /// [`Error::Foreign`].
    pub fn check(&self, wanted: &Self, place: &Path) -> Result<()> {
        let foreign = |recorded: String, wanted: String| {
            Err(Error::Foreign {
                path: place.to_owned(),
                recorded,
                wanted,
            })
        };
        let digests = |record: &Self| {
            record
                .images
                .iter()
                .map(|i| i.digest.clone())
                .collect::<Vec<_>>()
        };
        if digests(self) != digests(wanted) || self.subdir != wanted.subdir {
            return foreign(self.describe_images(), wanted.describe_images());
        }
        if self.idmap != wanted.idmap {
            let text = |map: &Option<IdMap>| {
                map.as_ref().map_or_else(
                    || "the image's own ids".to_owned(),
                    |m| format!("the ids {m}"),
                )
            };
            return foreign(text(&self.idmap), text(&wanted.idmap));
        }
        Ok(())
    }

    /// Makes the layer of the images' extended attributes again.
    ///
    /// # Errors
    /// [`Error::Foreign`] if the images have moved, [`Error::Io`], [`Error::Fs`].
    pub(super) fn xattrs(&self) -> Result<Option<OwnedFd>> {
        let (mut paths, mut files) = (Vec::new(), Vec::new());
        for image in &self.images {
            let file = recorded::open_image::<Error>(&image.path)?;
            let found = identify(&image.path, &file)?;
            if found.digest != image.digest {
                return Err(Error::Foreign {
                    path: image.path.clone(),
                    recorded: image.digest.clone(),
                    wanted: found.digest,
                });
            }
            paths.push(image.path.clone());
            files.push(file);
        }
        let options = fs::ImageOptions {
            subdir: self.subdir.clone(),
            ..fs::ImageOptions::default()
        };
        Attributes::of(&paths, &files, &options)?.map_or(Ok(None), |attributes| attributes.layer())
    }

    fn describe_images(&self) -> String {
        let images: Vec<_> = self
            .images
            .iter()
            .map(|i| format!("{} ({})", i.path.display(), i.digest))
            .collect();
        let subdir = self
            .subdir
            .as_ref()
            .map(|s| format!(", subdirectory {}", s.display()))
            .unwrap_or_default();
        images.join(" and ") + &subdir
    }
}

/// The identity of an image, read from its end.
///
/// # Errors
/// [`Error::Fs`] if it is not an image.
pub fn identify(path: &Path, file: &File) -> Result<LowerImage> {
    let failed = |source| fs::Error::Image {
        image: path.to_owned(),
        source,
    };
    let source = file
        .try_clone()
        .map_err(Io::at("opening the image", path))?;
    let container = Container::open(Arc::new(source)).map_err(failed)?;
    let digest = match container.locator().map_err(failed)? {
        Some(locator) => format!("blake3:{}", hex(&locator.root_digest)),
        None => format!("uuid:{}", hex(&container.header().uuid)),
    };
    Ok(LowerImage {
        path: path.to_owned(),
        digest,
    })
}
