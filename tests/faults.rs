//! A failure under a mount is an error only for processes that need what failed. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use common::{Mounted, build_image, eventually, lxcri_fs, run, stats, stderr, tree};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen,
    Request,
};
use lxcri_fs::fs::{ImageFile, ImageOptions, ROOT, Rootfs};
use serde_json::Value;

/// A file system with one file, `image.bfc`, whose disk may break.
struct Disk {
    image: File,
    broken: Arc<AtomicBool>,
}

const FILE: INodeNo = INodeNo(2);

impl Disk {
    fn mount(image: &Path, at: &Path) -> (BackgroundSession, Arc<AtomicBool>) {
        let broken = Arc::new(AtomicBool::new(false));
        let disk = Self {
            image: File::open(image).unwrap(),
            broken: broken.clone(),
        };
        (
            fuser::spawn_mount(disk, at, &Config::default()).unwrap(),
            broken,
        )
    }

    fn attr(&self, ino: INodeNo) -> FileAttr {
        let (kind, perm, size) = if ino == FILE {
            (
                FileType::RegularFile,
                0o644,
                self.image.metadata().unwrap().len(),
            )
        } else {
            (FileType::Directory, 0o755, 0)
        };
        FileAttr {
            ino,
            size,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Disk {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "image.bfc" {
            reply.entry(&Duration::from_secs(60), &self.attr(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::from_secs(60), &self.attr(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Every read comes here.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if self.broken.load(Ordering::Relaxed) {
            return reply.error(Errno::EIO);
        }
        let mut bytes = vec![0; size as usize];
        let len = self.image.read_at(&mut bytes, offset).unwrap();
        reply.data(&bytes[..len]);
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    image: PathBuf,
}

impl Fixture {
    fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        run(Command::new("bash")
            .args(["-euc", &format!("mkdir root mnt disk; cd root; {script}")])
            .current_dir(dir.path()));
        let image = dir.path().join("image.bfc");
        build_image(dir.path().join("root"), &image);
        Self { dir, image }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

#[test]
fn a_failing_disk_is_an_error_only_for_its_readers_and_only_while_it_fails() {
    let fixture = Fixture::new(
        "mkdir d; head -c 1000000 /dev/urandom > d/large; echo small > d/small; seq 5000 > d/text",
    );
    let (_disk, broken) = Disk::mount(&fixture.image, &fixture.path("disk"));
    let image = fixture.path("disk/image.bfc");
    let mnt = fixture.path("mnt");
    let _mounted = Mounted::new(&[image.to_str().unwrap()], &mnt);
    assert_eq!(
        std::fs::read_to_string(mnt.join("d/small")).unwrap(),
        "small\n"
    );
    broken.store(true, Ordering::Relaxed);
    let error = std::fs::read(mnt.join("d/large")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    // What the kernel has is there, and the names and attributes that were read.
    assert_eq!(
        std::fs::read_to_string(mnt.join("d/small")).unwrap(),
        "small\n"
    );
    assert_eq!(mnt.join("d").read_dir().unwrap().count(), 3);
    let stats = stats(&mnt);
    assert!(stats["damaged"].as_u64().unwrap() > 0, "{stats}");
    let failed = lxcri_fs().arg("verify").arg(&image).output().unwrap();
    assert!(!failed.status.success());
    broken.store(false, Ordering::Relaxed);
    assert_eq!(tree(&mnt.join("d")), tree(&fixture.path("root/d")));
    run(lxcri_fs().arg("verify").arg(&image));
}

/// A process that gets no descriptors any more, until this is dropped.
struct Short(Child);

impl Short {
    /// What these system calls return is EMFILE.
    fn of(pid: &str, calls: &str) -> Self {
        let strace = Command::new("strace")
            .args(["-qq", "-o", "/dev/null", "-p", pid])
            .args(["-e", &format!("trace={calls}")])
            .args(["-e", &format!("inject={calls}:error=EMFILE")])
            .spawn()
            .expect("the package strace");
        let status = format!("/proc/{pid}/status");
        eventually("a tracer", || {
            let status = std::fs::read_to_string(&status).unwrap();
            (!status.contains("TracerPid:\t0\n")).then_some(())
        });
        Self(strace)
    }
}

impl Drop for Short {
    fn drop(&mut self) {
        // It lets the process go.
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

#[test]
fn processes_without_free_descriptors_keep_serving_and_recover() {
    let fixture = Fixture::new("for i in $(seq 50); do seq $i 3000 > f$i; done");
    let mnt = fixture.path("mnt");
    let image = fixture.image.to_str().unwrap();
    let _mounted = Mounted::new(&[image], &mnt);
    let row = || {
        let rows = run(lxcri_fs().args(["ps", "--json"]));
        rows.lines()
            .map(|l| serde_json::from_str::<Value>(l).unwrap())
            .find(|row| row["images"][0] == image)
    };
    let processes = eventually("row", row);
    let [keeper, worker] = ["keeper", "worker"].map(|name| processes[name].to_string());
    let fds = std::fs::read_dir(format!("/proc/{worker}/fd")).unwrap();
    let mut fds: Vec<u64> = fds
        .map(|fd| fd.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    fds.sort_unstable();
    let used = fds.len() as u64;
    assert_eq!(fds, (0..used).collect::<Vec<_>>(), "numbers left");
    let limit = |soft: u64| {
        run(Command::new("prlimit")
            .args(["--pid", &worker])
            .arg(format!("--nofile={soft}:1024")));
    };
    let second = fixture.path("second");
    std::fs::create_dir(&second).unwrap();
    let refused = |why: &str| {
        // It looks who uses its mount, and cannot.
        run(Command::new("mount")
            .args(["-t", "tmpfs", "none"])
            .arg(&second));
        run(Command::new("umount").arg(&second));
        let output = lxcri_fs()
            .args(["mount", image])
            .arg(&second)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains(why), "{}", stderr(&output));
        assert_eq!(tree(&mnt), tree(&fixture.path("root")));
    };
    limit(used);
    // A keeper has closed some of its first descriptors, so that no limit leaves it without any.
    let calls = "openat,open_tree,pidfd_open,socket,socketpair";
    let short = Short::of(&keeper, calls);
    refused("Too many open files");
    drop(short);
    let short = Short::of(&keeper, &format!("{calls},accept4"));
    refused("the keeper process has not answered");
    drop(short);
    limit(1024);
    let _second = Mounted::new(&[image], &second);
    assert_eq!(tree(&second), tree(&fixture.path("root")));
    assert_eq!(eventually("row", row)["restarts"], 0);
}

/// A path, what is said of it, and its content.
type Said = (Vec<u8>, String, Vec<u8>);

/// Everything that an image says, in order.
fn contents(rootfs: &Rootfs) -> lxcri_fs::fs::Result<Vec<Said>> {
    let mut all = Vec::new();
    let mut stack = vec![(Vec::new(), ROOT)];
    while let Some((path, ino)) = stack.pop() {
        let inode = rootfs.inode(ino)?;
        let mut bytes = Vec::new();
        match inode.mode & libc::S_IFMT {
            libc::S_IFDIR => rootfs.readdir(ino, 0, &mut |_, ino, _, name| {
                stack.push(([&path, &b"/"[..], name].concat(), ino));
                true
            })?,
            libc::S_IFREG => rootfs.read(ino, 0, 1 << 20, &mut bytes)?,
            libc::S_IFLNK => bytes.extend_from_slice(&rootfs.readlink(ino)?),
            _ => {}
        }
        let xattrs = rootfs
            .xattrs(ino)?
            .into_iter()
            .map(|x| (x.name, x.value))
            .collect::<Vec<_>>();
        let said = (
            inode.mode,
            inode.uid,
            inode.gid,
            inode.size,
            inode.mtime_s,
            inode.mtime_ns,
            inode.nlink,
            xattrs,
        );
        all.push((path, format!("{said:?}"), bytes));
    }
    Ok(all)
}

#[test]
fn a_flipped_bit_of_the_section_is_refused_or_makes_no_difference() {
    let fixture = Fixture::new(
        "echo one > one; ln one two; mkdir d; ln -s one d/link; seq 30000 > d/frames; setfattr -n \
         user.k -v v d; mkfifo d/fifo",
    );
    let bytes = std::fs::read(&fixture.image).unwrap();
    let open = |path: &Path| {
        let source = ImageFile {
            path: path.to_owned(),
            file: File::open(path).unwrap(),
            secret: None,
        };
        Rootfs::open(vec![source], &ImageOptions::default())
    };
    let good = contents(&open(&fixture.image).unwrap()).unwrap();
    let container = bfc::Container::open(Arc::new(File::open(&fixture.image).unwrap())).unwrap();
    let locator = container.locator().unwrap().unwrap();
    let (start, len) = (
        usize::try_from(locator.offset).unwrap(),
        usize::try_from(locator.size).unwrap(),
    );
    let copy = fixture.path("copy.bfc");
    std::fs::write(&copy, &bytes).unwrap();
    let file = File::options().write(true).open(&copy).unwrap();
    let mut refused = 0;
    for bit in 0..len * 8 {
        let at = start + bit / 8;
        file.write_all_at(&[bytes[at] ^ 1 << (bit % 8)], at as u64)
            .unwrap();
        match open(&copy).and_then(|rootfs| contents(&rootfs)) {
            Ok(found) => assert_eq!(found, good, "bit {bit}"),
            Err(_) => refused += 1,
        }
        file.write_all_at(&bytes[at..=at], at as u64).unwrap();
    }
    // What is not needed for reading, layers and documents, is not looked at.
    assert!(refused > len * 4, "{refused} of {} bits", len * 8);
}
