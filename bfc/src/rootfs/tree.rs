//! A root file system in memory: the result of merging layers, from which a section is built.

use std::collections::BTreeMap;

use super::Xattr;
use super::format::Content;
use crate::format::{S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};

/// Number of a node in its [`Tree`].
pub type NodeId = u32;

/// The attributes of every inode.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attr {
    /// Type and permission bits, as in `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970.
    pub mtime_s: i64,
    /// Modification time, nanoseconds past the second, below 10^9.
    pub mtime_ns: u32,
    /// Extended attributes, by full name.
    pub xattrs: Vec<Xattr>,
}

impl Attr {
    /// The attributes of a directory that no layer describes: mode 0755, owner root, time 1970.
    pub fn implied_dir() -> Self {
        Self {
            mode: S_IFDIR | 0o755,
            ..Self::default()
        }
    }
}

/// The type of an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory: names and nodes.
    Dir(BTreeMap<Box<[u8]>, NodeId>),
    /// A regular file: its length in bytes, and its content (number in [`Tree::contents`]; none if
    /// it is empty).
    File {
        /// Length, bytes.
        size: u64,
        /// Content, `None` when the file is empty.
        content: Option<u32>,
    },
    /// A symbolic link and its target.
    Symlink(Box<[u8]>),
    /// A character or block device: major and minor number.
    Device(u32, u32),
    /// A fifo or a socket.
    Other,
}

/// An inode with its attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Attributes; the type bits of the mode agree with `kind`.
    pub attr: Attr,
    /// Its type.
    pub kind: Kind,
}

/// A root file system in memory. Node 0 is the root. Several names may lead to one node that is not
/// a directory: hard links.
#[derive(Debug, Clone)]
pub struct Tree {
    /// The nodes; some may have no name any more.
    pub nodes: Vec<Node>,
    /// The contents that files refer to, in the order in which the image has them.
    pub contents: Vec<Content>,
}

impl Default for Tree {
    fn default() -> Self {
        Self {
            nodes: vec![Node {
                attr: Attr::implied_dir(),
                kind: Kind::Dir(BTreeMap::new()),
            }],
            contents: Vec::new(),
        }
    }
}

impl Tree {
    /// The root's node.
    pub const ROOT: NodeId = 0;

    /// The node with this number.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    /// The node with this number, to change it.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id as usize]
    }

    /// A directory's names; `None` for anything else.
    pub fn children(&self, id: NodeId) -> Option<&BTreeMap<Box<[u8]>, NodeId>> {
        match &self.node(id).kind {
            Kind::Dir(children) => Some(children),
            _ => None,
        }
    }

    /// Adds a node that no name leads to yet.
    pub fn add(&mut self, node: Node) -> NodeId {
        #[allow(clippy::cast_possible_truncation)]
        // building a section refuses more than 2^32 inodes
        let id = self.nodes.len() as NodeId;
        self.nodes.push(node);
        id
    }

    /// Gives a node a name in a directory, and replaces the node that had it. Does nothing if `dir`
    /// is not a directory.
    pub fn link(&mut self, dir: NodeId, name: &[u8], id: NodeId) {
        if let Kind::Dir(children) = &mut self.node_mut(dir).kind {
            children.insert(name.into(), id);
        }
    }

    /// Takes a name out of a directory.
    pub fn unlink(&mut self, dir: NodeId, name: &[u8]) {
        if let Kind::Dir(children) = &mut self.node_mut(dir).kind {
            children.remove(name);
        }
    }

    /// The node a name leads to, in one directory.
    pub fn child(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        self.children(dir)?.get(name).copied()
    }

    /// The directory at `path` (components separated by `/`; empty ones are ignored). Creates
    /// missing directories as [`Attr::implied_dir`], and replaces anything on the path that is not
    /// a directory.
    pub fn make_dirs(&mut self, path: &[u8]) -> NodeId {
        let mut dir = Self::ROOT;
        for name in path.split(|&b| b == b'/').filter(|n| !n.is_empty()) {
            dir = match self.child(dir, name) {
                Some(id) if matches!(self.node(id).kind, Kind::Dir(_)) => id,
                _ => {
                    let id = self.add(Node {
                        attr: Attr::implied_dir(),
                        kind: Kind::Dir(BTreeMap::new()),
                    });
                    self.link(dir, name, id);
                    id
                }
            };
        }
        dir
    }
}

/// The bits that tell a node's kind, for a mode.
pub(crate) fn kind_matches(node: &Node) -> bool {
    let kind = node.attr.mode & S_IFMT;
    match node.kind {
        Kind::Dir(_) => kind == S_IFDIR,
        Kind::File { .. } => kind == S_IFREG,
        Kind::Symlink(_) => kind == S_IFLNK,
        Kind::Device(..) => kind == crate::format::S_IFCHR || kind == crate::format::S_IFBLK,
        Kind::Other => kind == crate::format::S_IFIFO || kind == crate::format::S_IFSOCK,
    }
}
