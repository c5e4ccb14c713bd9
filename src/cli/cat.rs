//! `lxcri-fs cat`

use std::io::Write;
use std::path::{Path, PathBuf};

use bfc::format::{S_IFLNK, S_IFMT};
use clap::Args;

use super::error::{Error, Exit};
use super::open::ImageArgs;
use super::output::printable;
use crate::fs::{ImageOptions, Rootfs};
use crate::serve::confine::Kept;

/// Print files from an image
#[derive(Debug, Args)]
#[command(after_help = "Example: lxcri-fs cat debian.bfc etc/os-release")]
pub(super) struct CatArgs {
    #[command(flatten)]
    image: ImageArgs,
    /// The paths of the files in the image
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

pub(super) fn run(args: &CatArgs) -> Result<(), Error> {
    let rootfs = args
        .image
        .open_confined(&ImageOptions::default(), Kept::default())?;
    let mut out = super::output::bytes();
    args.paths
        .iter()
        .try_for_each(|path| print(&rootfs, path, &mut out))?;
    out.flush().map_err(Error::Output)
}

fn print(rootfs: &Rootfs, path: &Path, out: &mut impl Write) -> Result<(), Error> {
    let in_image = |source| Error::InImage {
        path: path.to_owned(),
        source,
    };
    let (ino, inode) = rootfs.resolve(path).map_err(in_image)?;
    if inode.is_dir() {
        return Err(no_file(path, "a directory", "`lxcri-fs ls` lists it"));
    }
    if inode.mode & S_IFMT == S_IFLNK {
        let target = rootfs.readlink(ino).map_err(in_image)?;
        let what = format!("a symlink to {}", printable(&target));
        return Err(no_file(path, &what, "name the file that it leads to"));
    }
    // Reads in pieces instead of streaming: content that can only be checked as a whole must not be
    // printed before the check.
    let (mut offset, mut buf) = (0, Vec::new());
    loop {
        buf.clear();
        rootfs
            .read(ino, offset, 1 << 20, &mut buf)
            .map_err(in_image)?;
        if buf.is_empty() {
            return Ok(());
        }
        out.write_all(&buf).map_err(Error::Output)?;
        offset += buf.len() as u64;
    }
}

fn no_file(path: &Path, what: &str, hint: &str) -> Error {
    Error::Other {
        message: format!("{} is {what}", path.display()),
        hint: Some(hint.to_owned()),
        exit: Exit::Failure,
    }
}
