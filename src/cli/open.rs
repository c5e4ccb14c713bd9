//! Opens images for commands that read them.

use std::fs::File;
use std::path::PathBuf;

use clap::Args;
use rustix::thread::CapabilitySet;

use super::error::Error;
use super::secret::{SecretArgs, prompt, terminal};
use super::store::StoreArgs;
use crate::error::Io;
use crate::fs::{self, ImageFile, ImageOptions, Rootfs};
use crate::serve::confine::{Kept, confine_command};

/// The image that a command reads.
#[derive(Debug, Args)]
pub(super) struct ImageArgs {
    /// The image: a file, or the name or digest of an image in the store
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,
    #[command(flatten)]
    pub secret: SecretArgs,
    #[command(flatten)]
    pub store: StoreArgs,
}

impl ImageArgs {
    /// Opens the image. Asks for a password if the image needs one and none was given.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn open(&self, options: &ImageOptions) -> Result<Rootfs, Error> {
        self.file()?.read(options)
    }

    /// Opens the image for a command that only reads it. This process gives up its rights before it
    /// reads the first byte, except those of `kept`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn open_confined(
        &self,
        options: &ImageOptions,
        kept: Kept,
    ) -> Result<Rootfs, Error> {
        self.file()?.read_confined(options, kept)
    }

    /// Opens the image's file, and finds what else is needed to read it.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn file(&self) -> Result<Opened, Error> {
        let secret = self.secret.load()?;
        let (path, file) = self.store.open_image(&self.image)?;
        let terminal = if secret.is_none() { terminal() } else { None };
        Ok(Opened {
            path,
            file,
            secret,
            terminal,
        })
    }
}

/// Gives up the rights of this process that reading images does not need.
pub(super) fn confine(mut kept: Kept, options: &ImageOptions) {
    // Content that does not fit into memory goes to a file, perhaps in another user's directory.
    kept.capabilities |= CapabilitySet::DAC_OVERRIDE;
    // What this host cannot confine is not reported here: `doctor` does that.
    confine_command(&kept.below(&options.temp_dir));
}

/// The file of an image, opened and not yet read.
pub(super) struct Opened {
    path: PathBuf,
    file: File,
    secret: Option<bfc::Secret>,
    terminal: Option<File>,
}

impl Opened {
    /// As [`Opened::read`], after this process has given up its rights except those of `kept`.
    ///
    /// # Errors
    /// When it is none, or is damaged.
    pub(super) fn read_confined(self, options: &ImageOptions, kept: Kept) -> Result<Rootfs, Error> {
        confine(kept, options);
        self.read(options)
    }

    /// Reads the structures of the image.
    ///
    /// # Errors
    /// When it is none, or is damaged.
    pub(super) fn read(self, options: &ImageOptions) -> Result<Rootfs, Error> {
        let Self {
            path,
            file,
            secret,
            terminal,
        } = self;
        let again = file
            .try_clone()
            .map_err(Io::at("opening the image", &path))?;
        match Rootfs::open(
            vec![ImageFile {
                path: path.clone(),
                file,
                secret,
            }],
            options,
        ) {
            Err(fs::Error::Image {
                source: bfc::Error::KeyNeeded,
                image,
            }) => {
                let Some(secret) = terminal
                    .map(|terminal| prompt(&image, terminal))
                    .transpose()?
                else {
                    return Err(fs::Error::Image {
                        image,
                        source: bfc::Error::KeyNeeded,
                    }
                    .into());
                };
                Ok(Rootfs::open(
                    vec![ImageFile {
                        path,
                        file: again,
                        secret: Some(secret),
                    }],
                    options,
                )?)
            }
            other => Ok(other?),
        }
    }
}
