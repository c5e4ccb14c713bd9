//! The worker: opens the images, serves them, and has nothing else.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use bfc::Secret;
use fuser::{Config, Session, SessionACL};
use rustix::process::DumpableBehavior;

use super::adapter::Adapter;
use super::channel::Channel;
use super::error::{Error, Result};
use super::protocol::{Failure, Image, WorkerReply, WorkerRequest};
use super::{resume, surplus};
use crate::fs::{self, Options, Rootfs, Source};

/// The life of a worker: opens what the keeper asks for and serves until it is unmounted. `describe` tells a person what is wrong with an image.
///
/// # Errors
/// Whatever ended it before the file system was unmounted.
pub fn main(describe: fn(&fs::Error) -> Failure) -> Result<()> {
    let _ = rustix::thread::set_name(c"lxcri-fs-worker");
    let control = Channel::from_stdin("keeper")?;
    confine();
    let Some((WorkerRequest::Open { images, options, threads }, files)) = control.receive()? else {
        return Err(Error::Gone { peer: "keeper" });
    };
    let rootfs = match open(images, files, &options) {
        Ok(rootfs) => rootfs,
        Err(error) => return control.send(&WorkerReply::Failed(describe(&error)), &[]),
    };
    control.send(&WorkerReply::Opened, &[])?;
    let Some((WorkerRequest::Serve { resume }, mut fds)) = control.receive()? else { return Err(Error::Gone { peer: "keeper" }) };
    let Some(fuse) = fds.pop() else { return Err(Error::Gone { peer: "keeper" }) };
    let mut config = Config::default();
    // The kernel has checked who may come in.
    config.acl = SessionACL::All;
    config.n_threads = Some(threads);
    let (surplus, pusher) = surplus::channel();
    let adapter = Adapter::new(rootfs, surplus);
    let session = if resume {
        resume::session(adapter, &fuse, config)?
    } else {
        Session::from_fd(adapter, fuse, SessionACL::All, config).map_err(Error::system("answering the kernel"))?
    };
    let notifier = session.notifier();
    std::thread::Builder::new().name("push".into()).spawn(move || pusher.run(&notifier)).map_err(Error::system("starting a thread"))?;
    control.send(&WorkerReply::Serving, &[])?;
    session.run().map_err(Error::system("serving"))
}

/// How much more the worker is to the out-of-memory killer's taste than its keeper.
const OOM_DISTANCE: i32 = 100;

fn prefer_for_oom() -> std::io::Result<()> {
    const PATH: &str = "/proc/self/oom_score_adj";
    let inherited = std::fs::read_to_string(PATH)?.trim().parse::<i32>().map_err(std::io::Error::other)?;
    std::fs::write(PATH, (inherited + OOM_DISTANCE).min(1000).to_string())
}

fn confine() {
    if let Err(error) = prefer_for_oom() {
        tracing::debug!(%error, "oom_score_adj stays as it is");
    }
    // Keys are in its memory. And a dump would wait for threads which wait for this process to be replaced.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

fn open(images: Vec<Image>, files: Vec<OwnedFd>, options: &Options) -> fs::Result<Rootfs> {
    let sources = images.into_iter().zip(files).map(|(image, file)| Source {
        path: PathBuf::from(image.path),
        file: file.into(),
        secret: image.key.map(|key| Secret::Key(key.0)),
    });
    Rootfs::open(sources.collect(), options)
}
