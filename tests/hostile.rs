//! Images that lie, with all checksums right: readers end, in bounded time and memory, and say that the image is damaged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use bfc::Container;
use bfc::rootfs::Section;
use bfc::rootfs::format::{DENTRY_LEN, Dentry, INODE_LEN, Inode, ROOT};
use common::mend::{mend, section_range};
use common::{lxcri_fs, run, stderr};
use lxcri_fs::fs::{Options, Order, Rootfs, Source, Step};

/// An image whose records are changed.
struct Hostile {
    dir: tempfile::TempDir,
    bytes: Vec<u8>,
    section: Section,
    start: usize,
}

impl Hostile {
    /// An image of what a shell script makes.
    fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (root, image) = (dir.path().join("root"), dir.path().join("image.bfc"));
        std::fs::create_dir(&root).unwrap();
        run(Command::new("sh").args(["-ec", script]).current_dir(&root));
        run(lxcri_fs().arg("build").arg(format!("dir:{}", root.display())).arg("-o").arg(&image));
        let bytes = std::fs::read(&image).unwrap();
        let container = Container::open(Arc::new(bytes.clone())).unwrap();
        let section = Section::open(container.source().clone(), &container.locator().unwrap().unwrap()).unwrap();
        let start = section_range(&bytes).unwrap().start;
        Self { dir, bytes, section, start }
    }

    fn inode(&self, ino: u32) -> Inode {
        self.section.inode(ino).unwrap().unwrap()
    }

    fn dentry(&self, path: &str) -> Dentry {
        let mut dentry = Dentry { ino: ROOT, ..Dentry::default() };
        for name in path.split('/') {
            dentry = self.section.lookup(&self.inode(dentry.ino), name.as_bytes()).unwrap().unwrap();
        }
        dentry
    }

    fn set_inode(&mut self, inode: &Inode) {
        let at = usize::try_from(self.section.header().inodes.offset).unwrap() + (inode.ino as usize - 1) * INODE_LEN;
        self.bytes[self.start + at..][..INODE_LEN].copy_from_slice(&inode.encode());
    }

    fn set_dentry(&mut self, dentry: &Dentry) {
        let at = usize::try_from(self.section.header().dentries.offset).unwrap() + dentry.number as usize * DENTRY_LEN;
        self.bytes[self.start + at..][..DENTRY_LEN].copy_from_slice(&dentry.encode());
    }

    /// Makes the directory at `path` lead to where the one at `target` does.
    fn lead(&mut self, path: &str, target: &str) {
        let ino = if target.is_empty() { ROOT } else { self.dentry(target).ino };
        self.set_dentry(&Dentry { ino, ..self.dentry(path) });
    }

    fn write(&mut self) -> PathBuf {
        mend(&mut self.bytes);
        let path = self.dir.path().join("hostile.bfc");
        std::fs::write(&path, &self.bytes).unwrap();
        path
    }

    /// Runs a command on it that has to end soon.
    fn refused(&mut self, args: &[&str], more: &[&str]) -> Output {
        let image = self.write();
        let mut command = Command::new("timeout");
        command.arg("60").arg(env!("CARGO_BIN_EXE_lxcri-fs")).args(args).arg(image).args(more).current_dir(self.dir.path());
        let output = command.output().unwrap();
        assert!(!output.status.success() && output.status.code().is_some_and(|code| code < 100), "{args:?}: {output:?}");
        let said = [stderr(&output), String::from_utf8_lossy(&output.stdout).into_owned()].concat();
        assert!(said.contains("damaged") || said.contains("nput/output"), "{args:?}: {said}");
        output
    }

    /// Everything that walks ends, and complains.
    fn everywhere(&mut self) {
        self.refused(&["verify"], &[]);
        self.refused(&["ls", "-R"], &[]);
        self.refused(&["extract"], &["out"]);
        self.refused(&["export"], &["--tar", "out.tar"]);
        let image = self.write();
        let open = || Source { path: image.clone(), file: std::fs::File::open(&image).unwrap(), secret: None };
        let rootfs = Rootfs::open(vec![open()], &Options::default()).unwrap();
        for order in [Order::Depth, Order::Listing] {
            let mut walk = rootfs.walk(ROOT, order).unwrap();
            let (mut steps, mut failed) = (0, 0);
            loop {
                match walk.step() {
                    Ok(Some(_)) => steps += 1,
                    Err(_) => failed += 1,
                    Ok(None) => break,
                }
            }
            assert!(failed > 0 && steps <= 2 * self.section.inode_count(), "{failed} errors, {steps} steps");
        }
    }
}

#[test]
fn a_directory_that_contains_itself_is_damage() {
    let mut image = Hostile::new("mkdir -p a/b/c; echo x > a/b/f; echo y > z");
    image.lead("a/b", "a");
    image.everywhere();
}

#[test]
fn a_directory_that_contains_the_root_is_damage() {
    let mut image = Hostile::new("mkdir -p a/b/c; echo x > a/b/f; echo y > z");
    image.lead("a/b/c", "");
    image.everywhere();
}

#[test]
fn directories_that_contain_each_other_are_damage() {
    let mut image = Hostile::new("mkdir -p a/b/c d/e; echo y > z");
    image.lead("a/b/c", "d");
    image.lead("d/e", "a");
    image.everywhere();
}

/// Each level has two names that lead to the next: a path for each number of 40 bits.
#[test]
fn a_directory_with_two_names_is_damage_and_not_visited_twice() {
    let mut image = Hostile::new("for i in $(seq 40); do mkdir x y; cd x; done; echo deep > file");
    for depth in 0..40 {
        let above = "x/".repeat(depth);
        image.lead(&format!("{above}y"), &format!("{above}x"));
    }
    image.everywhere();
}

/// Both directories have the same dentries.
#[test]
fn directories_that_share_their_entries_are_damage() {
    let mut image = Hostile::new("mkdir a b; echo 1 > a/one; echo 2 > b/two");
    let (a, b) = (image.inode(image.dentry("a").ino), image.inode(image.dentry("b").ino));
    image.set_inode(&Inode { data: a.data, size: a.size, ..b });
    image.everywhere();
}

#[test]
fn a_link_count_that_is_not_the_number_of_names_is_damage() {
    let mut image = Hostile::new("echo 1 > one; ln one two; mkdir d; echo x > d/x");
    let inode = image.inode(image.dentry("one").ino);
    assert_eq!(inode.nlink, 2);
    image.set_inode(&Inode { nlink: 1, ..inode });
    image.refused(&["verify"], &[]);
    image.set_inode(&inode);
    let dir = image.inode(image.dentry("d").ino);
    image.set_inode(&Inode { nlink: 9, ..dir });
    image.refused(&["verify"], &[]);
    image.set_inode(&dir);
    let sound = image.write();
    run(lxcri_fs().arg("verify").arg(sound));
}

/// What is sound is walked whole, in the order that was asked for, and a directory knows its path.
#[test]
fn walks_have_an_order() {
    let mut image = Hostile::new("mkdir -p a/b c; echo 1 > a/b/f; echo 2 > a/z; echo 3 > d");
    let path = image.write();
    let source = Source { path: path.clone(), file: std::fs::File::open(&path).unwrap(), secret: None };
    let rootfs = Rootfs::open(vec![source], &Options::default()).unwrap();
    let visited = |order, but: &str| {
        let mut walk = rootfs.walk(ROOT, order).unwrap();
        let mut found = Vec::new();
        while let Some(step) = walk.step().unwrap() {
            let path = String::from_utf8(walk.path().to_vec()).unwrap();
            if let Step::Enter(visit) = step {
                if visit.inode.is_dir() {
                    assert_eq!(rootfs.directory_path(visit.ino).unwrap(), walk.path());
                }
                if path == but {
                    walk.skip();
                }
                found.push(path);
            } else {
                found.push(format!("<{path}"));
            }
        }
        found
    };
    assert_eq!(visited(Order::Depth, ""), ["a", "a/b", "a/b/f", "<a/b", "a/z", "<a", "c", "<c", "d"]);
    assert_eq!(visited(Order::Depth, "a"), ["a", "c", "<c", "d"]);
    assert_eq!(visited(Order::Listing, ""), ["a", "c", "d", "a/b", "a/z", "a/b/f", "<a/b", "<a", "<c"]);
}

/// As many directories as no process may have open files, each with a file of two names, and deep ones.
#[test]
fn extract_keeps_few_directories_open() {
    let mut image = Hostile::new(
        "for i in $(seq 300); do mkdir d$i; echo $i > d$i/f; ln d$i/f d$i/g; done; ln d1/f d300/h
         for i in $(seq 300); do mkdir a; cd a; done; echo deep > file; ln file link",
    );
    let sound = image.write();
    let script = format!("ulimit -n 100; exec {} extract {} out", env!("CARGO_BIN_EXE_lxcri-fs"), sound.display());
    run(Command::new("sh").args(["-ec", &script]).current_dir(image.dir.path()));
    let of = |dir: &str| common::tree(&image.dir.path().join(dir));
    common::assert_same_tree(&of("root"), &of("out"));
    assert_eq!(links(&image.dir.path().join("out/d300/h")), 3);
}

fn links(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    path.metadata().unwrap().nlink()
}
