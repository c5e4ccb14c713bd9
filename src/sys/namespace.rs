//! Mount namespaces: an image may be mounted in several, while its keeper is in one.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::Result;
use super::mountinfo;
use crate::error::Io;

const INIT: &str = "/proc/1/ns/mnt";
/// The number of the kernel's first mount namespace since Linux 6.18: `MNT_NS_INIT_INO` of
/// `include/uapi/linux/nsfs.h`. No other ever has it.
const FIRST: u64 = 0xEFFF_FFF8;

/// The number of a process's mount namespace.
pub(crate) fn of_process(pid: u32) -> Option<u64> {
    std::fs::metadata(format!("/proc/{pid}/ns/mnt"))
        .ok()
        .map(|m| m.ino())
}

/// Whether it is the mount namespace of the first process that this process sees; `None` if it may
/// not be asked, as by users, and by root in some sandboxes.
pub(crate) fn is_of_init(namespace: u64) -> Option<bool> {
    let init = of_process(1).map(|init| init == namespace);
    init.or((namespace == FIRST).then_some(true))
}

/// A process in this mount namespace, other than these; `None` if there is none any more. `known`
/// is the process that was found last time.
pub(crate) fn some_process_in(namespace: u64, known: Option<u32>, but: &[u32]) -> Option<u32> {
    let is_in = |pid: &u32| !but.contains(pid) && of_process(*pid) == Some(namespace);
    if let Some(pid) = known.filter(is_in) {
        return Some(pid);
    }
    let entries = std::fs::read_dir("/proc").ok()?.flatten();
    let mut pids = entries.filter_map(|e| e.file_name().to_str().and_then(|n| n.parse().ok()));
    pids.find(is_in)
}

/// Whether a file holds this mount namespace in that of the first process, as `unshare
/// --mount=FILE` makes.
pub(crate) fn is_held(namespace: u64) -> bool {
    let root = format!("mnt:[{namespace}]");
    let mounts = mountinfo::of_process(Path::new("/proc/1")).unwrap_or_default();
    mounts
        .iter()
        .any(|mount| mount.fs_type == "nsfs" && mount.root == Path::new(&root))
}

/// Moves this process to the mount namespace of the first process, unless `directory` is a
/// different directory there. A process keeps its namespace and all mounts in it alive, and a
/// keeper must not do that to the namespace of a container.
///
/// # Errors
/// [`Io`] if it is not allowed, or the directory differs. The process then stays in its namespace.
pub(crate) fn enter_init(directory: &Path) -> Result<()> {
    let identity = || {
        std::fs::metadata(directory)
            .map(|m| (m.dev(), m.ino()))
            .map_err(Io::at("looking at", directory))
    };
    let open = |path: &Path| File::open(path).map_err(Io::at("opening the mount namespace", path));
    let enter = |namespace: &File, path| {
        use std::os::fd::AsFd;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
            .map_err(Io::at("entering the mount namespace", path))
    };
    if of_process(1) == of_process(std::process::id()) {
        return Ok(());
    }
    let (init, own) = (Path::new(INIT), Path::new("/proc/self/ns/mnt"));
    let (theirs, ours, before) = (open(init)?, open(own)?, identity()?);
    enter(&theirs, init)?;
    match identity() {
        Ok(after) if after == before => Ok(()),
        other => {
            enter(&ours, own)?;
            other.and(Err(Io::at("sharing mounts through", directory)(
                std::io::Error::from(std::io::ErrorKind::CrossesDevices),
            )))
        }
    }
}
