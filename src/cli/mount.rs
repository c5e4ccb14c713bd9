//! `lxcri-fs mount`.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bfc::Secret;
use bfc::format::{HEADER_LEN, Header};
use clap::Args;

use super::error::Error;
use super::mount_options::MountOptions;
use super::open::open_image;
use super::secret::{SecretArgs, prompt};
use crate::fs::Options;
use crate::serve::protocol::{Image, ImageKey, MountFlags, MountRequest};
use crate::serve::{self, keeper, log, mountinfo, shared};

/// Mount images as a read-only file system
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  lxcri-fs mount nginx.bfc /mnt\n  lxcri-fs mount --subdir rootfs -o nodev,nosuid image.bfc /mnt\n  \
mount -t fuse.lxcri-fs nginx.bfc /mnt -o subdir=rootfs")]
pub struct MountArgs {
    /// The images, the lowest first
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<PathBuf>,
    /// Where to mount
    #[arg(value_name = "DIR")]
    pub mountpoint: PathBuf,
    /// Mount read-only, as is done anyway without an upper directory
    #[arg(long)]
    pub read_only: bool,
    /// Show this directory of the image as the root
    #[arg(long, value_name = "PATH")]
    pub subdir: Option<PathBuf>,
    /// Refuse an image that has another root digest, and check all that is read against it
    #[arg(long, value_name = "DIGEST")]
    pub digest: Option<String>,
    #[command(flatten)]
    pub secret: SecretArgs,
    /// Serve from this process, and log to standard error
    #[arg(long)]
    pub foreground: bool,
    /// Log to FILE instead of the journal or syslog
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Mount options, as in fstab: nosuid, nodev, noexec, allow_other, subdir=, digest=, password-file=, key-file=, cache-size=
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<OsString>,
    /// Bound of the cache of decoded content that cannot be read in pieces, bytes
    #[arg(long, value_name = "BYTES")]
    pub cache_size: Option<u64>,
    /// How many threads serve requests
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
}

/// Runs the command.
pub fn run(mut args: MountArgs) -> Result<(), Error> {
    let options = MountOptions::parse(&args.options)?;
    options.apply(&mut args)?;
    let secret = args.secret.load()?;
    let mountpoint = mountpoint(&args.mountpoint)?;
    let files = args.images.iter().map(|path| open_image(path)).collect::<Result<Vec<File>, Error>>()?;
    match mount(&args, options.flags, &mountpoint, &files, secret.as_ref()) {
        Err(Error::Serve(serve::Error::Failed(failure))) if failure.key_needed.is_some() => {
            let image = failure.key_needed.clone().unwrap_or_default();
            match prompt(Path::new(&image))? {
                Some(secret) => mount(&args, options.flags, &mountpoint, &files, Some(&secret)),
                None => Err(serve::Error::Failed(failure).into()),
            }
        }
        other => other,
    }
}

fn mount(args: &MountArgs, flags: MountFlags, mountpoint: &Path, files: &[File], secret: Option<&Secret>) -> Result<(), Error> {
    let mut images = Vec::new();
    for (path, file) in args.images.iter().zip(files) {
        let path = std::path::absolute(path).map_err(Error::io("finding", path))?;
        let key = image_key(&path, file, secret)?;
        images.push(Image { path: path.into_os_string(), key });
    }
    let defaults = Options::default();
    let options = Options {
        subdir: args.subdir.clone(),
        digest: args.digest.clone(),
        cache_bytes: args.cache_size.unwrap_or(defaults.cache_bytes),
        ..defaults
    };
    let threads = args.threads.map_or_else(default_threads, usize::from);
    let request = MountRequest { images, options, mountpoint: mountpoint.as_os_str().to_owned(), shared: None, flags, threads };
    let fds: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    if args.foreground {
        log::init(log::Style::Plain);
        let owned = fds.iter().map(|fd| fd.try_clone_to_owned()).collect::<std::io::Result<Vec<_>>>();
        let owned = owned.map_err(Error::io("keeping", mountpoint))?;
        return Ok(keeper::run(request, owned, || ())?);
    }
    if !shared::is_possible() {
        return Ok(keeper::start(&request, &fds, args.log_file.as_deref())?);
    }
    // Flags are those of each mount, not of what is shared.
    let lower = MountRequest { flags: MountFlags { allow_other: flags.allow_other, ..MountFlags::default() }, ..request };
    Ok(shared::acquire(lower, &fds, args.log_file.as_deref())?.attach(mountpoint, flags)?)
}

/// The directory to mount on, absolute and without symlinks.
fn mountpoint(path: &Path) -> Result<PathBuf, Error> {
    let failed = "finding the directory";
    let absolute = path.canonicalize().map_err(Error::io(failed, path))?;
    if let Some(mounted) = mountinfo::at(&absolute)?.filter(|m| m.is_ours()) {
        return Err(serve::Error::Mounted { path: absolute, image: mounted.source }.into());
    }
    if !absolute.is_dir() {
        return Err(Error::io(failed, path)(std::io::ErrorKind::NotADirectory.into()));
    }
    Ok(absolute)
}

/// The key that the secret is for this image. Password and salt stay here; the daemon gets the key alone. An image that says
/// that nothing in it is encrypted gets none.
fn image_key(path: &Path, file: &File, secret: Option<&Secret>) -> Result<Option<ImageKey>, Error> {
    let Some(secret) = secret else { return Ok(None) };
    let mut bytes = [0; HEADER_LEN];
    if file.read_exact_at(&mut bytes, 0).is_err() {
        // Too short to be an image: the daemon says so.
        return Ok(None);
    }
    let header = Header::parse(&bytes);
    if header.salt == [0; 32] && matches!(secret, Secret::Password(_)) {
        return Ok(None);
    }
    let key = secret.key(&header.salt).map_err(|source| crate::fs::Error::Image { image: path.to_owned(), source })?;
    Ok(Some(ImageKey(key)))
}

/// Requests wait for the image's disk, so there may be more threads than processors.
fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(4, usize::from).clamp(4, 16)
}
