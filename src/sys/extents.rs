//! How much of a file's space is its own, and how much it shares with other files: FIEMAP, which
//! rustix does not have.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Result;
use crate::error::Io;

/// Space on disk, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// All space that it takes.
    pub bytes: u64,
    /// The part that is shared with others, and so not freed with it.
    pub shared: u64,
}

impl Usage {
    /// The space that is freed when it is removed.
    pub fn own(self) -> u64 {
        self.bytes.saturating_sub(self.shared)
    }
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.shared = self.shared.saturating_add(other.shared);
    }
}

/// The space that a file takes. If the file system cannot tell what is shared, nothing counts as
/// shared.
///
/// # Errors
/// The system's error.
pub fn usage(file: &File) -> io::Result<Usage> {
    let bytes = file.metadata()?.blocks().saturating_mul(512);
    let (mut start, mut shared) = (0, 0_u64);
    loop {
        let mut map = fiemap::Map::at(start);
        match fiemap::read(file, &mut map) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL) => break,
            Err(e) => return Err(e.into()),
        }
        let extents = map.extents();
        for extent in extents.iter().filter(|e| e.flags & fiemap::SHARED != 0) {
            shared = shared.saturating_add(extent.length);
        }
        match extents.last() {
            Some(last) if last.flags & fiemap::LAST == 0 => {
                start = last.logical.saturating_add(last.length.max(1))
            }
            _ => break,
        }
    }
    Ok(Usage {
        bytes,
        shared: shared.min(bytes),
    })
}

/// The space that a directory takes, with everything in it on the same file system.
///
/// # Errors
/// [`Io`].
pub fn tree_usage(dir: &Path) -> Result<Usage> {
    let (mut all, mut dirs) = (Usage::default(), vec![dir.to_owned()]);
    let device = dir
        .symlink_metadata()
        .map_err(Io::at("looking at", dir))?
        .dev();
    let mut seen = std::collections::HashSet::new();
    while let Some(dir) = dirs.pop() {
        let failed = |e| Io::at("reading", &dir)(e);
        for entry in std::fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let Ok(metadata) = path.symlink_metadata() else {
                continue;
            };
            if metadata.dev() != device
                || metadata.nlink() > 1 && !metadata.is_dir() && !seen.insert(metadata.ino())
            {
                continue;
            }
            if metadata.is_dir() {
                dirs.push(path);
            } else if metadata.is_file() {
                let file = File::options()
                    .read(true)
                    .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
                    .open(&path);
                all += file
                    .and_then(|file| usage(&file))
                    .map_err(Io::at("looking at", &path))?;
            } else {
                all += Usage {
                    bytes: metadata.blocks().saturating_mul(512),
                    shared: 0,
                };
            }
        }
    }
    Ok(all)
}

mod fiemap {
    use std::os::fd::AsFd;

    use rustix::io::Errno;
    use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

    /// The last extent of the file.
    pub(super) const LAST: u32 = 1;
    /// An extent that others have too.
    pub(super) const SHARED: u32 = 0x2000;
    /// Writes back dirty data first.
    const SYNC: u32 = 1;
    /// How many extents to request at a time.
    const COUNT: u32 = 128;

    /// `struct fiemap` of linux/fiemap.h, without the extents.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Header {
        start: u64,
        length: u64,
        flags: u32,
        mapped: u32,
        count: u32,
        reserved: u32,
    }

    /// `struct fiemap_extent`.
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    pub(super) struct Extent {
        pub(super) logical: u64,
        physical: u64,
        pub(super) length: u64,
        reserved64: [u64; 2],
        pub(super) flags: u32,
        reserved: [u32; 3],
    }

    #[repr(C)]
    pub(super) struct Map {
        header: Header,
        extents: [Extent; COUNT as usize],
    }

    impl Map {
        /// Requests the extents from an offset on.
        pub(super) fn at(start: u64) -> Self {
            let header = Header {
                start,
                length: u64::MAX - start,
                flags: SYNC,
                mapped: 0,
                count: COUNT,
                reserved: 0,
            };
            Self {
                header,
                extents: [Extent::default(); COUNT as usize],
            }
        }

        /// What was found.
        pub(super) fn extents(&self) -> &[Extent] {
            self.extents
                .get(..self.header.mapped as usize)
                .unwrap_or_default()
        }
    }

    const FS_IOC_FIEMAP: Opcode = opcode::read_write::<Header>(b'f', 11);

    #[allow(unsafe_code)]
    pub(super) fn read(file: impl AsFd, map: &mut Map) -> Result<(), Errno> {
        // SAFETY: the kernel reads the header, and writes it and at most `count` extents, for which
        // there is space after it.
        unsafe { ioctl(file, Updater::<FS_IOC_FIEMAP, Map>::new(map)) }
    }
}
