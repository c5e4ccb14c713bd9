//! lxcri-fs: container root file systems out of single-file BFC images.
//!
//! The modules depend on each other downwards only: [`cli`] turns arguments into calls, [`runtime`] makes containers of images, [`store`] knows where
//! images and containers are, [`registry`] pulls images and pushes them, [`upper`] puts what a container writes over an image, [`serve`] is the thin FUSE
//! adapter over [`fs`], the file system itself, which knows nothing of FUSE; [`zfs`] is the `zfs` command behind types; `bfc` is the image format;
//! [`text`] is how people are told what strangers had a hand in.
//!
//! Nothing is printed but through `cli::output`, so that nothing drives a terminal: clippy.toml and the lints below see to that.

#![deny(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]

pub mod build;
pub mod cli;
pub mod error;
pub mod fs;
pub mod image;
pub mod layer;
pub mod reference;
pub mod registry;
pub mod runtime;
pub mod serve;
pub mod store;
pub mod sys;
pub mod text;
pub mod upper;
pub mod zfs;
