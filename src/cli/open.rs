//! Opening an image for a command that looks into it.

use std::fs::File;
use std::path::{Path, PathBuf};

use clap::Args;

use super::error::Error;
use super::secret::{SecretArgs, prompt};
use super::store::StoreArgs;
use crate::fs::{self, Options, Rootfs, Source};
use crate::upper::record::{self, Record};

/// The image a command looks into.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// The image: a file, or the name or digest of an image in the store
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,
    #[command(flatten)]
    pub secret: SecretArgs,
    #[command(flatten)]
    pub store: StoreArgs,
}

impl ImageArgs {
    /// Opens the image; asks for a password where one is needed and none was given.
    pub fn open(&self, options: &Options) -> Result<Rootfs, Error> {
        match self.open_with(self.secret.load()?, options) {
            Err(Error::Fs(fs::Error::Image { source: bfc::Error::KeyNeeded, image })) => match prompt(&image)? {
                Some(secret) => self.open_with(Some(secret), options),
                None => Err(fs::Error::Image { image, source: bfc::Error::KeyNeeded }.into()),
            },
            other => other,
        }
    }

    fn open_with(&self, secret: Option<bfc::Secret>, options: &Options) -> Result<Rootfs, Error> {
        let (path, file) = self.store.open_image(&self.image)?;
        Ok(Rootfs::open(vec![Source { path, file, secret }], options)?)
    }
}

/// Opens the images that an upper lies on: those that are named, or where its record says they were.
///
/// # Errors
/// As [`ImageArgs::open`], and when they are not the ones that the upper was made on.
pub fn open_images(record: &Record, named: &[PathBuf], secret: &SecretArgs) -> Result<Rootfs, Error> {
    let paths: Vec<PathBuf> = if named.is_empty() { record.images.iter().map(|i| i.path.clone()).collect() } else { named.to_vec() };
    let secret = secret.load()?;
    let (mut sources, mut found) = (Vec::new(), Vec::new());
    for path in paths {
        let file = open_image(&path)?;
        found.push(record::identify(&path, &file)?);
        sources.push(Source { path, file, secret: secret.clone() });
    }
    let found = Record::new(found, record.subdir.clone(), record.idmap.clone());
    record.check(&found, "the upper".as_ref())?;
    let options = Options { subdir: record.subdir.clone(), ..Options::default() };
    Ok(Rootfs::open(sources, &options)?)
}

/// Opens an image file.
///
/// # Errors
/// [`Error::Io`], also for what is not a regular file or a block device.
pub fn open_image(path: &Path) -> Result<File, Error> {
    use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
    // Without O_NONBLOCK, opening a fifo would wait for a writer.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(Error::io("opening the image", path))?;
    let kind = file.metadata().map_err(Error::io("opening the image", path))?.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(file);
    }
    let source = if kind.is_dir() { std::io::ErrorKind::IsADirectory.into() } else { std::io::ErrorKind::InvalidInput.into() };
    Err(Error::Io { doing: "opening the image", path: path.to_owned(), source })
}
