//! Mounts images, with or without an upper.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use bfc::Secret;

use super::error::{Error, Result};
use super::file::open_file;
use super::secret::image_key;
use crate::error::Io;
use crate::fs::ImageOptions;
use crate::serve::engine::Wanted;
use crate::serve::mountpoint::MountPoint;
use crate::serve::protocol::{MountRequest, MountedImage};
use crate::serve::{keeper, worker};
use crate::sys::idmap::IdMap;
use crate::sys::mount_attr::MountFlags;
use crate::upper::{self, Upper};

/// Images to mount, and how.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::path::Path;
///
/// use lxcri_fs::image::Mount;
/// use lxcri_fs::serve::unmount::unmount;
///
/// // Mounting starts this program again, as the processes that serve the mount.
/// if let Some(code) = lxcri_fs::run_as_daemon() {
///     std::process::exit(code.into());
/// }
/// Mount::of(Path::new("debian.bfc"))?.at(Path::new("/mnt"))?;
/// println!("{}", std::fs::read_to_string("/mnt/etc/debian_version")?);
/// unmount(Path::new("/mnt"), Default::default())?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Mount {
    /// The images with their paths, lowest first, open for reading.
    pub images: Vec<(PathBuf, File)>,
    /// The password or key of encrypted images.
    pub secret: Option<Secret>,
    /// How to open them.
    pub options: ImageOptions,
    /// How many threads serve them, if they are not served yet.
    pub threads: usize,
    /// What may serve them.
    pub engine: Wanted,
    /// The upper; without one, the mount is read-only.
    pub upper: Option<Upper>,
    /// Whether the mount is read-only even with an upper.
    pub read_only: bool,
    /// The map of ids; `None` for the ids in the images.
    pub idmap: Option<IdMap>,
    /// Flags of the mount.
    pub flags: MountFlags,
    /// A file for the keeper's log, instead of the journal.
    pub log_file: Option<PathBuf>,
    /// Whether the keeper must not be a child of this process: runtimes wait for all their
    /// children.
    pub orphan: bool,
}

impl Mount {
    /// A request to mount one image, read-only, `nosuid` and `nodev`.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened.
    pub fn of(image: &Path) -> Result<Self> {
        Ok(Self::of_files(vec![(image.to_owned(), open_file(image)?)]))
    }

    /// A request to mount open images, lowest first, read-only, `nosuid` and `nodev`.
    pub fn of_files(images: Vec<(PathBuf, File)>) -> Self {
        Self {
            images,
            secret: None,
            options: ImageOptions::default(),
            threads: worker::default_threads(),
            engine: Wanted::default(),
            upper: None,
            read_only: false,
            idmap: None,
            flags: MountFlags::plain(rustix::process::geteuid().is_root()),
            log_file: None,
            orphan: false,
        }
    }

    /// Mounts them on a directory. The processes that serve them stay when this process ends.
    ///
    /// # Errors
    /// [`Error`]; nothing is mounted then.
    pub fn at(&self, mountpoint: &Path) -> Result<()> {
        let mountpoint = MountPoint::open(mountpoint)?;
        mountpoint.check_free()?;
        self.on(&mountpoint)
    }

    /// Like [`Mount::at`], on a mount point that is open and free.
    ///
    /// # Errors
    /// [`Error`]; nothing is mounted then.
    pub fn on(&self, mountpoint: &MountPoint) -> Result<()> {
        let files = self.files()?;
        let request = self.request(&files)?;
        match &self.upper {
            Some(upper) => Ok(upper::mount_under(
                &request,
                || Ok::<_, upper::Error>((upper.clone(), mountpoint.clone(), ())),
                self.read_only,
            )?),
            None => Ok(upper::mount(&request, mountpoint)?),
        }
    }

    /// Mounts them where nobody sees it, under the upper, or without one under an upper in memory.
    /// The mount ends when the result is dropped.
    ///
    /// # Errors
    /// [`Error`].
    pub fn detached(&self) -> Result<OwnedFd> {
        let files = self.files()?;
        let upper = self
            .upper
            .clone()
            .unwrap_or(Upper::Ephemeral { size: None });
        Ok(upper::mount_detached(
            &self.request(&files)?,
            upper,
            self.read_only,
        )?)
    }

    fn files(&self) -> Result<Vec<File>> {
        let files = self
            .images
            .iter()
            .map(|(path, file)| file.try_clone().map_err(Io::at("opening the image", path)));
        Ok(files.collect::<Result<_, _>>()?)
    }

    fn request<'a>(&'a self, files: &'a [File]) -> Result<upper::Request<'a>> {
        Ok(upper::Request {
            images: self.served()?,
            files,
            options: self.options.clone(),
            threads: self.threads,
            engine: self.engine,
            idmap: self.idmap.clone(),
            flags: self.flags,
            log_file: self.log_file.as_deref(),
            orphan: self.orphan,
        })
    }

    /// Turns this process into the keeper of the mount. Returns only on failure.
    pub fn become_keeper(&self, mountpoint: &MountPoint) -> Error {
        let images = match self.served() {
            Ok(images) => images,
            Err(error) => return error,
        };
        let request = MountRequest {
            images,
            options: self.options.clone(),
            mountpoint: mountpoint.path().as_os_str().to_owned(),
            shared: None,
            flags: self.flags,
            threads: self.threads,
            engine: Wanted::Fuse,
            orphan: false,
        };
        let descriptors: Vec<BorrowedFd<'_>> =
            self.images.iter().map(|(_, file)| file.as_fd()).collect();
        keeper::become_one(&request, &descriptors).into()
    }

    /// The images to serve, with their keys.
    fn served(&self) -> Result<Vec<MountedImage>> {
        let image = |(path, file): &(PathBuf, File)| {
            let path = std::path::absolute(path).map_err(Io::at("finding", path))?;
            let key = image_key(&path, file, self.secret.as_ref())?;
            Ok(MountedImage {
                path: OsString::from(path),
                key,
            })
        };
        self.images.iter().map(image).collect()
    }
}
