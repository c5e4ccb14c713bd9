//! Reads what is mounted where, without touching any mount: a stat of a dead FUSE mount may never
//! return.

use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::Result;
use crate::error::Io;

/// The file system type of FUSE mounts of lxcri-fs.
pub const FS_TYPE: &str = "fuse.lxcri-fs";
/// The file system type of mounts whose names the kernel has, and only whose bytes lxcri-fs serves.
const EROFS: &str = "erofs";
/// Name of the directory that holds the metadata of such a mount, on a file system of its own: the
/// source of the mount is a descriptor of that file system, this name, and the image's path.
pub(crate) const METADATA: &str = "lxcri-fs";
/// Stands for the path of an image that is too long for the source of a mount.
pub(crate) const UNNAMED_IMAGE: &str = "+image";
/// Prefix of the name of an overlay's lower directory, at least while the overlay was being
/// mounted; the device numbers of the mount there follow.
pub(crate) const LOWER: &str = "lower-";
/// Begins the names of directories where uppers in memory are mounted while an overlay is made.
pub const EPHEMERAL: &str = "ephemeral-";
/// Prefix of the name under which overlayfs got an upper; the numbers of its device and inode
/// follow.
const UPPER: &str = "upper-";
/// Stands for the path of an upper directory that is too long.
pub(crate) const UNNAMED: &str = "+upper";
/// How many path components precede that: `/proc/self/fd/N`.
const DESCRIPTOR: usize = 5;

/// Identity of a directory, whatever its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectoryId {
    /// Device of its file system, major and minor number.
    pub dev: (u32, u32),
    /// Inode number.
    pub ino: u64,
}

impl DirectoryId {
    /// The identity of an open directory.
    ///
    /// # Errors
    /// The system's error.
    pub fn of(directory: BorrowedFd<'_>) -> Result<Self, Errno> {
        let stat = rustix::fs::fstat(directory)?;
        Ok(Self {
            dev: (
                rustix::fs::major(stat.st_dev),
                rustix::fs::minor(stat.st_dev),
            ),
            ino: stat.st_ino,
        })
    }

    /// The name that stands for it in the options of an overlay.
    pub(crate) fn name(self) -> String {
        format!("{UPPER}{}-{}-{}", self.dev.0, self.dev.1, self.ino)
    }

    fn parse(name: &str) -> Option<Self> {
        let mut numbers = name
            .strip_prefix(UPPER)?
            .split('-')
            .map(|n| n.parse::<u64>().ok());
        let mut device = || u32::try_from(numbers.next()??).ok();
        let dev = (device()?, device()?);
        Some(Self {
            dev,
            ino: numbers.next()??,
        })
    }
}

/// A line of /proc/PID/mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountInfo {
    /// Number of the mount.
    pub id: u32,
    /// Device of the file system, major and minor number.
    pub dev: (u32, u32),
    /// The directory of the file system that is mounted.
    pub root: PathBuf,
    /// Where.
    pub mountpoint: PathBuf,
    /// Options of the mount.
    pub options: String,
    /// Type of the file system.
    pub fs_type: String,
    /// The source of the mount; for mounts of lxcri-fs, the image's path.
    pub source: PathBuf,
    /// Whether it is an EROFS whose metadata lxcri-fs made.
    pub is_split: bool,
    /// Options of the file system, as the kernel escapes them.
    pub super_options: OsString,
}

/// An overlay over a file system of lxcri-fs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// Device of the file system below, major and minor number.
    pub lower: (u32, u32),
    /// Whether the image's extended attributes are in a layer above it.
    pub xattrs: bool,
    /// Path of its upper directory when it was mounted; `None` if it was too long.
    pub upper: Option<PathBuf>,
    /// Identity of the upper directory; `None` if an earlier version of this program mounted it.
    pub upper_id: Option<DirectoryId>,
}

impl Overlay {
    /// Whether this is its upper directory.
    pub fn is_over(&self, upper: DirectoryId) -> bool {
        self.upper_id == Some(upper)
    }
}

impl MountInfo {
    /// Whether this is a file system of lxcri-fs, or an overlay of lxcri-fs over one.
    pub fn is_ours(&self) -> bool {
        self.fs_type == FS_TYPE || self.is_split || self.overlay().is_some()
    }

    /// The user who mounted it, if it is a file system of lxcri-fs.
    pub fn user_id(&self) -> Option<u32> {
        let value = self
            .values("user_id")
            .next()
            .filter(|_| self.fs_type == FS_TYPE)?;
        value.to_str()?.parse().ok()
    }

    /// The overlay, if this is one of lxcri-fs. The name of its lowest directory contains the
    /// device that is mounted there.
    pub fn overlay(&self) -> Option<Overlay> {
        if self.fs_type != "overlay" {
            return None;
        }
        let lowers: Vec<PathBuf> = self.lowers().collect();
        let lower = lowers.last()?;
        let name = lower
            .parent()?
            .file_name()?
            .to_str()?
            .strip_prefix(LOWER)?
            .to_owned();
        let mut numbers = name.split('-').map(|n| n.parse().ok());
        let (major, minor) = (numbers.next()??, numbers.next()??);
        // As it was given to overlayfs, which needs a backslash before each backslash.
        let upper = self.values("upperdir").next()?.into_os_string().into_vec();
        let mut bytes = upper.into_iter();
        let upper = std::iter::from_fn(|| {
            bytes.next().map(|b| {
                if b == b'\\' {
                    bytes.next().unwrap_or(b)
                } else {
                    b
                }
            })
        })
        .collect();
        let upper = PathBuf::from(OsString::from_vec(upper));
        let mut names = upper.components();
        let upper_id = names
            .nth(DESCRIPTOR)
            .and_then(|name| DirectoryId::parse(name.as_os_str().to_str()?));
        let named = names.as_path();
        let upper = match upper_id {
            Some(_) => (named != Path::new(UNNAMED)).then(|| Path::new("/").join(named)),
            None => Some(upper),
        };
        Some(Overlay {
            lower: (major, minor),
            xattrs: lowers.len() > 1,
            upper,
            upper_id,
        })
    }

    /// The lower directories of an overlay.
    pub(crate) fn lowers(&self) -> impl Iterator<Item = PathBuf> {
        let split = self.values("lowerdir").flat_map(|l| {
            let parts: Vec<_> = l
                .as_os_str()
                .as_bytes()
                .split(|&b| b == b':')
                .map(|p| PathBuf::from(OsString::from_vec(p.to_vec())))
                .collect();
            parts
        });
        split
            .chain(self.values("lowerdir+"))
            .filter(|_| self.fs_type == "overlay")
    }

    /// The values of an option of the file system.
    fn values(&self, name: &str) -> impl Iterator<Item = PathBuf> {
        let options = self.super_options.as_bytes().split(|&b| b == b',');
        options.filter_map(move |o| {
            Some(unescape(
                o.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?,
            ))
        })
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|&b| b == b' ');
        let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
        let id = text(fields.next()?).parse().ok()?;
        let _parent = fields.next()?;
        let dev = text(fields.next()?);
        let (major, minor) = dev.split_once(':')?;
        let (root, mountpoint, options) = (
            unescape(fields.next()?),
            unescape(fields.next()?),
            text(fields.next()?),
        );
        // Optional fields end with a hyphen.
        let mut fields = fields.skip_while(|f| *f != b"-").skip(1);
        let (fs_type, source) = (text(fields.next()?), unescape(fields.next()?));
        let image = (fs_type == EROFS).then(|| image_of(&source)).flatten();
        Some(Self {
            id,
            dev: (major.parse().ok()?, minor.parse().ok()?),
            root,
            mountpoint,
            options,
            fs_type,
            is_split: image.is_some(),
            source: image.unwrap_or(source),
            super_options: OsString::from_vec(fields.next().unwrap_or_default().to_vec()),
        })
    }
}

/// The image in the source of an EROFS mount; `None` if the mount is not one of lxcri-fs.
fn image_of(source: &Path) -> Option<PathBuf> {
    let name = source.strip_prefix("/proc/self/fd").ok()?;
    let mut names = name.components();
    let _descriptor = names.next()?;
    (names.next()?.as_os_str() == METADATA).then(|| Path::new("/").join(names.as_path()))
}

/// Undoes the kernel's escapes: blank, tab, line end and backslash as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let octal = field
            .get(at + 1..at + 4)
            .filter(|d| field[at] == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        match octal {
            Some(d) => {
                bytes.push((d[0] - b'0') << 6 | (d[1] - b'0') << 3 | (d[2] - b'0'));
                at += 4;
            }
            None => {
                bytes.push(field[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// The mounts of a process's namespace, in the order in which they were made.
///
/// # Errors
/// [`Io`] when they cannot be read.
pub fn of_process(proc: &Path) -> Result<Vec<MountInfo>> {
    let path = proc.join("mountinfo");
    let bytes = std::fs::read(&path).map_err(Io::at("reading", &path))?;
    Ok(bytes
        .split(|&b| b == b'\n')
        .filter_map(MountInfo::parse)
        .collect())
}

/// The mounts of this process's namespace.
///
/// # Errors
/// [`Io`] when they cannot be read.
pub fn all() -> Result<Vec<MountInfo>> {
    of_process(Path::new("/proc/self"))
}

/// The mount at a path; if there are several, the uppermost, which is visible.
///
/// # Errors
/// [`Io`] when the mounts cannot be read.
pub fn at(mountpoint: &Path) -> Result<Option<MountInfo>> {
    Ok(all()?.into_iter().rfind(|m| m.mountpoint == mountpoint))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_optional_fields_and_escapes() {
        let line = concat!(
            r"36 35 0:57 / /mnt/a\040b\134 ro,nosuid shared:1 master:2 - ",
            r"fuse.lxcri-fs /images/x\040y.bfc ro,user_id=0"
        );
        let info = MountInfo::parse(line.as_bytes()).unwrap();
        assert_eq!((info.id, info.dev), (36, (0, 57)));
        assert_eq!(info.mountpoint, Path::new(r"/mnt/a b\"));
        assert_eq!(info.source, Path::new("/images/x y.bfc"));
        assert_eq!(
            (info.options.as_str(), info.super_options.to_str()),
            ("ro,nosuid", Some("ro,user_id=0"))
        );
        assert!(info.is_ours());
        assert_eq!((info.overlay(), info.user_id()), (None, Some(0)));
        let line = "37 35 0:58 / /mnt ro - erofs /proc/self/fd/9/lxcri-fs/images/x.bfc ro,device=d";
        let split = MountInfo::parse(line.as_bytes()).unwrap();
        assert!(split.is_ours() && split.is_split);
        assert_eq!(split.source, Path::new("/images/x.bfc"));
        let line = "37 35 0:58 / /mnt ro - erofs /proc/self/fd/9/other/images/x.bfc ro";
        assert!(!MountInfo::parse(line.as_bytes()).unwrap().is_ours());
        assert_eq!(MountInfo::parse(b"36 35 0:57 / /mnt"), None);
        assert_eq!(MountInfo::parse(b""), None);
    }

    #[test]
    fn an_overlay_tells_what_it_is_made_of() {
        let line = concat!(
            "40 35 0:60 / /c rw - overlay /i.bfc rw,lowerdir=/run/lxcri-fs/lower-0-57-12-0/mnt,",
            r"upperdir=/proc/self/fd/9/upper-8-1-1234/u\054p\134\134\040/upper,workdir=/w,xino=on"
        );
        let info = MountInfo::parse(line.as_bytes()).unwrap();
        let upper_id = Some(DirectoryId {
            dev: (8, 1),
            ino: 1234,
        });
        let overlay = Overlay {
            lower: (0, 57),
            xattrs: false,
            upper: Some(PathBuf::from(r"/u,p\ /upper")),
            upper_id,
        };
        assert_eq!(info.overlay(), Some(overlay));
        assert!(info.is_ours());
        let line = concat!(
            "40 35 0:60 / /c rw - overlay /i.bfc rw,lowerdir=/run/lxcri-fs/lower-0-57-12-0/mnt,",
            "upperdir=/proc/self/fd/9/upper-8-1-1234/+upper,workdir=/w"
        );
        let unnamed = MountInfo::parse(line.as_bytes())
            .unwrap()
            .overlay()
            .unwrap();
        assert_eq!((unnamed.upper, unnamed.upper_id), (None, upper_id));
        let line = concat!(
            "40 35 0:60 / /c rw - overlay ov rw,",
            "lowerdir=/a/b:/c,lowerdir+=/x,upperdir=/u,workdir=/w"
        );
        let other = MountInfo::parse(line.as_bytes()).unwrap();
        assert_eq!(other.overlay(), None);
        assert_eq!(
            other.lowers().collect::<Vec<_>>(),
            ["/a/b", "/c", "/x"].map(PathBuf::from)
        );
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(at(Path::new("/")).unwrap().is_some());
    }
}
