//! The kernel's overlayfs over an image.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, mkdirat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use super::error::{Error, Result};
use super::upper_dir::{Directories, Layout};
use crate::error::Io;
use crate::serve::shared::Hidden;
use crate::sys::idmap::in_user_namespace;
use crate::sys::kernel;
use crate::sys::mount_attr::MountFlags;
use crate::sys::mountinfo::{self, DirectoryId};
use crate::sys::tmpfs;

/// Longest value of an option that fsconfig(2) takes, bytes.
const MAX_NAME: usize = 255;
/// How long an upper may stay in use by a mount that is no longer visible: what was written to it
/// is synced when it ends.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait before the next attempt.
const PAUSE: Duration = Duration::from_millis(20);
/// Most memory for names: a few directories and symlinks.
const NAMES_SIZE: &str = "1m";
/// The first kernel in which overlayfs takes options one by one; earlier ones end a value at a
/// comma.
const NEW_OPTIONS: (u32, u32) = (6, 5);
/// Name of overlayfs's own directory there.
const WORK: &str = "work";

/// Options of overlayfs for an image:
/// - `xino`: files have the image's inode numbers, before and after copy-up and in every mount.
/// - `index`: a file is copied up under all its names, and an upper that is in use is refused.
/// - `redirect_dir`, `metacopy`: directories of the image can be renamed, and a change of owner or
///   mode does not copy the content. `diff` and `commit` understand both.
const PRIVILEGED: [(&str, &str); 4] = [
    ("xino", "on"),
    ("index", "on"),
    ("redirect_dir", "on"),
    ("metacopy", "on"),
];

/// The parts of a merged file system.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts<'a> {
    /// The source for mountinfo.
    pub source: &'a Path,
    /// The image's extended attributes, if the image itself does not show them.
    pub xattrs: Option<&'a Hidden>,
    /// The image.
    pub lower: &'a Hidden,
    /// The names of the upper's directories, for messages and mountinfo.
    pub upper: &'a Layout,
    /// The upper's directories.
    pub directories: &'a Directories,
    /// Flags of the mount.
    pub flags: MountFlags,
    /// Whether the mount is read-only.
    pub read_only: bool,
}

/// Makes a detached mount of the merged file system.
///
/// # Errors
/// [`Error::Refused`] and [`Error::InUse`].
pub(super) fn mount(parts: &Parts<'_>) -> Result<OwnedFd> {
    let start = Instant::now();
    loop {
        match make(parts) {
            // A mount that was just unmounted ends when the last process leaves it, for instance
            // one that asks whether it answers.
            Err(Error::InUse {
                mountpoint: None, ..
            }) if start.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
            made => return made,
        }
    }
}

/// Makes the overlay.
fn make(parts: &Parts<'_>) -> Result<OwnedFd> {
    let place = &parts.upper.place;
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(refused(place, None))?;
    let set = |key: &str, value: &Path| {
        fsconfig_set_string(fs.as_fd(), key, value).map_err(refused(place, Some(fs.as_fd())))
    };
    set("source", parts.source)?;
    match parts.xattrs {
        // Neither name contains a colon or a backslash.
        Some(xattrs) => set(
            "lowerdir",
            Path::new(
                &[xattrs.path().as_os_str(), parts.lower.path().as_os_str()].join(OsStr::new(":")),
            ),
        )?,
        None => set("lowerdir", parts.lower.path())?,
    }
    let names = Names::of(parts.upper, parts.directories)
        .map_err(Io::at("naming the directories of", place))?;
    set("upperdir", &escape(&names.upper))?;
    set("workdir", &names.work)?;
    if in_user_namespace() {
        // Only the host's root may use trusted.*.
        fsconfig_set_flag(fs.as_fd(), "userxattr").map_err(refused(place, Some(fs.as_fd())))?;
        set("xino", Path::new("on"))?;
    } else {
        for (key, value) in PRIVILEGED {
            set(key, Path::new(value))?;
        }
    }
    fsconfig_create(fs.as_fd()).map_err(|error| match error {
        Errno::BUSY => Error::InUse {
            path: place.clone(),
            mountpoint: user_of(parts.directories),
        },
        error => refused(place, Some(fs.as_fd()))(error),
    })?;
    let mut attributes = MountAttrFlags::empty();
    let flags = [
        (parts.flags.nosuid, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (parts.flags.nodev, MountAttrFlags::MOUNT_ATTR_NODEV),
        (parts.flags.noexec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (parts.read_only, MountAttrFlags::MOUNT_ATTR_RDONLY),
    ];
    for (set, flag) in flags {
        attributes.set(flag, set);
    }
    fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(refused(place, Some(fs.as_fd())))
}

/// Escapes a path for overlayfs, which uses a backslash as the escape character.
fn escape(path: &Path) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    let escaped = bytes
        .iter()
        .flat_map(|&b| if b == b'\\' { vec![b'\\', b] } else { vec![b] });
    PathBuf::from(OsString::from_vec(escaped.collect()))
}

/// Names under which overlayfs finds the open directories of an upper. Overlayfs takes no
/// descriptors before Linux 6.13, and no names longer than 255 bytes, and mountinfo shows the names
/// that it got. A hidden tmpfs therefore contains symlinks to the descriptors, in directories whose
/// names contain the identity of the upper, and its path.
struct Names {
    upper: PathBuf,
    work: PathBuf,
    _directory: OwnedFd,
}

impl Names {
    fn of(layout: &Layout, directories: &Directories) -> Result<Self, Errno> {
        let directory = tmpfs::mount(&[("mode", "0700"), ("size", NAMES_SIZE)])?;
        let top = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        let mut within = PathBuf::from(DirectoryId::of(directories.upper.as_fd())?.name());
        let mut upper = top
            .join(&within)
            .join(layout.upper.strip_prefix("/").unwrap_or(&layout.upper));
        let has_comma =
            || upper.as_os_str().as_bytes().contains(&b',') && kernel::version() < NEW_OPTIONS;
        if escape(&upper).as_os_str().len() > MAX_NAME || has_comma() {
            upper = top.join(&within).join(mountinfo::UNNAMED);
        }
        mkdirat(&directory, &within, Mode::RWXU)?;
        let leads = upper
            .strip_prefix(&top)
            .ok()
            .and_then(Path::parent)
            .unwrap_or(&within)
            .to_owned();
        for name in leads.components().skip(1) {
            within.push(name);
            mkdirat(&directory, &within, Mode::RWXU)?;
        }
        let descriptor = |dir: &OwnedFd| format!("/proc/self/fd/{}", dir.as_raw_fd());
        symlinkat(
            descriptor(&directories.upper),
            &directory,
            upper.strip_prefix(&top).unwrap_or(&upper),
        )?;
        symlinkat(descriptor(&directories.work), &directory, WORK)?;
        Ok(Self {
            upper,
            work: top.join(WORK),
            _directory: directory,
        })
    }
}

/// Where an upper directory is mounted in this mount namespace.
fn user_of(directories: &Directories) -> Option<PathBuf> {
    let id = DirectoryId::of(directories.upper.as_fd()).ok()?;
    let mounts = mountinfo::all().ok()?;
    mounts
        .into_iter()
        .find(|m| m.overlay().is_some_and(|o| o.is_over(id)))
        .map(|m| m.mountpoint)
}

/// Makes a closure for `map_err` that adds why the kernel refused the mount.
fn refused(place: &Path, fs: Option<BorrowedFd<'_>>) -> impl FnOnce(Errno) -> Error {
    let path = place.to_owned();
    move |error| {
        let said = fs.map(messages).unwrap_or_default();
        Error::Refused {
            path,
            said,
            source: io::Error::from(error),
        }
    }
}

/// The kernel's messages about a refused mount, in one line.
fn messages(fs: BorrowedFd<'_>) -> String {
    let (mut text, mut line) = (String::new(), [0; 1024]);
    while let Ok(len) = rustix::io::read(fs, &mut line) {
        let message = String::from_utf8_lossy(&line[..len]);
        let message = message.trim_start_matches(['e', 'w', 'i']).trim();
        if len == 0 {
            break;
        }
        let _ = write!(text, "{}{message}", if text.is_empty() { "" } else { "; " });
    }
    text
}
