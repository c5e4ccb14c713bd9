//! Images with false contents and valid checksums: readers end in bounded time and memory, and
//! report damage.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::common::forge::mend::{index_range, mend, section_range};
use crate::common::{build_image, lxcri_fs, run, stderr};
use bfc::Container;
use bfc::rootfs::format::{DENTRY_LEN, Dentry, INODE_LEN, Inode, LOCATOR_LEN, ROOT};
use bfc::rootfs::{Attr, Section};
use bfc::source::ReadAt;
use lxcri_fs::fs::{ImageFile, ImageOptions, MAX_IMAGES, Order, Rootfs, Step, verify};
use lxcri_fs::layer::tar::{Body, Writer};

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
        build_image(format!("dir:{}", root.display()), &image);
        let bytes = std::fs::read(&image).unwrap();
        let container = Container::open(Arc::new(bytes.clone())).unwrap();
        let section = Section::open(
            container.source().clone(),
            &container.locator().unwrap().unwrap(),
        )
        .unwrap();
        let start = section_range(&bytes).unwrap().start;
        Self {
            dir,
            bytes,
            section,
            start,
        }
    }

    fn inode(&self, ino: u32) -> Inode {
        self.section.inode(ino).unwrap().unwrap()
    }

    fn dentry(&self, path: &str) -> Dentry {
        let mut dentry = Dentry {
            ino: ROOT,
            ..Dentry::default()
        };
        for name in path.split('/') {
            dentry = self
                .section
                .lookup(&self.inode(dentry.ino), name.as_bytes())
                .unwrap()
                .unwrap();
        }
        dentry
    }

    fn set_inode(&mut self, inode: &Inode) {
        let at = usize::try_from(self.section.header().inodes.offset).unwrap()
            + (inode.ino as usize - 1) * INODE_LEN;
        self.bytes[self.start + at..][..INODE_LEN].copy_from_slice(&inode.encode());
    }

    fn set_dentry(&mut self, dentry: &Dentry) {
        let at = usize::try_from(self.section.header().dentries.offset).unwrap()
            + dentry.number as usize * DENTRY_LEN;
        self.bytes[self.start + at..][..DENTRY_LEN].copy_from_slice(&dentry.encode());
    }

    /// Makes the directory at `path` lead to where the one at `target` does.
    fn lead(&mut self, path: &str, target: &str) {
        let ino = if target.is_empty() {
            ROOT
        } else {
            self.dentry(target).ino
        };
        self.set_dentry(&Dentry {
            ino,
            ..self.dentry(path)
        });
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
        command
            .arg("60")
            .arg(env!("CARGO_BIN_EXE_lxcri-fs"))
            .args(args)
            .arg(image)
            .args(more)
            .current_dir(self.dir.path());
        let output = command.output().unwrap();
        assert!(
            !output.status.success() && output.status.code().is_some_and(|code| code < 100),
            "{args:?}: {output:?}"
        );
        let said = [
            stderr(&output),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        ]
        .concat();
        assert!(
            said.contains("damaged") || said.contains("nput/output"),
            "{args:?}: {said}"
        );
        output
    }

    /// Everything that walks ends, and complains.
    fn everywhere(&mut self) {
        self.refused(&["verify"], &[]);
        self.refused(&["ls", "-R"], &[]);
        self.refused(&["extract"], &["out"]);
        self.refused(&["export"], &["--tar", "out.tar"]);
        let image = self.write();
        let open = || ImageFile {
            path: image.clone(),
            file: std::fs::File::open(&image).unwrap(),
            secret: None,
        };
        let rootfs = Rootfs::open(vec![open()], &ImageOptions::default()).unwrap();
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
            assert!(
                failed > 0 && steps <= 2 * self.section.inode_count(),
                "{failed} errors, {steps} steps"
            );
        }
    }
}

/// Also what only other readers use: objects' headers, and symlinks' targets in objects.
#[test]
fn verify_finds_each_changed_byte_that_a_reader_uses() {
    let image = Hostile::new("mkdir d; echo hello > d/f; head -c 2000 /dev/urandom > r; ln -s r l");
    let container = Container::open(Arc::new(image.bytes.clone())).unwrap();
    let mut used: Vec<_> = container
        .index()
        .unwrap()
        .entries()
        .map(|entry| entry.obj_offset..entry.obj_offset + entry.obj_size)
        .collect();
    let footer = container.footer();
    let locator = container.locator().unwrap().unwrap();
    used.push(0..4096);
    used.push(locator.offset..locator.offset + locator.size);
    used.push(footer.index_offset..container.len());
    let path = image.dir.path().join("changed.bfc");
    std::fs::write(&path, &image.bytes).unwrap();
    let options = ImageOptions {
        check_hash: true,
        ..ImageOptions::default()
    };
    let is_sound = || {
        let source = ImageFile {
            path: path.clone(),
            file: std::fs::File::open(&path).unwrap(),
            secret: None,
        };
        Rootfs::open(vec![source], &options)
            .is_ok_and(|rootfs| verify(&rootfs, &|_| {}).damage.is_empty())
    };
    assert!(is_sound());
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    // A damaged header is read again a few times, in case that it was being written.
    let some = |at: u64| at >= 4096 || at.is_multiple_of(61);
    for (at, byte) in (0..).zip(&image.bytes).filter(|(at, _)| some(*at)) {
        file.write_all_at(&[byte ^ 1], at).unwrap();
        // Nobody reads what lies between them.
        let is_used = used.iter().any(|range| range.contains(&at));
        assert_eq!(is_sound(), !is_used, "byte {at}");
        file.write_all_at(&[*byte], at).unwrap();
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
    let (a, b) = (
        image.inode(image.dentry("a").ino),
        image.inode(image.dentry("b").ino),
    );
    image.set_inode(&Inode {
        data: a.data,
        size: a.size,
        ..b
    });
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

/// The image as one of anyone's: without its section, so that the v1 index says everything.
fn plain_v1(mut bytes: Vec<u8>) -> Vec<u8> {
    let locator = index_range(&bytes).unwrap().end - LOCATOR_LEN;
    bytes[locator..locator + 8].fill(0);
    mend(&mut bytes);
    bytes
}

fn open_v1(bytes: Arc<dyn ReadAt>, options: &ImageOptions) -> Rootfs {
    Rootfs::open_bytes("image".into(), bytes, None, options).unwrap()
}

/// Counts the bytes that are read.
struct Counted(Vec<u8>, AtomicU64);

impl ReadAt for Counted {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let n = self.0.read_at(buf, offset)?;
        self.1.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }

    fn len(&self) -> std::io::Result<u64> {
        Ok(self.0.len() as u64)
    }
}

/// v1 has one checksum for a whole file.
#[test]
fn a_stored_v1_file_is_checked_once_however_many_read_it() {
    const SIZE: u64 = 8 << 20;
    let image = Hostile::new(&format!("head -c {SIZE} /dev/urandom > file"));
    let counted = Arc::new(Counted(plain_v1(image.bytes.clone()), AtomicU64::new(0)));
    let rootfs = open_v1(counted.clone(), &ImageOptions::default());
    let (ino, _) = rootfs.resolve(Path::new("file")).unwrap();
    let before = counted.1.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let rootfs = &rootfs;
            scope.spawn(move || {
                rootfs
                    .read(ino, thread << 20, 4096, &mut Vec::new())
                    .unwrap()
            });
        }
    });
    let read = counted.1.load(Ordering::Relaxed) - before;
    assert!((SIZE..SIZE + (1 << 20)).contains(&read), "{read} bytes");
}

/// A v1 file is decoded whole before one byte of it is read.
#[test]
fn what_v1_files_take_when_they_are_decoded_is_bounded() {
    let image =
        Hostile::new("for name in one two three; do seq 900000 > $name; echo $name >> $name; done");
    let size = image.inode(image.dentry("one").ino).size;
    let bytes = plain_v1(image.bytes.clone());
    let of = |spool_bytes| {
        open_v1(
            Arc::new(bytes.clone()),
            &ImageOptions {
                cache_bytes: 1 << 20,
                spool_bytes,
                ..ImageOptions::default()
            },
        )
    };
    let read = |rootfs: &Rootfs, name: &str| {
        let (ino, inode) = rootfs.resolve(Path::new(name)).unwrap();
        let mut out = Vec::new();
        rootfs
            .read(ino, inode.size - 5, 100, &mut out)
            .map(|()| out)
            .map_err(|e| e.to_string())
    };
    let roomy = of(2 * size);
    for _ in 0..2 {
        assert_eq!(read(&roomy, "one").unwrap(), b"\none\n");
        assert_eq!(read(&roomy, "two").unwrap(), b"\ntwo\n");
        assert_eq!(read(&roomy, "three").unwrap(), b"hree\n");
    }
    let narrow = of(size - 1);
    let said = read(&narrow, "one").unwrap_err();
    assert!(
        said.contains(&format!("temporary files may take {} bytes", size - 1)),
        "{said}"
    );
}

/// A path of 64 MiB would be one entry of an index, and 32 million directories.
#[test]
fn a_v1_path_of_unbounded_length_is_damage() {
    let image = Hostile::new("echo x > file");
    let bytes = plain_v1(image.bytes.clone());
    let index = index_range(&bytes).unwrap();
    let entry = |path: &[u8], out: &mut Vec<u8>| {
        let mode = libc::S_IFDIR | 0o755;
        bfc::format::IndexEntry {
            path,
            obj_offset: 4096,
            obj_size: 48,
            mode,
            mtime_ns: 0,
            comp: 0,
            enc: 0,
            orig_size: 0,
            crc: 0,
        }
        .encode(out);
    };
    let open = |path: &[u8]| {
        let mut blob = [1_u32.to_le_bytes(), 1_u32.to_le_bytes()].concat();
        entry(path, &mut blob);
        let mut changed = [&bytes[..index.start], &blob, &bytes[index.end..]].concat();
        let footer = changed.len() - bfc::format::FOOTER_LEN;
        changed[footer + 8..footer + 16].copy_from_slice(&(blob.len() as u64).to_le_bytes());
        mend(&mut changed);
        Rootfs::open_bytes(
            "image".into(),
            Arc::new(changed),
            None,
            &ImageOptions::default(),
        )
    };
    assert_eq!(
        open(&b"b/".repeat(32768)[..65535])
            .unwrap()
            .section()
            .inode_count(),
        1 + 32768
    );
    let error = std::error::Error::source(&open(&b"a/".repeat(32 << 20)[1..]).unwrap_err())
        .unwrap()
        .to_string();
    assert!(error.contains("65,535"), "{error}");
}

/// 200,000 empty files are 2 MB of layer. An entry takes no more than it is counted as
/// (src/layer/read.rs), so that the limit is one.
#[test]
fn entries_take_no_more_memory_than_is_counted() {
    const ENTRIES: u64 = 200_000;
    const COUNTED: u64 = 512 + 2 * 12;
    /// What the program, its threads and their buffers take without any entries.
    const FIXED: u64 = 40 << 20;
    let dir = tempfile::tempdir().unwrap();
    let tar = dir.path().join("layer.tar");
    let mut writer = Writer::new(std::io::BufWriter::new(
        std::fs::File::create(&tar).unwrap(),
    ));
    let attr = Attr {
        mode: libc::S_IFREG | 0o644,
        ..Attr::default()
    };
    for n in 0..ENTRIES {
        writer
            .append(
                format!("a/{n:010}").as_bytes(),
                &attr,
                Body::File(0, &mut std::io::empty()),
            )
            .unwrap();
    }
    writer.finish().unwrap();
    let mut build = lxcri_fs()
        .arg("build")
        .arg(&tar)
        .arg("-o")
        .arg(dir.path().join("image.bfc"))
        .spawn()
        .unwrap();
    let mut most = 0;
    while build.try_wait().unwrap().is_none() {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", build.id())).unwrap_or_default();
        let peak = status.lines().find_map(|line| {
            line.strip_prefix("VmHWM:")?
                .trim()
                .strip_suffix(" kB")?
                .parse::<u64>()
                .ok()
        });
        most = most.max(peak.unwrap_or(0) << 10);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(build.wait().unwrap().success());
    eprintln!("{} bytes an entry", most / ENTRIES);
    assert!(
        most > 0 && most < FIXED + ENTRIES * COUNTED,
        "{most} bytes, {} an entry",
        most / ENTRIES
    );
}

#[test]
fn as_many_images_are_mounted_as_can_be_passed() {
    let mut image = Hostile::new("echo x > file");
    let path = image.write();
    let dir = image.dir.path().join("mnt");
    std::fs::create_dir(&dir).unwrap();
    let mount = |n: usize| {
        lxcri_fs()
            .arg("mount")
            .args(vec![&path; n])
            .arg(&dir)
            .output()
            .unwrap()
    };
    let refused = mount(MAX_IMAGES + 1);
    assert!(!refused.status.success());
    assert!(
        stderr(&refused).contains("at most 250 images, not 251"),
        "{}",
        stderr(&refused)
    );
    for n in [127, MAX_IMAGES] {
        let mounted = mount(n);
        assert!(mounted.status.success(), "{n}: {}", stderr(&mounted));
        assert_eq!(std::fs::read(dir.join("file")).unwrap(), b"x\n");
        run(lxcri_fs().arg("umount").arg(&dir));
    }
}

/// A walk visits a sound image completely, in the order that the caller wants, with paths.
#[test]
fn walks_visit_entries_in_order() {
    let mut image = Hostile::new("mkdir -p a/b c; echo 1 > a/b/f; echo 2 > a/z; echo 3 > d");
    let path = image.write();
    let source = ImageFile {
        path: path.clone(),
        file: std::fs::File::open(&path).unwrap(),
        secret: None,
    };
    let rootfs = Rootfs::open(vec![source], &ImageOptions::default()).unwrap();
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
    assert_eq!(
        visited(Order::Depth, ""),
        ["a", "a/b", "a/b/f", "<a/b", "a/z", "<a", "c", "<c", "d"]
    );
    assert_eq!(visited(Order::Depth, "a"), ["a", "c", "<c", "d"]);
    assert_eq!(
        visited(Order::Listing, ""),
        ["a", "c", "d", "a/b", "a/z", "a/b/f", "<a/b", "<a", "<c"]
    );
}

/// As many directories as no process may have open files, each with a file of two names, and deep
/// ones.
#[test]
fn extract_keeps_few_directories_open() {
    let mut image = Hostile::new(
        "for i in $(seq 300); do mkdir d$i; echo $i > d$i/f; ln d$i/f d$i/g; done; ln d1/f d300/h
         for i in $(seq 300); do mkdir a; cd a; done; echo deep > file; ln file link",
    );
    let sound = image.write();
    let script = format!(
        "ulimit -n 100; exec {} extract {} out",
        env!("CARGO_BIN_EXE_lxcri-fs"),
        sound.display()
    );
    run(Command::new("sh")
        .args(["-ec", &script])
        .current_dir(image.dir.path()));
    let of = |dir: &str| crate::common::tree(&image.dir.path().join(dir));
    crate::common::assert_same_tree(&of("root"), &of("out"));
    assert_eq!(links(&image.dir.path().join("out/d300/h")), 3);
}

fn links(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    path.metadata().unwrap().nlink()
}
