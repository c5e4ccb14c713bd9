//! Whether the kernel can do what is needed, found out by doing it: the smallest metadata are
//! mounted, and a file in them is read.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;

use bfc::format::{S_IFDIR, S_IFREG};
use rustix::fs::{Mode, OFlags, fstat, openat};
use rustix::io::Errno;

use super::format::{
    BLOCK, BLOCK_LEN, DEVICE_COUNT, DEVICE_SLOT, DEVICE_SLOT_LEN, DIRENT_LEN, DataLayout, Dirent,
    INCOMPAT_DEVICE_TABLE, INODE_SLOT, INODE_SLOT_LEN, Inode, LONG_INODE_LEN, SUPER_OFFSET,
    SuperBlock, file_type,
};
use super::layout::DEVICES;
use super::metadata::{Inodes, device_slots};
use crate::error::Io;
use crate::sys::{erofs, ramfs};

/// Why the kernel's EROFS cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// The kernel has no EROFS, nor a module of it.
    #[error("the kernel has no EROFS (module `erofs`)")]
    NoErofs,
    /// EROFS reads from block devices only.
    #[error("the kernel's EROFS cannot read from files (Linux 6.12 can)")]
    NoFiles,
    /// The process may not mount.
    #[error("EROFS can be mounted by root in the first user namespace only")]
    NotPermitted,
    /// The kernel mounts it, but shows something else.
    #[error("the kernel's EROFS does not read what was written")]
    Wrong,
    /// Something else failed.
    #[error(transparent)]
    Io(#[from] Io),
}

const READING: &str = "reading from EROFS";
/// Name, length, and modification time of the file that is read.
const NAME: &[u8] = b"probe";
const CONTENT: &[u8] = b"lxcri-fs";
const TIME: i64 = 1_000_000_000;
const DEVICE_BYTES: [u64; DEVICES] = [BLOCK, 0];

/// Mounts and reads a file; the form of inodes that the kernel understands. Nothing stays. It takes
/// less than a millisecond, unless a module has to be loaded.
///
/// # Errors
/// [`Unavailable`].
pub fn probe() -> Result<Inodes, Unavailable> {
    let metadata = sample().ok_or(Unavailable::Wrong)?;
    let device = {
        let mut bytes = CONTENT.to_vec();
        bytes.resize(BLOCK_LEN, 0);
        bytes
    };
    let metadata = ramfs::file(&metadata).map_err(reason)?;
    let devices = [ramfs::file(&device), ramfs::file(&[])];
    let [first, second] = devices.map(|file| file.map_err(reason));
    let (first, second) = (first?, second?);
    let mount = erofs::mount(metadata.as_fd(), &[first.as_fd(), second.as_fd()]).map_err(reason)?;

    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = openat(&mount, NAME, flags, Mode::empty()).map_err(Io::doing(READING))?;
    let time = fstat(&file).map_err(Io::doing(READING))?.st_mtime;
    let mut content = Vec::new();
    File::from(file)
        .read_to_end(&mut content)
        .map_err(Io::doing(READING))?;
    if content != CONTENT {
        return Err(Unavailable::Wrong);
    }
    Ok(if time == TIME {
        Inodes::Short
    } else {
        Inodes::Long
    })
}

fn reason(error: Io) -> Unavailable {
    let errno = error.source.raw_os_error().map(Errno::from_raw_os_error);
    match errno {
        Some(Errno::NODEV) if error.doing == erofs::OPENING => Unavailable::NoErofs,
        Some(Errno::NOTBLK) => Unavailable::NoFiles,
        Some(Errno::PERM) => Unavailable::NotPermitted,
        _ => Unavailable::Io(error),
    }
}

/// Metadata of a root with one file, whose inode is short.
fn sample() -> Option<Vec<u8>> {
    let (root_nid, file_nid) = (BLOCK / INODE_SLOT, BLOCK / INODE_SLOT + 4);
    let names: [(&[u8], u64, u32); 3] = [
        (b".", root_nid, S_IFDIR),
        (b"..", root_nid, S_IFDIR),
        (NAME, file_nid, S_IFREG),
    ];
    let mut entries = Vec::new();
    let mut name_at = names.len() * DIRENT_LEN;
    for (name, nid, mode) in names {
        let dirent = Dirent {
            nid,
            name: u16::try_from(name_at).ok()?,
            kind: file_type(mode)?,
        };
        entries.extend_from_slice(&dirent.encode());
        name_at += name.len();
    }
    entries.extend(names.iter().flat_map(|(name, ..)| *name));

    let slots = device_slots(DEVICE_BYTES)?;
    let inode = |mode, layout, size: usize, data, nlink| Inode {
        layout,
        xattrs: 0,
        mode,
        nlink,
        size: size as u64,
        data,
        number: 0,
        uid: 0,
        gid: 0,
        mtime_s: TIME,
        mtime_ns: 0,
    };
    let root = inode(0o040_700, DataLayout::Inline, entries.len(), 0, 2);
    let file = inode(
        0o100_600,
        DataLayout::Flat,
        CONTENT.len(),
        slots[0].first,
        1,
    );
    let super_block = SuperBlock {
        root_nid: u16::try_from(root_nid).ok()?,
        inodes: 2,
        blocks: 2,
        xattr_block: 2,
        uuid: *b"lxcri-fs's probe",
        incompat: INCOMPAT_DEVICE_TABLE,
        devices: DEVICE_COUNT,
    };

    let mut out = vec![0; 2 * BLOCK_LEN];
    let mut put = |at: usize, bytes: &[u8]| {
        let place = out.get_mut(at..at + bytes.len());
        if let Some(place) = place {
            place.copy_from_slice(bytes);
        }
    };
    put(SUPER_OFFSET, &super_block.encode());
    for (number, slot) in slots.iter().enumerate() {
        let at = (usize::from(DEVICE_SLOT) + number) * DEVICE_SLOT_LEN;
        put(at, &slot.encode());
    }
    let root_at = BLOCK_LEN;
    put(root_at, &root.encode_long());
    put(root_at + LONG_INODE_LEN, &entries);
    put(root_at + 4 * INODE_SLOT_LEN, &file.encode_short());
    Some(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_the_probe_mounts_passes_the_check() {
        assert_eq!(
            super::super::check(&sample().unwrap(), DEVICE_BYTES),
            Ok(())
        );
    }
}
