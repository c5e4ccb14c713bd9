//! Merges several images into one tree: each image's layers go on top of those of the images before
//! it.

use std::collections::HashMap;

use bfc::rootfs::format::ROOT;
use bfc::rootfs::{Attr, Extras, Kind, Node, Section, Tree};
use bfc::{Error, Result};

use super::image::{FRAME_LOG2, OpenImage};
use super::walk::{Order, Shown, Step, Visit, Walk};
use crate::layer::merge::{self, Change, What};
use crate::layer::{self, Budget, replay};

/// How many images may be stacked: a content says in one byte which image it is of, and their
/// descriptors are passed in one message, of which the kernel allows 253.
pub const MAX_IMAGES: usize = 250;
/// Most contents of all images together, which memory must hold (some 600 MiB).
const MAX_CONTENTS: u64 = 1 << 23;
/// How many frames they may have together (some 800 MiB).
const MAX_FRAMES: u64 = 1 << 24;

/// An image and its own section.
pub(super) type Opened = (OpenImage, Section);

/// The section of all images together, the first the lowest. Its contents are those of all of them.
///
/// # Errors
/// What is wrong, and with which image (by its place).
pub(super) fn stack(images: &[Opened]) -> Result<Section, (usize, StackError)> {
    let mut stack = Stack {
        tree: Tree::default(),
        extras: Extras::default(),
        frames_in: None,
    };
    for (number, opened) in images.iter().enumerate() {
        stack.add(number, opened).map_err(|e| (number, e))?;
    }
    let Stack {
        tree,
        mut extras,
        frames_in,
    } = stack;
    extras.frame_log2 = frames_in.unwrap_or(FRAME_LOG2);
    bfc::rootfs::build(&tree, &extras)
        .and_then(Section::in_memory)
        .map_err(|e| (images.len() - 1, e.into()))
}

/// Why images cannot be stacked.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// The image cannot be read.
    #[error(transparent)]
    Image(#[from] Error),
    /// The record of one of its layers is damaged.
    #[error("its layer {number}")]
    Layer {
        /// The number of the layer, from 1.
        number: usize,
        /// What is wrong.
        source: layer::Error,
    },
    /// A layer does not fit the layers below it.
    #[error("stacking it on the images before it")]
    Merge(#[from] merge::Error),
}

struct Stack {
    tree: Tree,
    extras: Extras,
    /// Frame length of the images that have frames, binary logarithm.
    frames_in: Option<u8>,
}

impl Stack {
    fn add(&mut self, number: usize, (image, section): &Opened) -> Result<(), StackError> {
        if number >= MAX_IMAGES {
            return Err(Error::TooLarge("the number of images (the limit is 250)").into());
        }
        let first = self.contents(number, section)?;
        let layers = section.layers()?;
        if layers.is_empty() {
            let changes = tree_changes(image, section)?;
            return Ok(merge::apply(&mut self.tree, moved(changes, first))?);
        }
        for (index, record) in layers.iter().enumerate() {
            let damaged = |source| StackError::Layer {
                number: index + 1,
                source,
            };
            let skeleton = section.blob(record.skeleton)?;
            let changes = replay::changes(&skeleton, record.skeleton_size).map_err(damaged)?;
            merge::apply(&mut self.tree, moved(changes, first))?;
        }
        tracing::debug!(image = %image.path.display(), layers = layers.len(), "stacked");
        Ok(())
    }

    /// Takes over the contents and frames of an image; the number of its first content.
    fn contents(&mut self, number: usize, section: &Section) -> Result<u32, StackError> {
        let count =
            |n: usize| u32::try_from(n).map_err(|_| Error::TooLarge("the contents of all images"));
        let (first, first_frame) = (
            count(self.tree.contents.len())?,
            count(self.extras.frames.len())?,
        );
        if u64::from(first).saturating_add(section.content_count()) > MAX_CONTENTS {
            return Err(Error::TooLarge("the contents of all images").into());
        }
        if u64::from(first_frame).saturating_add(section.frame_count()) > MAX_FRAMES {
            return Err(Error::TooLarge("the frames of all images").into());
        }
        let log2 = section.header().frame_log2;
        if section.frame_count() > 0 && *self.frames_in.get_or_insert(log2) != log2 {
            return Err(Error::Unsupported(
                "frames as long as those of the images before it".into(),
            )
            .into());
        }
        for index in 0..section.content_count() {
            let mut content = section.content(index)?;
            if content.path_len > 0 {
                self.extras.paths.insert(
                    count(self.tree.contents.len())?,
                    section.content_path(&content)?.into_owned(),
                );
            }
            content.first_frame = content
                .first_frame
                .checked_add(first_frame)
                .ok_or(Error::TooLarge("the frames of all images"))?;
            #[allow(clippy::cast_possible_truncation)] // at most 255, checked above
            {
                content.source = number as u8;
            }
            self.tree.contents.push(content);
        }
        for index in 0..section.frame_count() {
            self.extras.frames.push(section.raw_frame(index)?);
        }
        Ok(first)
    }
}

/// The changes with their contents' numbers moved by `first`.
fn moved(changes: Vec<Change>, first: u32) -> Vec<Change> {
    let mut changes = changes;
    for change in &mut changes {
        if let What::Node(Node {
            kind:
                Kind::File {
                    content: Some(number),
                    ..
                },
            ..
        }) = &mut change.what
        {
            *number = number.saturating_add(first);
        }
    }
    changes
}

/// The tree of a section without layers, as one layer. Names that begin with `.wh.` are whiteouts,
/// as in any layer.
fn tree_changes(image: &OpenImage, section: &Section) -> Result<Vec<Change>, StackError> {
    let mut out = Vec::new();
    let mut budget = Budget::new(u64::MAX);
    let mut linked: HashMap<u32, Vec<u8>> = HashMap::new();
    let root = section.inode(ROOT)?.ok_or(Error::Section {
        offset: 0,
        reason: "no root",
    })?;
    let mut walk = Walk::new(
        Shown {
            section,
            root: ROOT,
        },
        &image.path,
        ROOT,
        root,
        Order::Depth,
    );
    while let Some(step) = walk.step_in_section()? {
        let Step::Enter(Visit { ino, inode, .. }) = step else {
            continue;
        };
        let path = walk.path();
        let change = match layer::mark(path) {
            Ok(Some(mark)) => {
                if inode.is_dir() {
                    walk.skip();
                }
                mark
            }
            _ => {
                let path = path.to_vec();
                let what = match linked.get(&ino) {
                    Some(target) => What::HardLink(target.clone()),
                    None => What::Node(node(section, &inode)?),
                };
                if inode.nlink > 1 && !inode.is_dir() {
                    linked.entry(ino).or_insert_with(|| path.clone());
                }
                Change { path, what }
            }
        };
        budget
            .take_metadata(&change)
            .map_err(|source| StackError::Layer { number: 1, source })?;
        out.push(change);
    }
    Ok(out)
}

fn node(section: &Section, inode: &bfc::rootfs::format::Inode) -> Result<Node, StackError> {
    use bfc::format::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
    let attr = Attr {
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        mtime_s: inode.mtime_s,
        mtime_ns: inode.mtime_ns,
        xattrs: section.xattrs(inode)?,
    };
    let kind = match inode.mode & S_IFMT {
        S_IFDIR => Kind::Dir(std::collections::BTreeMap::new()),
        S_IFLNK => Kind::Symlink(section.target(inode)?.unwrap_or_default().into()),
        S_IFREG => Kind::File {
            size: inode.size,
            content: (inode.size > 0).then(|| u32::try_from(inode.data).unwrap_or(u32::MAX)),
        },
        S_IFCHR | S_IFBLK => {
            let (major, minor) = inode.rdev();
            Kind::Device(major, minor)
        }
        _ => Kind::Other,
    };
    Ok(Node { attr, kind })
}
