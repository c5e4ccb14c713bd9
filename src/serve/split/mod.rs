//! Mounts an EROFS over the decoded devices that a worker serves.
//!
//! A worker makes the metadata, because it is confined; here they are checked, before the kernel
//! reads them.

pub(super) mod cache;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, openat};

use super::devices::NAMES;
use super::error::{Error, Result};
use super::fuse_mount;
use super::mountpoint::MountPoint;
use crate::erofs::{self, DEVICES, MAX_METADATA};
use crate::error::{Io, chain};
use crate::sys;

/// Metadata that are checked.
#[derive(Debug, Clone)]
pub(super) struct Metadata(Arc<Vec<u8>>);

impl Metadata {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Metadata {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Arc::new(bytes))
    }
}

/// A file in memory for a worker to write metadata into.
pub(super) struct Draft(File);

impl Draft {
    /// Makes it, of a length that the worker cannot change.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn new() -> Result<Self> {
        let failed = || Io::doing("making a file for the metadata");
        let file = rustix::fs::memfd_create(
            c"lxcri-fs metadata",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )
        .map_err(failed())?;
        rustix::fs::ftruncate(&file, MAX_METADATA).map_err(failed())?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals).map_err(failed())?;
        Ok(Self(file.into()))
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The first `len` bytes, in memory of this process alone, checked.
    ///
    /// # Errors
    /// [`Error::Split`] when the kernel must not be given them.
    pub(super) fn checked(self, len: u64, devices: [u64; DEVICES]) -> Result<Metadata> {
        let refused = |reason: String| Error::Split { reason };
        let len = usize::try_from(len.min(MAX_METADATA + 1)).unwrap_or(usize::MAX);
        if len as u64 > MAX_METADATA {
            return Err(refused("the metadata are too long".to_owned()));
        }
        let mut bytes = vec![0; len];
        self.0
            .read_exact_at(&mut bytes, 0)
            .map_err(Io::doing("reading the metadata"))?;
        erofs::check(&bytes, devices)
            .map_err(|damage| refused(format!("the worker made bad metadata: {damage}")))?;
        Ok(bytes.into())
    }
}

/// Mounts an EROFS with these metadata on a mount point. Its devices are below another one, where a
/// worker serves them; `image` becomes its source. Gives up after `limit`: the worker may hang.
///
/// # Errors
/// [`Error::Split`] if the kernel refuses, [`Error::Timeout`].
pub(super) fn mount(
    metadata: &Metadata,
    devices: &MountPoint,
    image: &Path,
    at: &MountPoint,
    limit: Duration,
) -> Result<()> {
    let (sender, receiver) = mpsc::channel();
    let (metadata, devices) = (metadata.clone(), devices.directory()?);
    let image = image.to_owned();
    std::thread::Builder::new()
        .name("erofs".to_owned())
        // It ends when the connection does, at the latest.
        .spawn(move || drop(sender.send(make(metadata.bytes(), &devices, &image))))
        .map_err(Io::doing("starting a thread"))?;
    let made = receiver.recv_timeout(limit);
    let mount = made.map_err(|_| Error::Timeout {
        peer: "worker",
        seconds: limit.as_secs(),
    })??;
    at.attach(mount.as_fd())
}

/// Makes the mount, attached nowhere.
fn make(metadata: &[u8], devices: &OwnedFd, image: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let open = |name: &&str| {
        openat(devices, *name, flags, Mode::empty())
            .map_err(Io::at("opening the decoded device", Path::new(*name)))
    };
    let devices = NAMES.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let descriptors: Vec<BorrowedFd<'_>> = devices.iter().map(AsFd::as_fd).collect();
    let before = read_aheads();
    let mount = sys::erofs::mount_named(metadata, image, &descriptors);
    let mount = mount.map_err(|error| Error::Split {
        reason: chain(&error),
    })?;
    // The kernel does not tell which is whose, so only one that is alone in being new is touched.
    if let [new] = read_aheads()
        .difference(&before)
        .collect::<Vec<_>>()
        .as_slice()
    {
        fuse_mount::raise_read_ahead(new);
    }
    Ok(mount)
}

/// Names of the read-ahead settings of all mounted EROFS.
fn read_aheads() -> BTreeSet<String> {
    let entries = std::fs::read_dir("/sys/class/bdi").into_iter().flatten();
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with("erofs-")).collect()
}
