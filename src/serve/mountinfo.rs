//! What is mounted where, without touching any of it: a stat of a dead FUSE mount may wait for ever.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::error::{Error, Result};

/// Type of our mounts.
pub const FS_TYPE: &str = "fuse.lxcri-fs";

/// A line of /proc/PID/mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountInfo {
    /// Number of the mount.
    pub id: u32,
    /// Device of the file system, major and minor number.
    pub dev: (u32, u32),
    /// Which directory of the file system is mounted.
    pub root: PathBuf,
    /// Where.
    pub mountpoint: PathBuf,
    /// Options of the mount.
    pub options: String,
    /// Type of the file system.
    pub fs_type: String,
    /// What is mounted: the image's path, for ours.
    pub source: PathBuf,
    /// Options of the file system.
    pub super_options: String,
}

impl MountInfo {
    /// Whether this is one of our file systems.
    pub fn is_ours(&self) -> bool {
        self.fs_type == FS_TYPE
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|&b| b == b' ');
        let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
        let id = text(fields.next()?).parse().ok()?;
        let _parent = fields.next()?;
        let dev = text(fields.next()?);
        let (major, minor) = dev.split_once(':')?;
        let (root, mountpoint, options) = (unescape(fields.next()?), unescape(fields.next()?), text(fields.next()?));
        // Optional fields end with a hyphen.
        let mut fields = fields.skip_while(|f| *f != b"-").skip(1);
        Some(Self {
            id,
            dev: (major.parse().ok()?, minor.parse().ok()?),
            root,
            mountpoint,
            options,
            fs_type: text(fields.next()?),
            source: unescape(fields.next()?),
            super_options: fields.next().map(text).unwrap_or_default(),
        })
    }
}

/// Undoes the kernel's escapes: blank, tab, line end and backslash as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let octal = field.get(at + 1..at + 4).filter(|d| field[at] == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
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
/// [`Error::Io`] when they cannot be read.
pub fn of_process(proc: &Path) -> Result<Vec<MountInfo>> {
    let path = proc.join("mountinfo");
    let bytes = std::fs::read(&path).map_err(Error::io("reading", &path))?;
    Ok(bytes.split(|&b| b == b'\n').filter_map(MountInfo::parse).collect())
}

/// The mounts of this process's namespace.
///
/// # Errors
/// [`Error::Io`] when they cannot be read.
pub fn all() -> Result<Vec<MountInfo>> {
    of_process(Path::new("/proc/self"))
}

/// What is mounted at a path: the uppermost mount, the one that is seen.
///
/// # Errors
/// [`Error::Io`] when the mounts cannot be read.
pub fn at(mountpoint: &Path) -> Result<Option<MountInfo>> {
    Ok(all()?.into_iter().rfind(|m| m.mountpoint == mountpoint))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_optional_fields_and_escapes() {
        let line = br"36 35 0:57 / /mnt/a\040b\134 ro,nosuid shared:1 master:2 - fuse.lxcri-fs /images/x\040y.bfc ro,user_id=0";
        let info = MountInfo::parse(line).unwrap();
        assert_eq!((info.id, info.dev), (36, (0, 57)));
        assert_eq!(info.mountpoint, Path::new(r"/mnt/a b\"));
        assert_eq!(info.source, Path::new("/images/x y.bfc"));
        assert_eq!((info.options.as_str(), info.super_options.as_str()), ("ro,nosuid", "ro,user_id=0"));
        assert!(info.is_ours());
        assert_eq!(MountInfo::parse(b"36 35 0:57 / /mnt"), None);
        assert_eq!(MountInfo::parse(b""), None);
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(at(Path::new("/")).unwrap().is_some());
    }
}
