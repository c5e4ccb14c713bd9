//! Builds the tree of a plain v1 image, which has no rootfs section.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use bfc::format::{Compression, Encryption, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use bfc::rootfs::format::{Content, Layout};
use bfc::rootfs::{Attr, Kind, Node, Tree};
use bfc::source::read_exact_at;
use bfc::{Container, Error, Index, Result};

use crate::layer::merge::MAX_NODES;

/// How many entries that are left out are named, and how much of a path is shown, bytes.
const MAX_WARNED: u64 = 16;
const MAX_WARNED_PATH: usize = 1024;
/// Longest symlink target that is believed, bytes.
const MAX_TARGET: u64 = 4095;

/// The tree that a v1 index describes, and the path of each encrypted content (its associated data)
/// by content number. Missing parents are 0755 directories, the owner is root. Entries that point
/// at one object are hard links when all they say of it agrees.
///
/// Entries that no file system can show (an empty component, `.` or `..`, a name over 255 bytes, a
/// NUL) are left out with a warning.
///
/// # Errors
/// [`Error::Content`] when a symlink cannot be read, [`Error::Unsupported`] for unknown compression
/// or encryption, [`Error::TooLarge`] for more inodes than a tree may have.
pub fn tree_of_index(
    container: &Container,
    index: &Index,
) -> Result<(Tree, HashMap<u32, Vec<u8>>)> {
    let mut tree = Tree::default();
    let mut paths = HashMap::new();
    let mut objects = HashMap::new();
    let mut left_out = LeftOut::default();
    // Directories first, by depth, so that an entry which comes before its parent does not lose to
    // an implied directory.
    for entry in index.entries() {
        let Some(names) = components(entry.path) else {
            left_out.warn(entry.path, "no file system can hold this path");
            continue;
        };
        if tree.nodes.len() > MAX_NODES {
            return Err(Error::TooLarge(
                "the directories and files of the index (the limit is 4,194,304)",
            ));
        }
        let attr = Attr {
            mode: entry.mode,
            mtime_s: i64::try_from(entry.mtime_ns / 1_000_000_000).unwrap_or(i64::MAX),
            #[allow(clippy::cast_possible_truncation)] // below 10^9
            mtime_ns: (entry.mtime_ns % 1_000_000_000) as u32,
            ..Attr::default()
        };
        let (name, parent) = (names[names.len() - 1], parent_of(entry.path));
        if entry.mode & S_IFMT == S_IFDIR {
            let dir = tree.make_dirs(entry.path);
            tree.node_mut(dir).attr = attr;
            continue;
        }
        let dir = tree.make_dirs(parent);
        if tree
            .child(dir, name)
            .is_some_and(|id| tree.children(id).is_some_and(|c| !c.is_empty()))
        {
            left_out.warn(entry.path, "it is also a directory with entries");
            continue;
        }
        let identity = (
            entry.obj_offset,
            entry.mode,
            entry.mtime_ns,
            entry.orig_size,
        );
        if let Some(&id) = objects.get(&identity) {
            tree.link(dir, name, id);
            continue;
        }
        let unsupported =
            |what| Error::Unsupported(format!("{what} of {}", entry.path.escape_ascii()));
        let mut content = Content {
            offset: entry.obj_offset,
            stored: entry.obj_size,
            size: entry.orig_size,
            crc: entry.crc,
            comp: Compression::from_raw(entry.comp)
                .ok_or_else(|| unsupported("the compression"))?,
            enc: Encryption::from_raw(entry.enc).ok_or_else(|| unsupported("the encryption"))?,
            layout: Layout::Object,
            ..Content::default()
        };
        let kind = match entry.mode & S_IFMT {
            S_IFREG if entry.orig_size == 0 && entry.enc == 0 => Kind::File {
                size: 0,
                content: None,
            },
            S_IFREG => {
                let number = u32::try_from(tree.contents.len())
                    .map_err(|_| Error::TooLarge("more than 2^32 files"))?;
                if content.enc != Encryption::None {
                    paths.insert(number, entry.path.to_vec());
                    // Sealed frames are described by a rootfs section alone.
                    content.enc = Encryption::Whole;
                }
                tree.contents.push(content);
                Kind::File {
                    size: entry.orig_size,
                    content: Some(number),
                }
            }
            S_IFLNK => Kind::Symlink(target(container, &content, entry.path)?.into()),
            _ => {
                left_out.warn(entry.path, "neither file, directory nor symlink");
                continue;
            }
        };
        let id = tree.add(Node { attr, kind });
        tree.link(dir, name, id);
        if let Slot::Vacant(slot) = objects.entry(identity) {
            // Encrypted content is bound to one path.
            if entry.enc == 0 && entry.mode & S_IFMT == S_IFREG && entry.orig_size > 0 {
                slot.insert(id);
            }
        }
    }
    left_out.finish();
    Ok((tree, paths))
}

/// Entries that are left out: an index may have millions.
#[derive(Default)]
struct LeftOut(u64);

impl LeftOut {
    fn warn(&mut self, path: &[u8], why: &'static str) {
        self.0 += 1;
        if self.0 <= MAX_WARNED {
            let shown = &path[..path.len().min(MAX_WARNED_PATH)];
            tracing::warn!(path = %shown.escape_ascii(), "left out: {why}");
        }
    }

    fn finish(&self) {
        if self.0 > MAX_WARNED {
            tracing::warn!("left out entries of the index, {} altogether", self.0);
        }
    }
}

/// A symlink's target, which is read now: links are few and short, and useless if they cannot be
/// read.
fn target(container: &Container, content: &Content, path: &[u8]) -> Result<Vec<u8>> {
    let damaged = |reason| Error::Content {
        offset: content.offset,
        reason,
    };
    if content.size == 0 || content.size > MAX_TARGET {
        return Err(damaged("a symlink target has an impossible length"));
    }
    let decoder = bfc::content::Decoder {
        source: &**container.source(),
        len: container.len(),
        flavour: container.flavour(),
        key: None,
        check_hash: false,
    };
    let resolved = decoder.resolve(content)?;
    let mut out = vec![0; usize::try_from(content.size).unwrap_or(0)];
    if resolved.comp == Compression::None && resolved.enc == Encryption::None {
        if resolved.stored < content.size {
            return Err(damaged("a symlink target ends outside its object"));
        }
        read_exact_at(decoder.source, &mut out, resolved.offset)?;
        if decoder.flavour.crc(&out) != content.crc {
            return Err(damaged("a symlink target has a wrong checksum"));
        }
    } else {
        decoder.whole(&resolved, path, &mut out)?;
    }
    if out.contains(&0) {
        return Err(damaged("a symlink target has a NUL byte"));
    }
    Ok(out)
}

/// The components of a path, if a file system can show it.
fn components(path: &[u8]) -> Option<Vec<&[u8]>> {
    let names: Vec<_> = path.split(|&b| b == b'/').collect();
    names
        .iter()
        .all(|n| !n.is_empty() && *n != b"." && *n != b".." && n.len() <= 255 && !n.contains(&0))
        .then_some(names)
}

fn parent_of(path: &[u8]) -> &[u8] {
    path.iter()
        .rposition(|&b| b == b'/')
        .map_or(&[], |at| &path[..at])
}
