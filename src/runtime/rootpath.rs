//! Resolves paths in an image as a process inside it would: symlinks are followed, and cannot leave
//! the image's root.

use bfc::format::{S_IFLNK, S_IFMT, S_IFREG};
use bfc::rootfs::format::Inode;

use crate::fs::{Error, ROOT, Result, Rootfs};

/// How many symlinks a path may lead through, as in the kernel.
const MAX_LINKS: usize = 40;
/// How long a path may become, bytes.
const MAX_PATH: usize = 4096;

/// The inode at a path; `None` if nothing is there, or the path cannot be resolved.
pub(super) fn resolve(rootfs: &Rootfs, path: &[u8]) -> Result<Option<(u32, Inode)>> {
    let walked = walk(rootfs, path)?.filter(|walked| !walked.lacks);
    Ok(walked.and_then(|walked| walked.found.last().map(|f| (f.ino, f.inode))))
}

/// The path from the root without symlinks and `..`. Names that do not exist stay as they are. A
/// path that cannot be resolved stays as it is, except for `..`.
pub(super) fn place(rootfs: &Rootfs, path: &[u8]) -> Result<Vec<u8>> {
    let names: Vec<Vec<u8>> = match walk(rootfs, path)? {
        Some(Walked { found, missing, .. }) => found
            .into_iter()
            .skip(1)
            .map(|f| f.name)
            .chain(missing)
            .collect(),
        None => {
            let mut names = Vec::new();
            for name in components(path).into_iter().rev() {
                step(&mut names, name);
            }
            names
        }
    };
    Ok([b"/", &names.join(&b'/')[..]].concat())
}

/// Adds a name that is not a symlink.
fn step(names: &mut Vec<Vec<u8>>, name: Vec<u8>) {
    if name == b".." {
        drop(names.pop())
    } else {
        names.push(name)
    }
}

/// An inode on the path.
struct Entered {
    name: Vec<u8>,
    ino: u32,
    inode: Inode,
}

/// A path that was followed as far as it exists.
struct Walked {
    /// The root, and the inodes from there to the last that exists.
    found: Vec<Entered>,
    /// The names after that, which do not exist.
    missing: Vec<Vec<u8>>,
    /// Whether any name on the path did not exist, even if `..` led back from it.
    lacks: bool,
}

/// Follows a path; `None` if it leads through something other than a directory, or through too many
/// symlinks.
fn walk(rootfs: &Rootfs, path: &[u8]) -> Result<Option<Walked>> {
    let mut left: Vec<Vec<u8>> = components(path);
    let mut walked = Walked {
        found: vec![Entered {
            name: Vec::new(),
            ino: ROOT,
            inode: rootfs.inode(ROOT)?,
        }],
        missing: Vec::new(),
        lacks: false,
    };
    let mut links = 0;
    while let Some(name) = left.pop() {
        if !walked.missing.is_empty() {
            step(&mut walked.missing, name);
            continue;
        }
        let at = &mut walked.found;
        let Some((dir, inode)) = at.last().map(|f| (f.ino, f.inode)) else {
            return Ok(None);
        };
        if name == b".." {
            // The root's parent is the root.
            at.truncate(at.len().saturating_sub(1).max(1));
            continue;
        }
        if !inode.is_dir() {
            return Ok(None);
        }
        let Some((ino, inode)) = rootfs.lookup(dir, &name)? else {
            walked.missing.push(name);
            walked.lacks = true;
            continue;
        };
        if inode.mode & S_IFMT != S_IFLNK {
            at.push(Entered { name, ino, inode });
            continue;
        }
        let target = rootfs.readlink(ino)?;
        links += 1;
        if links > MAX_LINKS || target.len() + left.iter().map(Vec::len).sum::<usize>() > MAX_PATH {
            return Ok(None);
        }
        if target.starts_with(b"/") {
            at.truncate(1);
        }
        left.extend(components(&target));
    }
    Ok(Some(walked))
}

/// The components of a path in reverse order.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.rsplit(|&b| b == b'/')
        .filter(|n| !n.is_empty() && *n != b".")
        .map(<[u8]>::to_vec)
        .collect()
}

/// The content of a regular file of at most `limit` bytes; `None` when there is none at that path.
///
/// # Errors
/// [`Error::Kind`] when it is longer, or no regular file.
pub(super) fn read(rootfs: &Rootfs, path: &[u8], limit: u64) -> Result<Option<Vec<u8>>> {
    let Some((ino, inode)) = resolve(rootfs, path)? else {
        return Ok(None);
    };
    if inode.mode & S_IFMT != S_IFREG {
        return Err(Error::Kind {
            ino,
            reason: "not a regular file",
            errno: rustix::io::Errno::INVAL,
        });
    }
    let size = usize::try_from(inode.size)
        .ok()
        .filter(|_| inode.size <= limit);
    let size = size.ok_or(Error::Kind {
        ino,
        reason: "longer than allowed",
        errno: rustix::io::Errno::FBIG,
    })?;
    let mut content = Vec::new();
    rootfs.read(ino, 0, size, &mut content)?;
    Ok(Some(content))
}
