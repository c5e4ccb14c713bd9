//! Checking all of an image: every structure, every content.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use bfc::format::{S_IFLNK, S_IFMT, S_IFREG};

use super::error::{Error, Result};
use super::rootfs::{ROOT, Rootfs};

/// What was found damaged.
#[derive(Debug)]
pub struct Damage {
    /// A path of the image that leads there; empty for the image as a whole.
    pub path: Vec<u8>,
    /// What is wrong, with offset.
    pub error: Error,
}

/// What was checked.
#[derive(Debug, Default)]
pub struct Verified {
    /// Names in all directories.
    pub entries: u64,
    /// Contents that were decoded.
    pub contents: u64,
    /// Bytes that came out of them.
    pub bytes: u64,
    /// What is damaged.
    pub damage: Vec<Damage>,
}

/// Checks the v1 index, the section, the tree, and the content of every file, on all cores. `progress` is told of bytes as they are checked.
/// The file system should have been opened with [`super::Options::check_hash`].
pub fn verify(rootfs: &Rootfs, progress: &(dyn Fn(u64) + Sync)) -> Verified {
    let mut verified = Verified::default();
    for (container, path) in rootfs.containers().zip(rootfs.paths()) {
        if let Err(source) = container.index() {
            let error = Error::Image { image: path.to_owned(), source };
            verified.damage.push(Damage { path: Vec::new(), error });
        }
    }
    if let Err(error) = rootfs.verify_section() {
        verified.damage.push(Damage { path: Vec::new(), error });
    }
    let files = walk(rootfs, &mut verified);
    let (next, shared) = (AtomicUsize::new(0), Mutex::new(&mut verified));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((path, ino)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut counter = Counter { progress, bytes: 0 };
                    let result = rootfs.copy(*ino, &mut counter);
                    let mut verified = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    verified.contents += 1;
                    verified.bytes += counter.bytes;
                    if let Err(error) = result {
                        verified.damage.push(Damage { path: path.clone(), error });
                    }
                }
            });
        }
    });
    verified.damage.sort_by(|a, b| a.path.cmp(&b.path));
    verified
}

/// Walks the whole tree; the files whose content is to be read, each content once.
fn walk(rootfs: &Rootfs, verified: &mut Verified) -> Vec<(Vec<u8>, u32)> {
    let mut files = HashMap::new();
    let mut order = Vec::new();
    let mut stack = vec![(ROOT, Vec::new())];
    while let Some((dir, prefix)) = stack.pop() {
        let mut damage = Vec::new();
        let result = rootfs.readdir_plus(dir, 0, &mut |_, ino, inode, name| {
            verified.entries += 1;
            let path = [&prefix[..], name].concat();
            if let Err(error) = check_inode(rootfs, ino) {
                damage.push(Damage { path: path.clone(), error });
            }
            if inode.is_dir() {
                stack.push((ino, [&path[..], b"/"].concat()));
            } else if inode.mode & S_IFMT == S_IFREG && inode.size > 0 && files.insert(inode.data, ()).is_none() {
                order.push((path, ino));
            }
            true
        });
        verified.damage.append(&mut damage);
        if let Err(error) = result {
            verified.damage.push(Damage { path: prefix, error });
        }
    }
    order
}

fn check_inode(rootfs: &Rootfs, ino: u32) -> Result<()> {
    rootfs.xattr_names(ino)?;
    if rootfs.inode(ino)?.mode & S_IFMT == S_IFLNK {
        rootfs.readlink(ino)?;
    }
    Ok(())
}

struct Counter<'a> {
    progress: &'a (dyn Fn(u64) + Sync),
    bytes: u64,
}

impl std::io::Write for Counter<'_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.bytes += buf.len() as u64;
        (self.progress)(buf.len() as u64);
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
