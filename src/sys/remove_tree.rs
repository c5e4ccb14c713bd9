//! Removes a directory with everything in it, without following symlinks, without entering mounts,
//! and with two descriptors, however deep it is.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, RenameFlags, renameat_with, unlinkat};
use rustix::io::Errno;

use super::files::open_directory_beneath;
use super::{Result, directory};
use crate::error::Io;

/// Removes the directory `name` of the directory `parent`. Moves directories in it that are not
/// empty up to its top first, so that their depth does not matter. A mount point cannot be moved,
/// and makes it fail.
///
/// # Errors
/// [`Io`].
pub(crate) fn remove_tree(parent: &Path, name: &str) -> Result<()> {
    let path = parent.join(name);
    let failed = |e: Errno| Io::at("removing", &path)(e);
    let parent = directory::open(parent)?;
    let top = open_directory_beneath(&parent, name).map_err(failed)?;
    let mut moved = 0_u64;
    // The next pass finds what was moved up.
    while !empty(&top, true, &top, &mut moved).map_err(failed)? {}
    unlinkat(&parent, name, AtFlags::REMOVEDIR).map_err(failed)
}

/// Removes what is in `dir`. Directories that are not empty are emptied if `dir` is the top, and
/// otherwise moved to the top. Returns whether `dir` is empty now.
fn empty(dir: &OwnedFd, is_top: bool, top: &OwnedFd, moved: &mut u64) -> Result<bool, Errno> {
    let mut all = true;
    let mut names: Vec<CString> = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name.to_owned());
        }
    }
    for name in names {
        match unlinkat(dir, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR) => {}
            Err(e) => return Err(e),
        }
        match unlinkat(dir, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
        if !is_top {
            move_up(dir, &name, top, moved)?;
            all = false;
            continue;
        }
        let inner = open_directory_beneath(dir, &name)?;
        all &= empty(&inner, false, top, moved)?;
        match unlinkat(dir, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            // A process is writing in it.
            Err(Errno::NOTEMPTY | Errno::EXIST) => all = false,
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

/// Moves a directory to the top, under a name that is free there.
fn move_up(dir: &OwnedFd, name: &CString, top: &OwnedFd, moved: &mut u64) -> Result<(), Errno> {
    loop {
        *moved += 1;
        match renameat_with(
            dir,
            name,
            top,
            format!("moved-{moved}"),
            RenameFlags::NOREPLACE,
        ) {
            Err(Errno::EXIST) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rustix::fs::{Mode, OFlags};

    use super::*;

    #[test]
    fn deep_and_wide_and_with_links() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("kept"), "kept").unwrap();
        let victim = dir.path().join("victim");
        std::fs::create_dir_all(victim.join("a/b/c")).unwrap();
        std::fs::create_dir_all(victim.join("moved-1/x/y")).unwrap();
        for i in 0..500 {
            std::fs::write(victim.join(format!("a/b/f{i}")), "x").unwrap();
        }
        std::os::unix::fs::symlink(&outside, victim.join("a/link")).unwrap();
        std::os::unix::fs::symlink("/", victim.join("root")).unwrap();
        // Deeper than a path or descriptors reach.
        let mut at = rustix::fs::open(&victim, OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "deeper", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "deeper", OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        remove_tree(dir.path(), "victim").unwrap();
        assert!(!victim.exists());
        assert_eq!(std::fs::read(outside.join("kept")).unwrap(), b"kept");
        // Nor is a symlink followed when it is what is to be removed.
        std::os::unix::fs::symlink(&outside, &victim).unwrap();
        assert!(remove_tree(dir.path(), "victim").is_err());
        assert!(outside.join("kept").exists());
    }
}
