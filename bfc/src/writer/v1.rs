//! The v1 view of a tree, which the reference tool lists, extracts and verifies.

use std::collections::HashMap;

use super::{Paths, Tail};
use crate::crc::Flavour;
use crate::error::{Error, Result};
use crate::format::{Encryption, IndexEntry, OBJECT_LEN, ObjectHeader, S_IFMT};
use crate::rootfs::{Attr, Kind, NodeId, Tree};

/// Longest path that the reference tool extracts under its own name, bytes.
const MAX_PATH: usize = 1023;

/// The index blob without its trailer.
pub(super) struct Index {
    pub(super) blob: Vec<u8>,
    /// How many names it does not show.
    pub(super) unsaid: u64,
}

/// Makes the index of `tree`; the objects of directories, symlinks and empty files are appended to
/// `tail`.
pub(super) fn index(
    tree: &Tree,
    paths: &Paths,
    tail: &mut Tail,
    flavour: Flavour,
) -> Result<Index> {
    let mut writer = Writer {
        tree,
        paths,
        tail,
        flavour,
        plain: HashMap::new(),
        links: HashMap::new(),
        out: vec![0; 8],
        count: 0,
        unsaid: 0,
    };
    writer.out[..4].copy_from_slice(&1_u32.to_le_bytes());
    writer.walk()?;
    let count = writer.count.to_le_bytes();
    writer.out[4..8].copy_from_slice(&count);
    Ok(Index {
        blob: writer.out,
        unsaid: writer.unsaid,
    })
}

struct Writer<'a> {
    tree: &'a Tree,
    paths: &'a Paths,
    tail: &'a mut Tail,
    flavour: Flavour,
    /// Objects without content, by type: where they are. One serves all, for only the index refers
    /// to objects.
    plain: HashMap<u8, (u64, u64)>,
    /// Symlink objects, by target.
    links: HashMap<&'a [u8], (u64, u64, u32)>,
    out: Vec<u8>,
    count: u32,
    unsaid: u64,
}

/// A directory entry, or the entries below one.
struct Step {
    path: Vec<u8>,
    id: NodeId,
    below: bool,
}

impl Writer<'_> {
    /// Visits all names in `strcmp` order of their whole paths: a directory's own name sorts
    /// unchanged, its entries as if the name ended in `/`.
    fn walk(&mut self) -> Result<()> {
        let mut stack = vec![Step {
            path: Vec::new(),
            id: Tree::ROOT,
            below: true,
        }];
        while let Some(step) = stack.pop() {
            if !step.below {
                self.entry(&step.path, step.id)?;
                continue;
            }
            let Some(children) = self.tree.children(step.id) else {
                continue;
            };
            let start = stack.len();
            for (name, &id) in children {
                let path = [&step.path[..], name].concat();
                if self.tree.children(id).is_some() {
                    stack.push(Step {
                        path: [&path[..], b"/"].concat(),
                        id,
                        below: true,
                    });
                }
                stack.push(Step {
                    path,
                    id,
                    below: false,
                });
            }
            stack[start..].sort_unstable_by(|a, b| b.path.cmp(&a.path));
        }
        Ok(())
    }

    fn entry(&mut self, path: &[u8], id: NodeId) -> Result<()> {
        let node = self.tree.node(id);
        if !sayable(path) {
            self.unsaid += 1;
            return Ok(());
        }
        let mut entry = IndexEntry {
            path,
            obj_offset: 0,
            obj_size: 0,
            mode: node.attr.mode & (S_IFMT | 0o7777),
            mtime_ns: mtime(&node.attr),
            comp: 0,
            enc: 0,
            orig_size: 0,
            crc: 0,
        };
        match &node.kind {
            Kind::Dir(_) => (entry.obj_offset, entry.obj_size) = self.plain(2),
            Kind::File { content: None, .. } => (entry.obj_offset, entry.obj_size) = self.plain(1),
            Kind::File {
                content: Some(number),
                size,
            } => {
                let content = self
                    .tree
                    .contents
                    .get(*number as usize)
                    .ok_or(Error::TooLarge("a content's number"))?;
                // Encrypted content can be decrypted under one path only.
                if content.enc != Encryption::None
                    && self.paths.get(number).is_some_and(|p| p != path)
                {
                    self.unsaid += 1;
                    return Ok(());
                }
                let header = ObjectHeader::of_file().content_offset();
                entry.obj_offset = content.offset - header;
                entry.obj_size = header + content.stored + super::pipeline::table_len(content);
                (entry.comp, entry.enc) = (content.comp.raw().into(), content.enc.raw().into());
                (entry.orig_size, entry.crc) = (*size, content.crc);
            }
            Kind::Symlink(target) => {
                (entry.obj_offset, entry.obj_size, entry.crc) = self.symlink(target);
                entry.orig_size = target.len() as u64;
            }
            Kind::Device(..) | Kind::Other => {
                self.unsaid += 1;
                return Ok(());
            }
        }
        entry.encode(&mut self.out);
        self.count = self
            .count
            .checked_add(1)
            .ok_or(Error::TooLarge("more than 2^32 paths"))?;
        Ok(())
    }

    /// The object of a directory or an empty file.
    fn plain(&mut self, kind: u8) -> (u64, u64) {
        if let Some(&known) = self.plain.get(&kind) {
            return known;
        }
        let at = self.tail.position();
        let header = ObjectHeader {
            kind,
            ..ObjectHeader::default()
        };
        self.tail.bytes.extend_from_slice(&header.encode());
        self.tail
            .bytes
            .resize(self.tail.bytes.len() + padding(OBJECT_LEN), 0);
        let object = (at, header.content_offset());
        self.plain.insert(kind, object);
        object
    }
}

impl<'a> Writer<'a> {
    fn symlink(&mut self, target: &'a [u8]) -> (u64, u64, u32) {
        if let Some(&known) = self.links.get(target) {
            return known;
        }
        let at = self.tail.position();
        let crc = self.flavour.crc(target);
        let len = target.len() as u64;
        let header = ObjectHeader {
            kind: 3,
            orig_size: len,
            stored_size: len,
            crc,
            ..ObjectHeader::default()
        };
        let bytes = &mut self.tail.bytes;
        bytes.extend_from_slice(&header.encode());
        bytes.resize(bytes.len() + padding(OBJECT_LEN), 0);
        bytes.extend_from_slice(target);
        bytes.resize(bytes.len() + padding(target.len()), 0);
        let object = (at, self.tail.position() - at, crc);
        self.links.insert(target, object);
        object
    }
}

/// Bytes that align `len`.
fn padding(len: usize) -> usize {
    len.next_multiple_of(16) - len
}

/// Nanoseconds since 1970; v1 cannot express times before 1970 or after 2554.
fn mtime(attr: &Attr) -> u64 {
    let seconds = u64::try_from(attr.mtime_s).unwrap_or(0);
    seconds
        .checked_mul(1_000_000_000)
        .and_then(|ns| ns.checked_add(attr.mtime_ns.into()))
        .unwrap_or(u64::MAX)
}

/// Whether v1 has a way to say this path, and the reference tool one to extract it (FORMAT.md,
/// "Paths").
fn sayable(path: &[u8]) -> bool {
    path.len() <= MAX_PATH
        && !path.ends_with(b".")
        && std::str::from_utf8(path).is_ok()
        && path
            .split(|&b| b == b'/')
            .all(|name| !name.ends_with(b".."))
}
