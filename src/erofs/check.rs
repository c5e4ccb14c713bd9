//! What is checked of metadata before the kernel gets them. A confined process makes them, out of
//! an image that a stranger may have made; so they are as untrusted as the image.
//!
//! It takes time in proportion to the metadata's length, whatever they contain: no byte is looked
//! at more often than there are bytes (`spend`). It takes memory for a bit for each place where an
//! inode or an attribute can be, and for the directories that it has yet to look at.

use super::format::{INODE_SLOT, XATTR_ALIGN, file_type};
use super::layout::DEVICES;
pub use super::read::Damage;
use super::read::{Metadata, Node};
use bfc::format::{S_IFLNK, S_IFMT, S_IFREG};

/// Checks that metadata are as [`super::write`] makes them, for devices of this length (bytes): the
/// first block is exactly as expected; every inode that is reached from the root lies inside, with
/// its attributes and directory blocks, and nothing overlaps so much that reading it all would take
/// longer than its length; all contents are inside the devices; directories are a tree, and their
/// names sorted and valid.
///
/// # Errors
/// [`Damage`], the first that is found.
pub fn check(metadata: &[u8], devices: [u64; DEVICES]) -> Result<(), Damage> {
    let image = Metadata::open(metadata, devices)?;
    let mut check = Check {
        image,
        inodes: Seen::new(metadata.len(), INODE_SLOT),
        xattrs: Seen::new(metadata.len(), XATTR_ALIGN as u64),
        spent: 0,
        limit: metadata.len(),
        count: 0,
        waiting: Vec::new(),
    };
    let root = image.root()?;
    if !root.is_dir() {
        return Err(at(root.nid, "a root that is no directory"));
    }
    check.reach(&root, root.nid)?;
    while let Some((nid, parent)) = check.waiting.pop() {
        let node = image.node(nid.into())?;
        check.directory(&node, parent.into())?;
    }
    if image.super_block().inodes != check.count {
        return Err(Damage {
            offset: 0,
            reason: "a wrong number of inodes",
        });
    }
    Ok(())
}

fn at(nid: u64, reason: &'static str) -> Damage {
    Damage {
        offset: nid.saturating_mul(INODE_SLOT),
        reason,
    }
}

/// A bit for each multiple of a length.
struct Seen {
    bits: Vec<u64>,
    step: u64,
}

impl Seen {
    fn new(len: usize, step: u64) -> Self {
        let count = len as u64 / step;
        Self {
            bits: vec![0; usize::try_from(count.div_ceil(64)).unwrap_or(0)],
            step,
        }
    }

    /// Whether it is the first time that this offset, a multiple of the step, is seen; `None` if it
    /// is outside.
    fn first(&mut self, offset: u64) -> Option<bool> {
        let number = offset / self.step;
        let word = self.bits.get_mut(usize::try_from(number / 64).ok()?)?;
        let bit = 1 << (number % 64);
        let is_first = *word & bit == 0;
        *word |= bit;
        Some(is_first)
    }
}

struct Check<'a> {
    image: Metadata<'a>,
    inodes: Seen,
    xattrs: Seen,
    /// How many bytes were looked at.
    spent: usize,
    limit: usize,
    /// How many inodes were reached.
    count: u64,
    /// Directories to be looked at, and their parents.
    waiting: Vec<(u32, u32)>,
}

impl Check<'_> {
    /// Counts bytes that are looked at.
    fn spend(&mut self, node: &Node, len: usize) -> Result<(), Damage> {
        self.spent = self.spent.saturating_add(len);
        if self.spent > self.limit {
            return Err(at(node.nid, "structures that overlap"));
        }
        Ok(())
    }

    /// An inode that an entry of the directory `parent` leads to.
    fn reach(&mut self, node: &Node, parent: u64) -> Result<(), Damage> {
        let offset = node.nid.saturating_mul(INODE_SLOT);
        let first = self.inodes.first(offset);
        if !first.ok_or(at(node.nid, "an inode outside the metadata"))? {
            if node.is_dir() {
                return Err(at(node.nid, "a directory with two names"));
            }
            return Ok(());
        }
        self.count += 1;
        self.spend(node, node.head_len())?;
        for offset in self.image.xattr_offsets(node)? {
            let first = self.xattrs.first(offset);
            if first.ok_or(at(node.nid, "an attribute outside the metadata"))? {
                let len = self.image.xattr_at(offset)?.len();
                self.spend(node, len)?;
            }
        }
        match node.mode() & S_IFMT {
            S_IFREG => {
                let chunks = self.image.chunk_bytes(node)?;
                self.spend(node, chunks)?;
                self.image.data(node)?.try_for_each(|data| data.map(drop))?;
            }
            S_IFLNK => {
                let target = self.image.target(node)?.len();
                self.spend(node, target)?;
            }
            _ if node.is_dir() => {
                // Numbers are below the length.
                let number = |nid| u32::try_from(nid).map_err(|_| at(nid, "a wrong number"));
                self.waiting.push((number(node.nid)?, number(parent)?));
            }
            _ => {}
        }
        Ok(())
    }

    fn directory(&mut self, node: &Node, parent: u64) -> Result<(), Damage> {
        let mut last: &[u8] = &[];
        let mut dots = 0;
        for block in self.image.blocks(node)? {
            self.spend(node, block.len())?;
            for entry in block.entries()? {
                let entry = entry?;
                if entry.name <= last {
                    return Err(at(node.nid, "names that are not in order"));
                }
                last = entry.name;
                let expected = match entry.name {
                    b"." => Some(node.nid),
                    b".." => Some(parent),
                    _ => None,
                };
                let target = match expected {
                    Some(nid) if nid != entry.nid => {
                        return Err(at(node.nid, "`.` or `..` leads elsewhere"));
                    }
                    Some(_) => *node,
                    None => self.image.node(entry.nid)?,
                };
                if file_type(target.mode()) != Some(entry.kind) {
                    return Err(at(node.nid, "an entry of another type than its inode"));
                }
                match expected {
                    Some(_) => dots += 1,
                    None => self.reach(&target, node.nid)?,
                }
            }
        }
        if dots != 2 {
            return Err(at(node.nid, "a directory without `.` or `..`"));
        }
        Ok(())
    }
}
