//! Checks a whole image: every structure, every content.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use bfc::format::{S_IFLNK, S_IFMT, S_IFREG};

use super::error::{Error, Result};
use super::rootfs::{ROOT, Rootfs};
use super::walk::{Order, Step, Visit};

/// How many damages to report at most.
const MAX_DAMAGE: usize = 1000;

/// A damage.
#[derive(Debug)]
pub struct Damage {
    /// A path of the image that leads there; empty for the image as a whole.
    pub path: Vec<u8>,
    /// What is wrong, with offset.
    pub error: Error,
}

/// The result of a check.
#[derive(Debug, Default)]
pub struct Verified {
    /// Names in all directories.
    pub entries: u64,
    /// Contents that were decoded.
    pub contents: u64,
    /// Bytes that came out of them.
    pub bytes: u64,
    /// The damages, a thousand at most.
    pub damage: Vec<Damage>,
}

/// Checks the v1 index and its objects, the section, the tree, and the content of every file, on
/// all cores. Calls `progress` with the bytes that were checked. The file system should have been
/// opened with
/// [`super::ImageOptions::check_hash`].
pub fn verify(rootfs: &Rootfs, progress: &(dyn Fn(u64) + Sync)) -> Verified {
    let mut verified = Verified::default();
    for (container, path) in rootfs.containers().zip(rootfs.paths()) {
        let mut damaged = |at: &[u8], source| {
            let image = path.to_owned();
            verified.damaged(at, Error::Image { image, source });
        };
        match container.index() {
            Ok(index) => container.check_objects(&index, &mut damaged),
            Err(error) => damaged(&[], error),
        }
    }
    if let Err(error) = rootfs.verify_section() {
        verified.damaged(&[], error);
    }
    let files = match walk(rootfs, &mut verified) {
        Ok(files) => files,
        Err(error) => {
            verified.damaged(&[], error);
            Vec::new()
        }
    };
    let (next, shared) = (
        AtomicUsize::new(0),
        Mutex::new((&mut verified, HashMap::new())),
    );
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(ino) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut counter = Counter { progress, bytes: 0 };
                    let result = rootfs.copy(*ino, &mut counter);
                    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    shared.0.contents += 1;
                    shared.0.bytes += counter.bytes;
                    if let Err(error) = result
                        && shared.1.len() < MAX_DAMAGE
                    {
                        shared.1.insert(*ino, error);
                    }
                }
            });
        }
    });
    let (_, damaged) = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
    name(rootfs, damaged, &mut verified);
    verified.damage.sort_by(|a, b| a.path.cmp(&b.path));
    verified
}

impl Verified {
    fn damaged(&mut self, path: &[u8], error: Error) {
        if self.damage.len() < MAX_DAMAGE {
            self.damage.push(Damage {
                path: path.to_vec(),
                error,
            });
        }
    }
}

/// Walks the whole tree; the files whose content is to be read, each content once.
fn walk(rootfs: &Rootfs, verified: &mut Verified) -> Result<Vec<u32>> {
    let (mut seen, mut order) = (HashSet::new(), Vec::new());
    let mut names = vec![0_u32; rootfs.section().inode_count() as usize + 1];
    let mut walk = rootfs.walk(ROOT, Order::Depth)?;
    loop {
        let Visit { dir, ino, inode } = match walk.step() {
            Ok(Some(Step::Enter(visit))) => visit,
            Ok(Some(Step::Leave(_))) => continue,
            Ok(None) => break,
            Err(error) => {
                verified.damaged(walk.path(), error);
                continue;
            }
        };
        verified.entries += 1;
        // A directory is named by its entries' `..` as well.
        let named = if inode.is_dir() { dir } else { ino };
        if let Some(count) = names.get_mut(named as usize) {
            *count += 1;
        }
        if let Err(error) = check_inode(rootfs, ino) {
            verified.damaged(walk.path(), error);
        }
        if inode.mode & S_IFMT == S_IFREG && inode.size > 0 && seen.insert(inode.data) {
            order.push(ino);
        }
    }
    if verified.damage.is_empty() && rootfs.shows_all() {
        count_links(rootfs, &names, verified);
    }
    Ok(order)
}

/// Compares the number of each inode's names with its link count. `names` has that number by inode
/// number; for a directory, the number of directories in it.
fn count_links(rootfs: &Rootfs, names: &[u32], verified: &mut Verified) {
    for (ino, &count) in (0..).zip(names).skip(1) {
        let Ok(inode) = rootfs.inode(ino) else {
            continue;
        };
        let expected = if inode.is_dir() {
            count.saturating_add(2)
        } else {
            count
        };
        if inode.nlink != expected {
            let source = bfc::Error::Section {
                offset: ino.into(),
                reason: "the link count of an inode differs from the number of its names",
            };
            verified.damaged(&[], rootfs.image_error(source));
        }
    }
}

/// Finds a path of each inode that is damaged.
fn name(rootfs: &Rootfs, mut damaged: HashMap<u32, Error>, verified: &mut Verified) {
    if let Ok(mut walk) = rootfs.walk(ROOT, Order::Depth) {
        while !damaged.is_empty() {
            match walk.step() {
                Ok(Some(Step::Enter(visit))) => {
                    if let Some(error) = damaged.remove(&visit.ino) {
                        verified.damaged(walk.path(), error);
                    }
                }
                Ok(Some(Step::Leave(_))) | Err(_) => {}
                Ok(None) => break,
            }
        }
    }
    damaged
        .into_values()
        .for_each(|error| verified.damaged(&[], error));
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
