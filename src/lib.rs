//! Container root file systems from single-file BFC images: nothing is unpacked, a root file system
//! is available as soon as its image file is, and every byte is checked when it is read.
//!
//! Build an image from a directory, and read a file from it without mounting it:
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::path::Path;
//!
//! use lxcri_fs::image;
//!
//! let dir = tempfile::tempdir()?;
//! let (tree, file) = (dir.path().join("tree"), dir.path().join("tree.bfc"));
//! std::fs::create_dir(&tree)?;
//! std::fs::write(tree.join("hello"), "Hello\n")?;
//!
//! image::Build::of(&tree).to_file(&file, &())?;
//!
//! let rootfs = image::open(&file, None)?;
//! let (ino, inode) = rootfs.resolve(Path::new("hello"))?;
//! let mut bytes = Vec::new();
//! rootfs.read(ino, 0, usize::try_from(inode.size)?, &mut bytes)?;
//! assert_eq!(bytes, b"Hello\n");
//! # Ok(())
//! # }
//! ```
//!
//! [`image::Mount`] mounts an image, and [`image::Pull`] pulls one into a store; `examples/` has a
//! program for each.
//!
//! | module | what it is for |
//! |---|---|
//! | [`image`] | what is done to images: open, build, pull, mount |
//! | [`fs`] | the file system in an image: look up, read, walk, verify, extract |
//! | [`runtime`] | containers for LXC, crun, runc and podman |
//! | [`store`] | where images and containers are: a directory, or ZFS |
//! | [`error`] | how errors are told |
//!
//! The other modules implement these. Dependencies go downwards only: [`cli`] parses arguments and
//! prints; [`registry`] speaks the OCI distribution protocol, and [`trust`] says what of it may be
//! pulled; [`upper`] manages uppers, which take
//! what a container writes over an image; [`serve`] is the thin FUSE adapter over [`fs`], with the
//! processes that keep mounts; [`build`] turns sources into images, from [`layer`] tars; [`erofs`]
//! makes metadata for the kernel's EROFS; [`zfs`] is the `zfs` command behind types; [`sys`] is the
//! operating system; [`text`] makes untrusted text safe to print. The crate `bfc` is the image
//! format.
//!
//! Only `cli::output` prints, so that no untrusted text can control a terminal; clippy.toml and the
//! lints below enforce that.

#![warn(unreachable_pub)]
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]

pub mod build;
pub mod cli;
pub mod erofs;
pub mod error;
pub mod fs;
pub mod image;
pub mod layer;
pub mod reference;
pub mod registry;
pub mod runtime;
pub mod serve;
pub mod store;
mod sync;
pub mod sys;
pub mod text;
pub mod trust;
pub mod update;
pub mod upper;
pub mod zfs;

/// Runs the keeper or the worker of a mount, if this process was started as one, and returns the
/// exit code; `None` if it was not. Mounting starts the running program again as these processes,
/// so a program that mounts must call this first, and exit with the code.
pub fn run_as_daemon() -> Option<u8> {
    use error::Report;
    let args: Vec<_> = std::env::args_os().collect();
    let ended = serve::daemon::run(&args)?;
    Some(ended.map_or_else(|error| error.exit() as u8, |()| 0))
}
