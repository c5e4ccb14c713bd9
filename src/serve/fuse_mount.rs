//! Mounts and unmounts with mount(2) if this process may, and with `fusermount3` otherwise.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::mount::{MountFlags as Flags, UnmountFlags, unmount as sys_unmount};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
    recvmsg, socketpair,
};

use super::error::{Error, Result};
use super::mountpoint::MountPoint;
use crate::error::Io;
use crate::sys::directory::link;
use crate::sys::mount_attr::MountFlags;
use crate::sys::mountinfo::FS_TYPE;

const DEV_FUSE: &str = "/dev/fuse";
const FUSERMOUNT: &str = "fusermount3";
/// Read-ahead of mounts. With the kernel's default of 128 KiB, requests would be decoded one at a
/// time.
const READ_AHEAD_KIB: u32 = 1024;

/// Mounts a FUSE file system; returns the descriptor that its requests come from.
///
/// # Errors
/// [`Error::Io`], [`Error::Fusermount`].
pub(super) fn mount(source: &Path, mountpoint: &MountPoint, flags: MountFlags) -> Result<OwnedFd> {
    if rustix::process::geteuid().is_root() {
        match mount_directly(source, mountpoint, flags) {
            // Root in a container may lack the capability.
            Err(Error::Io(Io {
                doing: "mounting on",
                source: e,
                ..
            })) if e.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {}
            other => return other,
        }
    }
    // The helper checks itself whether the directory belongs to the user.
    mount_with_helper(source, mountpoint.path(), flags)
}

fn mount_directly(source: &Path, mountpoint: &MountPoint, flags: MountFlags) -> Result<OwnedFd> {
    let directory = mountpoint.directory()?;
    let (target, mountpoint) = (link(directory.as_fd()), mountpoint.path());
    let device = Path::new(DEV_FUSE);
    let fuse = File::options()
        .read(true)
        .write(true)
        .open(device)
        .map_err(Io::at("opening", device))?;
    let (uid, gid) = (
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    let mut options = format!(
        "fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions",
        fuse.as_raw_fd()
    );
    if flags.allow_other {
        options.push_str(",allow_other");
    }
    let options = CString::new(options).map_err(Io::at("mounting on", mountpoint))?;
    let mut bits = Flags::RDONLY;
    for (set, flag) in [
        (flags.nosuid, Flags::NOSUID),
        (flags.nodev, Flags::NODEV),
        (flags.noexec, Flags::NOEXEC),
    ] {
        bits.set(flag, set);
    }
    rustix::mount::mount(source, &target, FS_TYPE, bits, &*options)
        .map_err(Io::at("mounting on", mountpoint))?;
    Ok(fuse.into())
}

/// `fusermount3` is set-user-id root. It passes the descriptor back over a socket, here its
/// standard input.
fn mount_with_helper(source: &Path, mountpoint: &Path, flags: MountFlags) -> Result<OwnedFd> {
    let mut options = OsString::from("ro,default_permissions,subtype=lxcri-fs,fsname=");
    options.push(escape(source.as_os_str()));
    let named = [
        (flags.nosuid, ",nosuid"),
        (flags.nodev, ",nodev"),
        (flags.noexec, ",noexec"),
        (flags.allow_other, ",allow_other"),
    ];
    for (_, name) in named.into_iter().filter(|(set, _)| *set) {
        options.push(name);
    }
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(Io::doing("making a socket pair"))?;
    let output = Command::new(FUSERMOUNT)
        .arg("-o")
        .arg(options)
        .arg("--")
        .arg(mountpoint)
        .env("_FUSE_COMMFD", "0")
        .stdin(theirs)
        .stdout(Stdio::null())
        .output()
        .map_err(Io::at("running", Path::new(FUSERMOUNT)))?;
    if !output.status.success() {
        return Err(helper_error("mount", mountpoint, &output.stderr));
    }
    receive_descriptor(&ours)
        .ok_or_else(|| helper_error("mount", mountpoint, b"it passed no descriptor"))
}

fn receive_descriptor(socket: &OwnedFd) -> Option<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .ok()?;
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    })
}

/// Escapes a value of an option: a backslash goes before commas and backslashes.
fn escape(value: &OsStr) -> OsString {
    let mut bytes = Vec::with_capacity(value.len());
    for &b in value.as_bytes() {
        if b == b',' || b == b'\\' {
            bytes.push(b'\\');
        }
        bytes.push(b);
    }
    OsString::from_vec(bytes)
}

fn helper_error(verb: &'static str, path: &Path, stderr: &[u8]) -> Error {
    let message = String::from_utf8_lossy(stderr);
    let message = message
        .trim()
        .trim_start_matches("fusermount3: ")
        .to_owned();
    Error::Fusermount {
        verb,
        path: path.to_owned(),
        message,
    }
}

/// How to unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unmount {
    /// Detach it now; it ends with its last user.
    pub lazy: bool,
    /// Make pending requests fail.
    pub force: bool,
}

/// Unmounts the uppermost mount of `mountpoint`.
///
/// # Errors
/// [`Error::Busy`] without users if it is in use, [`Error::Io`], [`Error::Fusermount`].
pub fn unmount(at: &MountPoint, how: Unmount) -> Result<()> {
    let mountpoint = at.path();
    let mut flags = UnmountFlags::NOFOLLOW;
    flags.set(UnmountFlags::DETACH, how.lazy);
    flags.set(UnmountFlags::FORCE, how.force);
    match sys_unmount(at.through_parent(), flags) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(Error::Busy {
            path: mountpoint.to_owned(),
            users: Vec::new(),
        }),
        Err(Errno::PERM) => unmount_with_helper(mountpoint, how.lazy),
        Err(e) => Err(Io::at("unmounting", mountpoint)(e).into()),
    }
}

fn unmount_with_helper(mountpoint: &Path, lazy: bool) -> Result<()> {
    let mut command = Command::new(FUSERMOUNT);
    command.arg("-u");
    if lazy {
        command.arg("-z");
    }
    let output = command
        .arg("--")
        .arg(mountpoint)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .env("LC_ALL", "C")
        .output()
        .map_err(Io::at("running", Path::new(FUSERMOUNT)))?;
    if output.status.success() {
        return Ok(());
    }
    if String::from_utf8_lossy(&output.stderr).contains("busy") {
        return Err(Error::Busy {
            path: mountpoint.to_owned(),
            users: Vec::new(),
        });
    }
    Err(helper_error("unmount", mountpoint, &output.stderr))
}

/// Raises the read-ahead of a mount, by its name below `/sys/class/bdi`. Everything works without
/// it, so a refusal is only logged.
pub(super) fn raise_read_ahead(name: &str) {
    let path = format!("/sys/class/bdi/{name}/read_ahead_kb");
    if let Err(error) = std::fs::write(&path, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(path, %error, "read-ahead unchanged");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_escaped_for_the_helper() {
        assert_eq!(escape(OsStr::new(r"/a,b\c")), OsStr::new(r"/a\,b\\c"));
    }
}
