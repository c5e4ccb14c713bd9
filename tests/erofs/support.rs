//! Mounts of metadata with decoded devices in files, and trees compared field by field.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use lxcri_fs::erofs::{self, Inodes, LARGE, Layout};
use lxcri_fs::fs::{ImageFile, ImageOptions, Rootfs};
use lxcri_fs::sys;
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};

/// Opens images as `mount` does.
pub fn open(images: &[&Path], options: &ImageOptions) -> Rootfs {
    let secret = || Some(bfc::Secret::Password(b"correct horse".to_vec().into()));
    let sources = images.iter().map(|path| ImageFile {
        path: path.to_path_buf(),
        file: File::open(path).unwrap(),
        secret: path
            .to_str()
            .unwrap()
            .contains("password")
            .then(secret)
            .flatten(),
    });
    Rootfs::open(sources.collect(), options).unwrap()
}

/// Metadata of a tree, which pass the check.
pub fn metadata(rootfs: &Rootfs, layout: &Layout, inodes: Inodes) -> Vec<u8> {
    let bytes = erofs::write(rootfs, layout, inodes).unwrap();
    let devices = [layout.bytes(0), layout.bytes(1)];
    erofs::check(&bytes, devices).unwrap();
    bytes
}

/// A file with the decoded device, made by decoding each content to its place. Zeros are holes.
pub fn device(rootfs: &Rootfs, layout: &Layout, number: u8, dir: &Path) -> File {
    let path = dir.join(format!("device-{number}"));
    let file = File::create_new(&path).unwrap();
    file.set_len(layout.bytes(number)).unwrap();
    let mut bytes = Vec::new();
    for content in 0..u32::try_from(rootfs.section().content_count()).unwrap() {
        let Some(place) = layout.place(content).filter(|p| p.device == number) else {
            continue;
        };
        let size = layout.size(content).unwrap();
        let mut at = 0;
        while at < size {
            bytes.clear();
            rootfs
                .read_by_number(content, at, 1 << 20, &mut bytes)
                .unwrap();
            if bytes.iter().any(|&b| b != 0) {
                file.write_all_at(&bytes, place.offset + at).unwrap();
            }
            at += bytes.len() as u64;
        }
    }
    drop(file);
    File::open(path).unwrap()
}

/// A mount that is removed with the test.
pub struct Erofs(pub PathBuf);

impl Erofs {
    /// Mounts metadata and devices on a directory.
    pub fn new(metadata: &[u8], devices: &[File; 2], dir: &Path) -> Self {
        let metadata = sys::ramfs::file(metadata).unwrap();
        let devices = devices.each_ref().map(AsFd::as_fd);
        let mount = sys::erofs::mount(metadata.as_fd(), &devices).unwrap();
        Self::attach(mount.as_fd(), dir)
    }

    /// Attaches a mount to a directory.
    pub fn attach(mount: BorrowedFd<'_>, dir: &Path) -> Self {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(mount, "", rustix::fs::CWD, dir, flags).unwrap();
        Self(dir.to_owned())
    }

    /// Mounts a tree with the usual layout; the devices are in `dir`, too.
    pub fn of(rootfs: &Rootfs, inodes: Inodes, dir: &Path) -> Self {
        Self::with_threshold(rootfs, inodes, LARGE, dir)
    }

    /// As [`Erofs::of`], with large contents from this length on.
    pub fn with_threshold(rootfs: &Rootfs, inodes: Inodes, large: u64, dir: &Path) -> Self {
        let place = dir.join(format!("{inodes:?}-{large}"));
        std::fs::create_dir_all(&place).unwrap();
        let mountpoint = place.join("mnt");
        std::fs::create_dir(&mountpoint).unwrap();
        let layout = Layout::of(rootfs.section(), large).unwrap();
        let devices = [0, 1].map(|number| device(rootfs, &layout, number, &place));
        Self::new(&metadata(rootfs, &layout, inodes), &devices, &mountpoint)
    }
}

impl Drop for Erofs {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

/// The fields of lstat(2) that [`crate::common::tree`] does not compare, by path.
pub fn attributes(root: &Path) -> BTreeMap<Vec<u8>, Vec<(&'static str, i128)>> {
    let mut out = BTreeMap::new();
    let mut stack = vec![root.to_owned()];
    while let Some(path) = stack.pop() {
        let meta = path.symlink_metadata().unwrap();
        let mut fields = vec![
            ("links", meta.nlink().into()),
            ("atime", meta.atime().into()),
            ("atime, ns", meta.atime_nsec().into()),
            ("ctime", meta.ctime().into()),
            ("ctime, ns", meta.ctime_nsec().into()),
            ("block size", meta.blksize().into()),
        ];
        if meta.is_file() {
            // EROFS counts whole blocks, and holes as data; FUSE counts sectors of data.
            let blocks = meta.blocks().next_multiple_of(8);
            fields.push(("blocks", blocks.max(meta.len().div_ceil(4096) * 8).into()));
        }
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes();
        out.insert(name.to_vec(), fields);
        if meta.is_dir() {
            stack.extend(path.read_dir().unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    out
}

/// Panics unless two trees are equal in every field and content.
#[track_caller]
pub fn assert_equal(expected: &Path, found: &Path) {
    crate::common::assert_same_tree(&crate::common::tree(expected), &crate::common::tree(found));
    let (expected, found) = (attributes(expected), attributes(found));
    for (path, fields) in &expected {
        assert_eq!(Some(fields), found.get(path), "{}", path.escape_ascii());
    }
    assert_eq!(expected.len(), found.len());
}
