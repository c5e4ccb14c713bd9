//! Merges layers: a pure function from layers of changes to a tree.
//!
//! The rules are OCI's (image-spec, layer.md); where it says nothing, they follow umoci and
//! containerd:
//! - Whiteouts and opaque marks of a layer affect only the layers below it, wherever they are in
//!   it. They are therefore applied first. Where the layer has a directory of its own in place of
//!   a symlink, a mark in that directory does not affect what the symlink leads to.
//! - Then its nodes, in order. A directory over a directory takes its attributes and keeps its
//!   entries; anything else replaces what has the name, with all that is below it.
//! - A hard link names the inode that its target names at that moment, also one of a lower layer,
//!   and also one that the same layer hides (a rename); it has no attributes of its own.
//! - What AUFS keeps in its directory for hard links can be linked to, and is not shown.
//! - A symlink among an entry's parents is followed inside the tree (`..` and absolute targets end
//!   at its root), as if the tree were chrooted into. The last component is never followed.
//! - Parents that are missing, or are no directories, become [`Attr::implied_dir`].

use std::collections::{HashMap, HashSet};

use bfc::rootfs::{Attr, Kind, Node, NodeId, Tree};

/// Most inodes that a tree may have, replaced ones included: what memory should hold (some 2 GiB
/// with the section that is made of it). A layer of a few bytes can ask for many, for a path of 64
/// KiB implies 32,768 directories.
pub const MAX_NODES: usize = 1 << 22;
/// The directory in the root in which AUFS keeps files with several names.
pub(super) const AUFS_LINKS: &[u8] = b".wh..wh.plnk";
/// How many symlinks to follow for one path, as in the kernel.
const MAX_SYMLINKS: usize = 40;

/// One change that a layer makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Where: names separated by single slashes, none of them empty, `.` or `..`. The root's is
    /// empty.
    pub path: Vec<u8>,
    /// What.
    pub what: What,
}

/// The effect of a layer at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Everything at the path in the lower layers is hidden.
    Whiteout,
    /// The directory's entries in the lower layers are hidden.
    Opaque,
    /// Another name of the file at this path, whose form is that of [`Change::path`].
    HardLink(Vec<u8>),
    /// A node. A directory's entries are changes of their own.
    Node(Node),
}

/// A change that cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` {reason}", String::from_utf8_lossy(path))]
pub struct Error {
    /// Path of the change.
    pub path: Vec<u8>,
    /// Why it cannot be made.
    pub reason: Reason,
}

/// Why a change cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The target of a hard link does not exist.
    #[error("is a hard link to `{}`, which does not exist", String::from_utf8_lossy(.0))]
    NoTarget(Vec<u8>),
    /// The target of a hard link is a directory.
    #[error("is a hard link to `{}`, which is a directory", String::from_utf8_lossy(.0))]
    DirTarget(Vec<u8>),
    /// More than 40 symlinks on the way.
    #[error("leads through too many symlinks")]
    Symlinks,
    /// More inodes than a tree may have.
    #[error("exceeds the limit of {MAX_NODES} inodes in a tree")]
    TooMany,
    /// The root would not be a directory any more.
    #[error("is the root, but not a directory")]
    Root,
}

/// Merges layers, lowest first.
///
/// # Errors
/// [`Error`], at the first change that cannot be made.
pub fn merge<L: IntoIterator<Item = Change>>(
    layers: impl IntoIterator<Item = L>,
) -> Result<Tree, Error> {
    let mut tree = Tree::default();
    for layer in layers {
        apply(&mut tree, layer.into_iter().collect())?;
    }
    Ok(tree)
}

/// Puts one layer on top of a tree.
///
/// # Errors
/// As [`merge`]; the tree is then of no use.
pub fn apply(tree: &mut Tree, layer: Vec<Change>) -> Result<(), Error> {
    let hidden = mark(tree, &layer)?;
    for Change { path, what } in layer {
        let put = match what {
            What::Node(node) => put(tree, &path, node),
            What::HardLink(target) => {
                let below = hidden.get(&target).copied();
                hard_link(tree, &path, &target, below)
            }
            What::Whiteout | What::Opaque => Ok(()),
        };
        let room = if tree.nodes.len() > MAX_NODES {
            Err(Reason::TooMany)
        } else {
            Ok(())
        };
        put.and(room).map_err(|reason| Error { path, reason })?;
    }
    tree.unlink(Tree::ROOT, AUFS_LINKS);
    Ok(())
}

/// Applies a layer's marks, which must come before its first node. The inodes that its hard links
/// name in the layers below.
fn mark(tree: &mut Tree, layer: &[Change]) -> Result<HashMap<Vec<u8>, NodeId>, Error> {
    let (mut links, mut dirs, mut marks) = (HashMap::new(), HashSet::new(), Vec::new());
    for Change { path, what } in layer {
        match what {
            What::Whiteout | What::Opaque => marks.push((path, what)),
            What::Node(node) if matches!(node.kind, Kind::Dir(_)) => {
                dirs.insert(path.as_slice());
            }
            What::Node(_) | What::HardLink(_) => {}
        }
    }
    if marks.is_empty() {
        return Ok(links);
    }
    for Change { what, .. } in layer {
        if let What::HardLink(target) = what
            && let Ok(Some(id)) = find(tree, target)
        {
            links.insert(target.clone(), id);
        }
    }
    for (path, what) in marks {
        let missing = Missing::Nothing { replaced: &dirs };
        let marked = match what {
            What::Whiteout => remove(tree, path, missing),
            _ => clear(tree, path, missing),
        };
        marked.map_err(|reason| Error {
            path: path.clone(),
            reason,
        })?;
    }
    Ok(links)
}

fn remove(tree: &mut Tree, path: &[u8], missing: Missing<'_>) -> Result<(), Reason> {
    let Some((parent, name)) = split(path) else {
        return Ok(());
    };
    if let Some(dir) = walk(tree, parent, missing)? {
        tree.unlink(dir, name);
    }
    Ok(())
}

fn clear(tree: &mut Tree, path: &[u8], missing: Missing<'_>) -> Result<(), Reason> {
    if let Some(dir) = walk(tree, path, missing)?
        && let Kind::Dir(entries) = &mut tree.node_mut(dir).kind
    {
        entries.clear();
    }
    Ok(())
}

fn put(tree: &mut Tree, path: &[u8], node: Node) -> Result<(), Reason> {
    let is_dir = matches!(node.kind, Kind::Dir(_));
    let Some((parent, name)) = split(path) else {
        if !is_dir {
            return Err(Reason::Root);
        }
        tree.node_mut(Tree::ROOT).attr = node.attr;
        return Ok(());
    };
    let parent = parent_dir(tree, parent)?;
    match tree.child(parent, name) {
        Some(known) if is_dir && tree.children(known).is_some() => {
            tree.node_mut(known).attr = node.attr
        }
        _ => {
            let id = tree.add(node);
            tree.link(parent, name, id);
        }
    }
    Ok(())
}

/// The node at a path, if there is one.
fn find(tree: &mut Tree, path: &[u8]) -> Result<Option<NodeId>, Reason> {
    let Some((parent, name)) = split(path) else {
        return Ok(Some(Tree::ROOT));
    };
    let missing = Missing::Nothing {
        replaced: &HashSet::new(),
    };
    let dir = walk(tree, parent, missing)?;
    Ok(dir.and_then(|dir| tree.child(dir, name)))
}

/// `below` is what the target names in the layers below.
fn hard_link(
    tree: &mut Tree,
    path: &[u8],
    target: &[u8],
    below: Option<NodeId>,
) -> Result<(), Reason> {
    let id = find(tree, target)?.or(below);
    let id = id.ok_or_else(|| Reason::NoTarget(target.to_vec()))?;
    if tree.children(id).is_some() {
        return Err(Reason::DirTarget(target.to_vec()));
    }
    let (parent, name) = split(path).ok_or(Reason::Root)?;
    let parent = parent_dir(tree, parent)?;
    tree.link(parent, name, id);
    Ok(())
}

/// A path's parent and last component; `None` for the root.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => Some((&path[..at], &path[at + 1..])),
        None if path.is_empty() => None,
        None => Some((b"", path)),
    }
}

#[derive(Clone, Copy)]
enum Missing<'a> {
    /// A path with a missing component leads nowhere.
    Nothing {
        /// Where the layer has directories: what is no directory there will be replaced, and leads
        /// nowhere either.
        replaced: &'a HashSet<&'a [u8]>,
    },
    /// A missing component, or one that is not a directory, becomes a directory.
    Implied,
}

impl Missing<'_> {
    /// Whether the layer has a directory at this path.
    fn is_replaced(self, path: &[u8]) -> bool {
        match self {
            Self::Nothing { replaced } => replaced.contains(path),
            Self::Implied => false,
        }
    }
}

fn parent_dir(tree: &mut Tree, path: &[u8]) -> Result<NodeId, Reason> {
    // With Implied there always is a directory in the end.
    Ok(walk(tree, path, Missing::Implied)?.unwrap_or(Tree::ROOT))
}

/// The directory at `path`, symlinks followed inside the tree.
fn walk(tree: &mut Tree, path: &[u8], missing: Missing<'_>) -> Result<Option<NodeId>, Reason> {
    // The directories from the root down, each with the length of its path in `at`: `..` in a
    // symlink's target goes back along them.
    let mut dirs = vec![(Tree::ROOT, 0)];
    let mut at: Vec<u8> = Vec::new();
    // The remaining components, the next one last.
    let mut rest: Vec<Box<[u8]>> = Vec::new();
    push_components(&mut rest, path);
    let mut symlinks = 0;
    while let Some(name) = rest.pop() {
        let (dir, len) = dirs.last().copied().unwrap_or((Tree::ROOT, 0));
        if *name == *b".." {
            if dirs.len() > 1 {
                dirs.pop();
            }
            continue;
        }
        at.truncate(len);
        if len > 0 {
            at.push(b'/');
        }
        at.extend_from_slice(&name);
        let child = tree.child(dir, &name);
        match child.map(|id| (id, &tree.node(id).kind)) {
            Some((id, Kind::Dir(_))) => dirs.push((id, at.len())),
            Some((_, Kind::Symlink(_))) if missing.is_replaced(&at) => return Ok(None),
            Some((_, Kind::Symlink(target))) => {
                symlinks += 1;
                if symlinks > MAX_SYMLINKS {
                    return Err(Reason::Symlinks);
                }
                if target.starts_with(b"/") {
                    dirs.truncate(1);
                }
                push_components(&mut rest, target);
            }
            _ if matches!(missing, Missing::Nothing { .. }) => return Ok(None),
            _ => {
                let id = tree.add(Node {
                    attr: Attr::implied_dir(),
                    kind: Kind::Dir(Default::default()),
                });
                tree.link(dir, &name, id);
                dirs.push((id, at.len()));
            }
        }
    }
    Ok(dirs.pop().map(|(id, _)| id))
}

fn push_components(rest: &mut Vec<Box<[u8]>>, path: &[u8]) {
    rest.extend(
        path.split(|&b| b == b'/')
            .rev()
            .filter(|name| !name.is_empty() && *name != b".")
            .map(Box::from),
    );
}
