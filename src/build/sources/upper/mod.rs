//! The changes of an overlayfs upper directory to the image below it, as a list and as a layer.
//!
//! A directory of the upper may show the entries of another directory of the image (`redirect`), a
//! file may have its content in the image (`metacopy`), and a file with several names in the image
//! is copied up under all of them at once (`index`). A layer cannot express any of these, so such
//! directories are packed with everything that they show, and such files with their content and
//! names.

mod handle;
mod links;
mod plan;
mod tar;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{SourceImage, SourceLayer, attributes};
use crate::build::error::{Error, Result};
use crate::erofs::{self, Inodes, Layout};
use crate::error::Io;
use crate::fs::Rootfs;
use plan::Plan;

/// The kind of change to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It is new.
    Added,
    /// It exists in both, and differs.
    Changed,
    /// It is gone.
    Deleted,
}

/// An upper, as a directory that holds `upper/` and `work/`.
pub struct Upper {
    /// The directory.
    pub place: OwnedFd,
    /// What messages call it.
    pub name: String,
    /// The image below it.
    pub image: Arc<Rootfs>,
    /// Whose attributes overlayfs kept its marks in.
    pub marks: Marks,
    /// Whose inode numbers it names files of the image by.
    pub numbers: Numbers,
}

impl std::fmt::Debug for Upper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upper")
            .field("name", &self.name)
            .field("marks", &self.marks)
            .finish_non_exhaustive()
    }
}

/// Whose inode numbers overlayfs names files of an image by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    /// The image's.
    Image,
    /// Those of its EROFS metadata: [`erofs::numbers`].
    Erofs,
}

/// A file with several names that is copied up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linked {
    /// Its name in `work/index`.
    pub entry: Vec<u8>,
    /// The paths at which it is seen, and which the upper does not have.
    pub paths: Vec<Vec<u8>>,
}

/// Whose attributes overlayfs keeps its marks in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Marks {
    /// `trusted.overlay.*`: the host's root's. `user.overlay.*` are attributes like any others,
    /// which every user may set.
    Trusted,
    /// `user.overlay.*`: in a user namespace of one's own.
    User,
}

impl Marks {
    /// The prefix of these attributes.
    fn prefix(self) -> &'static [u8] {
        match self {
            Self::Trusted => attributes::TRUSTED,
            Self::User => attributes::USER,
        }
    }
}

impl Upper {
    /// The paths that differ from the image, sorted, without a leading slash. The root is not among
    /// them.
    ///
    /// # Errors
    /// When the upper cannot be read, does not fit the image, or the image is damaged.
    pub fn changes(&self) -> Result<Vec<(Kind, Vec<u8>)>> {
        Plan::read(self)?.changes(&self.image)
    }

    /// The files with several names that are copied up and do not have all of them in the upper:
    /// overlayfs finds them through its index.
    ///
    /// # Errors
    /// As [`Upper::changes`].
    pub fn linked(&self) -> Result<Vec<Linked>> {
        plan::linked(self)
    }

    /// The upper as a layer.
    ///
    /// # Errors
    /// As [`Upper::changes`].
    pub fn into_image(self, created_by: &str) -> Result<SourceImage> {
        let plan = Plan::read(&self)?;
        let name = self.name.clone();
        let size = plan.size;
        let tar = Box::new(tar::UpperTar { upper: self, plan });
        let layer = SourceLayer {
            name,
            created_by: created_by.as_bytes().to_vec(),
            diff_id: None,
            size,
            compressed: false,
            tar,
        };
        Ok(SourceImage {
            layers: vec![layer],
            ..SourceImage::default()
        })
    }

    /// The image's number of an inode that overlayfs names by this one.
    fn inode_of(&self, number: u32, known: &mut Option<HashMap<u32, u32>>) -> Result<Option<u32>> {
        if self.numbers == Numbers::Image {
            return Ok(Some(number));
        }
        let known = match known {
            Some(known) => known,
            none => {
                let layout = Layout::of(self.image.section(), erofs::LARGE)?;
                let numbers = erofs::numbers(&self.image, &layout, Inodes::Long)?;
                none.insert(
                    numbers
                        .into_iter()
                        .zip(0..)
                        .filter(|(nid, _)| *nid > 0)
                        .collect(),
                )
            }
        };
        Ok(known.get(&number).copied())
    }

    /// A directory below the place.
    fn directory(&self, path: &str) -> Result<OwnedFd> {
        open_dir(&self.place, path.as_bytes())
            .map_err(|e| self.failed("opening", path.as_bytes())(e))
    }

    /// For `map_err`: an error while doing something to a path below the place.
    fn failed(&self, doing: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Error + use<> {
        use std::os::unix::ffi::OsStrExt;
        let path = Path::new(&self.name).join(std::ffi::OsStr::from_bytes(path));
        move |e| Io::at(doing, &path)(e).into()
    }

    /// The error for an upper that does not fit its image.
    fn unfit(&self, path: &[u8], reason: &str) -> Error {
        let path = String::from_utf8_lossy(path);
        Error::Source {
            name: format!("{}: {path}", self.name),
            reason: reason.into(),
            hint: Some(
                "it may belong to another image: check which image it was written over".into(),
            ),
        }
    }
}

fn open_dir(at: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    openat(
        at,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// `name` in the directory `path`.
fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() {
        name.to_vec()
    } else {
        [path, b"/", name].concat()
    }
}
