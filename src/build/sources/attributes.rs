//! Reads the extended attributes of a file on disk, and overlayfs's marks apart from the others.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use bfc::rootfs::Xattr;
use rustix::io::Errno;

/// Largest set of attribute names, and largest value, that the kernel gives.
const MAX: usize = 1 << 16;
/// Prefix of overlayfs's attributes if the host's root mounted it; `user.overlay.*` are then
/// ordinary attributes.
pub(crate) const TRUSTED: &[u8] = b"trusted.overlay.";
/// Prefix of overlayfs's attributes in a user namespace.
pub(crate) const USER: &[u8] = b"user.overlay.";
/// Follows that prefix in attributes that an overlay inside the overlay has set.
const ESCAPED: &[u8] = b"overlay.";

/// Overlayfs's marks of a file (Documentation/filesystems/overlayfs.rst).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Marks {
    /// The lower directory is not seen.
    pub(super) opaque: bool,
    /// The file stands for one that does not exist.
    pub(super) whiteout: bool,
    /// Where the lower directory or file is: a path from the root, or a name in the same directory.
    pub(super) redirect: Option<Vec<u8>>,
    /// The content is the lower file's.
    pub(super) metacopy: bool,
}

/// The attributes of `name` in `dir`, sorted, and overlayfs's marks, which are those attributes
/// that begin with one of `overlay`. No system call does that for a symlink or a device by
/// descriptor; a path through /proc works, however long the real path is.
///
/// # Errors
/// What was being done, and the system's error.
pub(super) fn read(
    dir: BorrowedFd<'_>,
    name: &[u8],
    overlay: &[&'static [u8]],
) -> Result<(Vec<Xattr>, Marks), (&'static str, Errno)> {
    let mut at = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    at.extend_from_slice(name);
    let mut list = vec![0_u8; 1024];
    let len = loop {
        match rustix::fs::llistxattr(&*at, &mut list[..]) {
            Ok(len) => break len,
            Err(Errno::RANGE) if list.len() < MAX => list.resize(MAX, 0),
            Err(Errno::OPNOTSUPP) => return Ok((Vec::new(), Marks::default())),
            Err(e) => return Err(("listing the attributes of", e)),
        }
    };
    let (mut xattrs, mut marks) = (Vec::new(), Marks::default());
    for key in list[..len]
        .split_inclusive(|&b| b == 0)
        .filter_map(|key| CStr::from_bytes_with_nul(key).ok())
    {
        let mut value = vec![0_u8; 256];
        let len = loop {
            match rustix::fs::lgetxattr(&*at, key, &mut value[..]) {
                Ok(len) => break Some(len),
                Err(Errno::RANGE) if value.len() < MAX => value.resize(MAX, 0),
                // Gone in between.
                Err(Errno::NODATA) => break None,
                Err(e) => return Err(("reading an attribute of", e)),
            }
        };
        let Some(len) = len else { continue };
        value.truncate(len);
        let key = key.to_bytes();
        let Some((prefix, rest)) = overlay
            .iter()
            .find_map(|prefix| Some((*prefix, key.strip_prefix(*prefix)?)))
        else {
            xattrs.push(Xattr {
                name: key.to_vec(),
                value,
            });
            continue;
        };
        match rest {
            b"opaque" => marks.opaque = value == b"y",
            b"whiteout" => marks.whiteout = true,
            b"redirect" => marks.redirect = Some(value),
            b"metacopy" => marks.metacopy = true,
            rest => {
                if let Some(inner) = rest.strip_prefix(ESCAPED) {
                    xattrs.push(Xattr {
                        name: [prefix, inner].concat(),
                        value,
                    });
                }
            }
        }
    }
    xattrs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((xattrs, marks))
}
