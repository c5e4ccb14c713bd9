//! Writes a rootfs section from a tree.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::Xattr;
use super::format::{
    COMPAT_ZSTD_CHECKSUM, Content, DENTRY_LEN, Dentry, Frame, HASH_LEN, INCOMPAT_1_0, INODE_LEN,
    Inode, LayerRecord, MAX_LAYERS, MAX_XATTR_DENTRIES, REGION_ALIGN, Region, SECTION_HEADER_LEN,
    SectionHeader, XATTR_DENTRY_LEN, hash,
};
use super::tree::{Kind, NodeId, Tree, kind_matches};
use crate::error::{Error, Result};
use crate::format::{MAX_PATH, S_IFMT};

/// Binary logarithm of a chunk's length: 16 KiB is read and hashed in some 15 µs, and its digest
/// adds 0.2 %.
const CHUNK_LOG2: u8 = 14;

/// How many paths the v1 index does not show.
pub type Unsaid = u64;

/// A layer to record: its facts, its compressed skeleton and its history.
#[derive(Debug, Clone, Default)]
pub struct LayerEntry {
    /// The record; the two regions are filled in here.
    pub record: LayerRecord,
    /// The compressed skeleton.
    pub skeleton: Vec<u8>,
    /// `created_by` of the layer's history entry.
    pub created_by: Vec<u8>,
}

/// The contents of a section besides the tree.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// Frame records of all contents.
    pub frames: Vec<Frame>,
    /// Binary logarithm of the frame length.
    pub frame_log2: u8,
    /// The layers, lowest first.
    pub layers: Vec<LayerEntry>,
    /// OCI image configuration, JSON.
    pub config: Vec<u8>,
    /// OCI manifest, JSON.
    pub manifest: Vec<u8>,
    /// How many paths the v1 index does not show.
    pub unsaid: Unsaid,
    /// A sealed empty message, zero when nothing is encrypted.
    pub key_check: [u8; 28],
    /// The path of each encrypted content, by number: its associated data.
    pub paths: HashMap<u32, Vec<u8>>,
}

/// Writes `tree` as a section. Inode numbers depend only on the tree: the root is 1, and then come
/// each directory's entries in order, directory by directory, so that inodes of one directory are
/// neighbours.
///
/// # Errors
/// [`Error::TooLarge`] when some count or offset does not fit its field.
pub fn build(tree: &Tree, extras: &Extras) -> Result<Vec<u8>> {
    let mut builder = Builder::new(tree);
    builder.number()?;
    builder.records()?;
    builder.xattr_dentries()?;
    builder.finish(extras)
}

struct Builder<'a> {
    tree: &'a Tree,
    /// Nodes in the order of their inode numbers.
    order: Vec<NodeId>,
    /// Inode number of each node, 0 for one without a name.
    ino: Vec<u32>,
    nlink: Vec<u32>,
    parent: Vec<u32>,
    /// Number of the dentry that names each directory.
    dentry: Vec<u32>,
    dentries: Vec<u8>,
    inodes: Vec<u8>,
    names: Vec<u8>,
    xattrs: Vec<u8>,
    interned: HashMap<Vec<u8>, u32>,
}

fn narrow<T: TryFrom<usize>>(value: usize, what: &'static str) -> Result<T> {
    T::try_from(value).map_err(|_| Error::TooLarge(what))
}

impl<'a> Builder<'a> {
    fn new(tree: &'a Tree) -> Self {
        let n = tree.nodes.len();
        Self {
            tree,
            order: vec![Tree::ROOT],
            ino: vec![0; n],
            nlink: vec![0; n],
            parent: vec![0; n],
            dentry: vec![0; n],
            dentries: Vec::new(),
            inodes: Vec::new(),
            names: Vec::new(),
            xattrs: vec![0; 8], // where the list of dentries is; so no set has offset 0
            interned: HashMap::new(),
        }
    }

    fn number(&mut self) -> Result<()> {
        let root = Tree::ROOT as usize;
        (self.ino[root], self.parent[root], self.nlink[root]) = (1, 1, 2);
        let mut next = 0;
        while let Some(&dir) = self.order.get(next) {
            next += 1;
            let Some(children) = self.tree.children(dir) else {
                continue;
            };
            for &child in children.values() {
                let at = child as usize;
                let is_dir = self.tree.children(child).is_some();
                if self.ino[at] == 0 {
                    self.order.push(child);
                    self.ino[at] = narrow(self.order.len(), "more than 2^32 inodes")?;
                } else if is_dir {
                    return Err(Error::TooLarge("a directory with two names"));
                }
                if is_dir {
                    self.parent[at] = self.ino[dir as usize];
                    self.nlink[at] = 2;
                    self.nlink[dir as usize] += 1;
                } else {
                    self.nlink[at] += 1;
                }
            }
        }
        Ok(())
    }

    fn records(&mut self) -> Result<()> {
        self.inodes.reserve(self.order.len() * INODE_LEN);
        let order = std::mem::take(&mut self.order);
        for &id in &order {
            let node = self.tree.node(id);
            if !kind_matches(node) {
                return Err(Error::TooLarge("a node whose mode is not of its kind"));
            }
            let (size, data) = match &node.kind {
                Kind::Dir(children) => {
                    let first = self.dentries.len() / DENTRY_LEN;
                    for (name, &child) in children {
                        let number =
                            narrow(self.dentries.len() / DENTRY_LEN, "more than 2^32 names")?;
                        // Of a directory, this is the only one, and the directory comes behind its
                        // parent.
                        self.dentry[child as usize] = number;
                        let dentry = Dentry {
                            number,
                            dir: self.ino[id as usize],
                            ino: self.ino[child as usize],
                            name: self.name(name)?,
                            name_len: narrow(name.len(), "a name")?,
                            #[allow(clippy::cast_possible_truncation)] // four bits
                            kind: ((self.tree.node(child).attr.mode & S_IFMT) >> 12) as u8,
                        };
                        self.dentries.extend_from_slice(&dentry.encode());
                    }
                    (children.len() as u64, first as u64)
                }
                Kind::File { size, content } => (*size, content.map_or(0, u64::from)),
                Kind::Symlink(target) => (target.len() as u64, u64::from(self.name(target)?)),
                Kind::Device(major, minor) => (0, u64::from(*major) << 32 | u64::from(*minor)),
                Kind::Other => (0, 0),
            };
            let is_dir = self.tree.children(id).is_some();
            let inode = Inode {
                ino: self.ino[id as usize],
                mode: node.attr.mode,
                nlink: self.nlink[id as usize],
                uid: node.attr.uid,
                gid: node.attr.gid,
                mtime_s: node.attr.mtime_s,
                mtime_ns: node.attr.mtime_ns,
                xattr: self.intern(&node.attr.xattrs)?,
                size,
                data,
                parent: self.parent[id as usize],
                dentry: if is_dir { self.dentry[id as usize] } else { 0 },
            };
            self.inodes.extend_from_slice(&inode.encode());
        }
        self.order = order;
        Ok(())
    }

    fn name(&mut self, name: &[u8]) -> Result<u32> {
        let at = narrow(self.names.len(), "more than 4 GiB of names")?;
        self.names.extend_from_slice(name);
        Ok(at)
    }

    fn intern(&mut self, xattrs: &[Xattr]) -> Result<u32> {
        if xattrs.is_empty() {
            return Ok(0);
        }
        let mut sorted: Vec<_> = xattrs.iter().collect();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        let mut set = vec![0; 8];
        for xattr in sorted {
            set.extend_from_slice(
                &narrow::<u16>(xattr.name.len(), "an attribute's name")?.to_le_bytes(),
            );
            set.extend_from_slice(&[0; 2]);
            set.extend_from_slice(
                &narrow::<u32>(xattr.value.len(), "an attribute's value")?.to_le_bytes(),
            );
            set.extend_from_slice(&xattr.name);
            set.extend_from_slice(&xattr.value);
        }
        let total: u32 = narrow(set.len(), "an attribute set")?;
        set[..4].copy_from_slice(&total.to_le_bytes());
        set[4..8].copy_from_slice(&narrow::<u32>(xattrs.len(), "an attribute set")?.to_le_bytes());
        match self.interned.entry(set) {
            Entry::Occupied(known) => Ok(*known.get()),
            Entry::Vacant(new) => {
                let at = narrow(self.xattrs.len(), "more than 4 GiB of attributes")?;
                self.xattrs.extend_from_slice(new.key());
                Ok(*new.insert(at))
            }
        }
    }

    /// Lists the dentries that lead to attributes, unless there are many.
    fn xattr_dentries(&mut self) -> Result<()> {
        if self.interned.is_empty() {
            return Ok(());
        }
        let nodes = self.tree.nodes.iter();
        let mut leads: Vec<bool> = nodes.map(|node| !node.attr.xattrs.is_empty()).collect();
        // Directories come before those that are in them, but not before every file: it may have
        // another name elsewhere.
        for &id in self.order.iter().rev() {
            let mut children = self
                .tree
                .children(id)
                .into_iter()
                .flat_map(|children| children.values());
            leads[id as usize] |= children.any(|&child| leads[child as usize]);
        }
        let mut list = Vec::new();
        for &dir in self.order.iter().filter(|&&id| leads[id as usize]) {
            let children = self
                .tree
                .children(dir)
                .into_iter()
                .flat_map(|children| children.values());
            for (index, _) in children
                .enumerate()
                .filter(|(_, child)| leads[**child as usize])
            {
                list.extend_from_slice(&self.ino[dir as usize].to_le_bytes());
                list.extend_from_slice(&narrow::<u32>(index, "a directory")?.to_le_bytes());
            }
        }
        let count = list.len() / XATTR_DENTRY_LEN;
        if count <= MAX_XATTR_DENTRIES {
            let at: u32 = narrow(self.xattrs.len(), "more than 4 GiB of attributes")?;
            self.xattrs.extend_from_slice(&list);
            self.xattrs[..4].copy_from_slice(&at.to_le_bytes());
            self.xattrs[4..8]
                .copy_from_slice(&narrow::<u32>(count, "a list of dentries")?.to_le_bytes());
        }
        Ok(())
    }

    fn finish(mut self, extras: &Extras) -> Result<Vec<u8>> {
        let mut contents =
            Vec::with_capacity(self.tree.contents.len() * super::format::CONTENT_LEN);
        for (index, content) in (0_u32..).zip(&self.tree.contents) {
            let mut content: Content = *content;
            if let Some(path) = extras.paths.get(&index) {
                if path.len() > MAX_PATH {
                    return Err(Error::TooLarge(
                        "the path of an encrypted file (the limit is 65,535 bytes)",
                    ));
                }
                content.path = self.name(path)?;
                content.path_len = narrow(path.len(), "a path")?;
            }
            contents.extend_from_slice(&content.encode());
        }
        let mut blobs = Vec::new();
        let mut blob = |bytes: &[u8]| {
            let region = Region {
                offset: blobs.len() as u64,
                size: bytes.len() as u64,
            };
            blobs.extend_from_slice(bytes);
            region
        };
        let (config, manifest) = (blob(&extras.config), blob(&extras.manifest));
        let mut layers = Vec::new();
        if extras.layers.len() > MAX_LAYERS {
            return Err(Error::TooLarge("the number of layers (the limit is 4096)"));
        }
        for layer in &extras.layers {
            let mut record = layer.record.clone();
            record.skeleton = blob(&layer.skeleton);
            record.created_by = blob(&layer.created_by);
            layers.extend_from_slice(&record.encode());
        }
        let frames: Vec<u8> = extras.frames.iter().flat_map(Frame::encode).collect();

        let mut out = vec![0; SECTION_HEADER_LEN];
        let mut region = |bytes: Vec<u8>| {
            out.resize(out.len().next_multiple_of(REGION_ALIGN), 0);
            let region = Region {
                offset: out.len() as u64,
                size: bytes.len() as u64,
            };
            out.extend_from_slice(&bytes);
            region
        };
        let mut header = SectionHeader {
            incompat: INCOMPAT_1_0,
            compat: COMPAT_ZSTD_CHECKSUM,
            chunk_log2: CHUNK_LOG2,
            frame_log2: extras.frame_log2,
            inodes: region(self.inodes),
            dentries: region(self.dentries),
            names: region(self.names),
            xattrs: region(self.xattrs),
            contents: region(contents),
            frames: region(frames),
            layers: region(layers),
            blobs: region(blobs),
            unsaid: extras.unsaid,
            key_check: extras.key_check,
            ..SectionHeader::default()
        };
        // The two documents are named by their place in the section's blobs.
        (header.config, header.manifest) = (config, manifest);
        out.resize(out.len().next_multiple_of(REGION_ALIGN), 0);
        let table: Vec<u8> = out
            .chunks(1 << CHUNK_LOG2)
            .enumerate()
            .flat_map(|(i, chunk)| hash(&chunk[if i == 0 { SECTION_HEADER_LEN } else { 0 }..]))
            .collect();
        header.chunks = Region {
            offset: out.len() as u64,
            size: table.len() as u64,
        };
        header.table_hash = *blake3::hash(&table).as_bytes();
        debug_assert_eq!(table.len() % HASH_LEN, 0);
        out.extend_from_slice(&table);
        header.size = out.len() as u64;
        out[..SECTION_HEADER_LEN].copy_from_slice(&header.encode());
        Ok(out)
    }
}
