//! Merges layers: a pure function from layers of changes to a tree.
//!
//! The rules are OCI's (image-spec, layer.md); where it says nothing, they follow umoci and
//! containerd:
//! - Whiteouts and opaque marks of a layer affect only the layers below it, wherever they are in
//!   it. They are therefore applied first.
//! - Then its nodes, in order. A directory over a directory takes its attributes and keeps its
//!   entries; anything else replaces what has the name, with all that is below it.
//! - A hard link names the inode that its target names at that moment, also one of a lower layer;
//!   it has no attributes of its own.
//! - A symlink among an entry's parents is followed inside the tree (`..` and absolute targets end
//!   at its root), as if the tree were chrooted into. The last component is never followed.
//! - Parents that are missing, or are no directories, become [`Attr::implied_dir`].

use bfc::rootfs::{Attr, Kind, Node, NodeId, Tree};

/// Most inodes that a tree may have, replaced ones included: what memory should hold (some 2 GiB
/// with the section that is made of it). A layer of a few bytes can ask for many, for a path of 64
/// KiB implies 32,768 directories.
pub const MAX_NODES: usize = 1 << 22;
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
    // The marks must be applied before the first node.
    for Change { path, what } in &layer {
        let marked = match what {
            What::Whiteout => remove(tree, path),
            What::Opaque => clear(tree, path),
            What::HardLink(_) | What::Node(_) => Ok(()),
        };
        marked.map_err(|reason| Error {
            path: path.clone(),
            reason,
        })?;
    }
    for Change { path, what } in layer {
        let put = match what {
            What::Node(node) => put(tree, &path, node),
            What::HardLink(target) => hard_link(tree, &path, &target),
            What::Whiteout | What::Opaque => Ok(()),
        };
        let room = if tree.nodes.len() > MAX_NODES {
            Err(Reason::TooMany)
        } else {
            Ok(())
        };
        put.and(room).map_err(|reason| Error { path, reason })?;
    }
    Ok(())
}

fn remove(tree: &mut Tree, path: &[u8]) -> Result<(), Reason> {
    let Some((parent, name)) = split(path) else {
        return Ok(());
    };
    if let Some(dir) = walk(tree, parent, Missing::Nothing)? {
        tree.unlink(dir, name);
    }
    Ok(())
}

fn clear(tree: &mut Tree, path: &[u8]) -> Result<(), Reason> {
    if let Some(dir) = walk(tree, path, Missing::Nothing)?
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

fn hard_link(tree: &mut Tree, path: &[u8], target: &[u8]) -> Result<(), Reason> {
    let missing = || Reason::NoTarget(target.to_vec());
    let (target_parent, target_name) =
        split(target).ok_or_else(|| Reason::DirTarget(target.to_vec()))?;
    let dir = walk(tree, target_parent, Missing::Nothing)?.ok_or_else(missing)?;
    let id = tree.child(dir, target_name).ok_or_else(missing)?;
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// A path with a missing component leads nowhere.
    Nothing,
    /// A missing component, or one that is not a directory, becomes a directory.
    Implied,
}

fn parent_dir(tree: &mut Tree, path: &[u8]) -> Result<NodeId, Reason> {
    // With Implied there always is a directory in the end.
    Ok(walk(tree, path, Missing::Implied)?.unwrap_or(Tree::ROOT))
}

/// The directory at `path`, symlinks followed inside the tree.
fn walk(tree: &mut Tree, path: &[u8], missing: Missing) -> Result<Option<NodeId>, Reason> {
    // The directories from the root down: `..` in a symlink's target goes back along them.
    let mut dirs = vec![Tree::ROOT];
    // The remaining components, the next one last.
    let mut rest: Vec<Box<[u8]>> = Vec::new();
    push_components(&mut rest, path);
    let mut symlinks = 0;
    while let Some(name) = rest.pop() {
        let dir = dirs.last().copied().unwrap_or(Tree::ROOT);
        if *name == *b".." {
            if dirs.len() > 1 {
                dirs.pop();
            }
            continue;
        }
        let child = tree.child(dir, &name);
        match child.map(|id| (id, &tree.node(id).kind)) {
            Some((id, Kind::Dir(_))) => dirs.push(id),
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
            _ if missing == Missing::Nothing => return Ok(None),
            _ => {
                let id = tree.add(Node {
                    attr: Attr::implied_dir(),
                    kind: Kind::Dir(Default::default()),
                });
                tree.link(dir, &name, id);
                dirs.push(id);
            }
        }
    }
    Ok(dirs.pop())
}

fn push_components(rest: &mut Vec<Box<[u8]>>, path: &[u8]) {
    rest.extend(
        path.split(|&b| b == b'/')
            .rev()
            .filter(|name| !name.is_empty() && *name != b".")
            .map(Box::from),
    );
}
