//! Converts the entries of a tar to changes: makes paths safe, and recognises whiteouts.

use bfc::format::S_IFMT;
use bfc::rootfs::{Kind, Node};

use super::merge::{AUFS_LINKS, Change, What};
use super::tar::{EntryKind, TarEntry};

/// Longest path, bytes: the limit of v1.
pub const MAX_PATH: usize = 65_535;
/// Longest component (NAME_MAX).
const MAX_NAME: usize = 255;
/// Longest target of a symlink (PATH_MAX with its NUL).
const MAX_TARGET: usize = 4095;
/// Prefix of a whiteout's name.
pub const WHITEOUT: &[u8] = b".wh.";
/// Prefix of names that AUFS keeps for itself.
const META: &[u8] = b".wh..wh.";
/// Name of an opaque mark.
pub const OPAQUE: &[u8] = b".wh..wh..opq";

/// An entry that cannot be part of a layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the entry `{}` {reason}", String::from_utf8_lossy(path))]
pub struct Error {
    /// The entry's path, as the tar has it.
    pub path: Vec<u8>,
    /// What is wrong with it.
    pub reason: Reason,
}

/// What is wrong with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// `..` in a path or in a hard link's target.
    #[error("has a `..` in {0}")]
    DotDot(&'static str),
    /// NUL in a path or target.
    #[error("has a NUL byte in {0}")]
    Nul(&'static str),
    /// Too long.
    #[error("has {0} that is longer than {1} bytes")]
    TooLong(&'static str, usize),
    /// A whiteout of nothing, or of a name that would be another directory.
    #[error("is a whiteout without a name")]
    Whiteout,
}

/// The change that `entry` makes, `content` being the number of its content; `None` when it has no
/// meaning.
///
/// # Errors
/// [`Error`] for paths that lead out of the root or are too long.
pub fn change(entry: TarEntry, content: Option<u32>) -> Result<Option<Change>, Error> {
    let TarEntry {
        path,
        mut attr,
        kind,
        ..
    } = entry;
    let err = |reason| Error {
        path: path.clone(),
        reason,
    };
    let clean = clean_path(&path, "its path").map_err(err)?;
    // Everything that AUFS kept for itself, wherever it stands. The files are hard links' targets.
    let mut components = clean.split(|&b| b == b'/');
    let is_target = components.next() == Some(AUFS_LINKS)
        && components.clone().count() == 1
        && matches!(kind, EntryKind::File { .. });
    if !is_target
        && clean
            .split(|&b| b == b'/')
            .any(|name| name.starts_with(META) && name != OPAQUE)
    {
        return Ok(None);
    }
    if let Some(mark) = mark(&clean).map_err(err)? {
        return Ok(Some(mark));
    }
    let kind = match kind {
        EntryKind::HardLink(target) => {
            let target = clean_path(&target, "its target").map_err(err)?;
            return Ok(Some(Change {
                path: clean,
                what: What::HardLink(target),
            }));
        }
        EntryKind::Symlink(target) => {
            if target.len() > MAX_TARGET {
                return Err(err(Reason::TooLong("a target", MAX_TARGET)));
            }
            // Whatever the tar says, as on Linux's own file systems.
            attr.mode = attr.mode & S_IFMT | 0o777;
            Kind::Symlink(target.into())
        }
        EntryKind::File { size, .. } => Kind::File { size, content },
        EntryKind::Dir => Kind::Dir(Default::default()),
        EntryKind::Device(major, minor) => Kind::Device(major, minor),
        EntryKind::Other => Kind::Other,
    };
    Ok(Some(Change {
        path: clean,
        what: What::Node(Node { attr, kind }),
    }))
}

/// The whiteout or opaque mark that a clean path stands for, if its name is one's.
///
/// # Errors
/// [`Reason::Whiteout`] for a whiteout of no possible name.
pub fn mark(path: &[u8]) -> Result<Option<Change>, Reason> {
    let name = path.rsplit(|&b| b == b'/').next().unwrap_or_default();
    let parent = &path[..path.len() - name.len()];
    if name == OPAQUE {
        return Ok(Some(Change {
            path: parent.strip_suffix(b"/").unwrap_or(parent).to_vec(),
            what: What::Opaque,
        }));
    }
    match name.strip_prefix(WHITEOUT) {
        None => Ok(None),
        Some(b"" | b"." | b"..") => Err(Reason::Whiteout),
        Some(hidden) => Ok(Some(Change {
            path: [parent, hidden].concat(),
            what: What::Whiteout,
        })),
    }
}

/// A path without leading, doubled and trailing slashes and without `.`. A leading slash is taken
/// off, as GNU tar and containerd do.
pub fn clean_path(path: &[u8], what: &'static str) -> Result<Vec<u8>, Reason> {
    if path.contains(&0) {
        return Err(Reason::Nul(what));
    }
    let mut clean = Vec::with_capacity(path.len());
    for name in path
        .split(|&b| b == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
    {
        if name == b".." {
            return Err(Reason::DotDot(what));
        }
        if name.len() > MAX_NAME {
            return Err(Reason::TooLong("a name", MAX_NAME));
        }
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(name);
    }
    if clean.len() > MAX_PATH {
        return Err(Reason::TooLong("a path", MAX_PATH));
    }
    Ok(clean)
}
