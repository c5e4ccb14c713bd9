//! The threads that answer reads and the one that pushes, under many schedules.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::OnceLock;

use bfc::rootfs::{Attr, Kind, LayerEntry, Node, Tree};
use bfc::writer::{ContentSink, Documents, ImageWriter, WriteOptions};

use super::super::in_hand::Page;
use super::super::protocol::Precautions;
use super::*;
use crate::fs::ImageOptions;
use crate::sync::{Condvar, Mutex, check, once, switch, thread};

/// Small files of two pages, and one of so many frames of two pages.
const SMALL_FILES: u32 = 24;
const FRAMES: u64 = 8;
const FRAME: u64 = 2 * PAGE;

/// The content of a file: each page has a byte of its own.
fn content(ino: u32, size: u64) -> Vec<u8> {
    let page = |at: u64| (at / PAGE) as u8 ^ (ino as u8) << 3;
    (0..size).map(page).collect()
}

static IMAGE: OnceLock<(Vec<u8>, BTreeMap<u32, u64>)> = OnceLock::new();

/// The bytes of an image, and its files with their lengths.
fn image() -> &'static (Vec<u8>, BTreeMap<u32, u64>) {
    once(|| {
        IMAGE.get_or_init(|| {
            let file = tempfile::NamedTempFile::new().unwrap();
            let options = WriteOptions {
                frame_log2: FRAME.ilog2() as u8,
                ..WriteOptions::default()
            };
            let mut writer = ImageWriter::create(file.reopen().unwrap(), options).unwrap();
            let (mut tree, mut files) = (Tree::default(), BTreeMap::new());
            // The names give the inode numbers: 1 is the root.
            for ino in 2..SMALL_FILES + 3 {
                let large = ino == SMALL_FILES + 2;
                let size = if large { FRAMES * FRAME } else { FRAME };
                let bytes = content(ino, size);
                let content = writer.add(b"", size, &mut &bytes[..]).unwrap();
                let attr = Attr {
                    mode: S_IFREG | 0o644,
                    ..Attr::implied_dir()
                };
                let id = tree.add(Node {
                    attr,
                    kind: Kind::File { size, content },
                });
                tree.link(Tree::ROOT, format!("{ino:02}").as_bytes(), id);
                files.insert(ino, size);
            }
            let documents = Documents {
                layers: vec![LayerEntry {
                    record: writer.end_layer().unwrap(),
                    ..LayerEntry::default()
                }],
                ..Documents::default()
            };
            writer.finish(tree, documents).unwrap();
            (std::fs::read(file.path()).unwrap(), files)
        });
    });
    IMAGE.get().unwrap()
}

/// The kernel's page cache. The pages of a read are locked from the request to the answer.
#[derive(Default)]
struct Kernel {
    locked: Mutex<BTreeSet<(u64, u64)>>,
    unlocked: Condvar,
    /// Requests that no thread has taken yet: file and offset.
    requests: Mutex<Vec<(u64, u64)>>,
    /// What was stored: file and offset.
    stored: Mutex<Vec<(u64, u64)>>,
}

impl Kernel {
    fn request(&self, ino: u64, offset: u64) {
        self.locked.lock().unwrap().insert((ino, offset));
        self.requests.lock().unwrap().push((ino, offset));
    }

    fn answer(&self, ino: u64, offset: u64) {
        self.locked.lock().unwrap().remove(&(ino, offset));
        self.unlocked.notify_all();
    }

    fn store(&self, ino: u64, offset: u64, bytes: &[u8]) {
        let (_, files) = IMAGE.get().unwrap();
        let all = content(ino as u32, files[&(ino as u32)]);
        assert_eq!(
            bytes,
            &all[offset as usize..][..bytes.len()],
            "{ino} at {offset}"
        );
        for page in (offset..offset + bytes.len() as u64).step_by(PAGE as usize) {
            let mut locked = self.locked.lock().unwrap();
            while locked.contains(&(ino, page)) {
                locked = self.unlocked.wait(locked).unwrap();
            }
        }
        self.stored.lock().unwrap().push((ino, offset));
    }
}

/// A worker with one thread that pushes. `threads` answer all requests; after each, `next` may make
/// another.
fn serve(kernel: &Kernel, threads: u32, page: &Page, next: fn(&Kernel, u64, u64)) {
    let (bytes, _) = IMAGE.get().unwrap();
    let options = ImageOptions::default();
    let bytes = Arc::new(bytes.clone());
    let rootfs = Rootfs::open_bytes(PathBuf::from("image"), bytes, None, &options).unwrap();
    let rootfs = Arc::new(rootfs);
    let precautions = Precautions {
        refused: vec![],
        suspects: vec![],
        push: true,
    };
    let fd = page.as_fd().try_clone_to_owned().unwrap();
    let in_hand = Arc::new(InHand::new(&fd, &precautions).unwrap());
    let answer = |surplus: &Surplus| {
        loop {
            let request = kernel.requests.lock().unwrap().pop();
            let Some((ino, offset)) = request else { break };
            // As the adapter does.
            let (reading, mut buffer) = (surplus.reading(), Vec::new());
            let decoded = rootfs
                .read_decoded(ino as u32, offset, PAGE as usize, &mut buffer)
                .unwrap();
            switch();
            kernel.answer(ino, offset);
            surplus.push(&reading, INodeNo(ino), decoded, &mut buffer);
            drop(reading);
            next(kernel, ino, offset);
        }
    };
    thread::scope(|scope| {
        let (surplus, pusher) = channel(rootfs.clone(), Arc::new(Metrics::new()), in_hand);
        scope.spawn(move || {
            pusher.run(&|ino, offset, bytes| {
                // What was decoded ahead of requests, and not for one.
                if offset == 0 && ino.0 <= SMALL_FILES.into() {
                    assert!(page.read().1);
                }
                kernel.store(ino.0, offset, bytes);
            });
        });
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| answer(&surplus));
            }
        });
        assert_eq!(surplus.reads.load(Ordering::Relaxed), 0);
        // The file system is gone, so the pusher ends.
    });
    assert_eq!(page.read(), (vec![], false));
}

/// All pages of a file are requested at once, so that a store waits for a page whose request waits
/// for a thread. If a thread that answers waited for the pusher, all would wait for ever.
#[test]
fn threads_that_answer_do_not_wait_for_the_pusher() {
    image();
    check(80, || {
        let kernel = Kernel::default();
        for page in 0..FRAMES * FRAME / PAGE {
            kernel.request((SMALL_FILES + 2).into(), page * PAGE);
        }
        serve(&kernel, 2, &Page::new().unwrap(), |_, _, _| ());
        assert!(kernel.locked.lock().unwrap().is_empty());
    });
}

/// A program reads one small file after the other, and passes over those that it finds in the page
/// cache.
#[test]
fn files_of_a_walk_are_pushed_once_and_noted_in_the_page() {
    image();
    check(80, || {
        let kernel = Kernel::default();
        kernel.request(2, 0);
        serve(&kernel, 1, &Page::new().unwrap(), |kernel, ino, _| {
            let stored = kernel.stored.lock().unwrap();
            let next = (ino + 1..=SMALL_FILES.into()).find(|ino| !stored.contains(&(*ino, 0)));
            drop(stored);
            if let Some(next) = next {
                kernel.request(next, 0);
            }
        });
        let mut stored = kernel.stored.lock().unwrap().clone();
        let all = stored.len();
        stored.sort_unstable();
        stored.dedup();
        assert_eq!(stored.len(), all);
    });
}
