//! The worker: opens the images and serves them, and has no other rights.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bfc::Secret;
use fuser::{Config, Session, SessionACL};
use nix::sys::signal::SigSet;

use super::adapter::Adapter;
use super::channel::Channel;
use super::confine::Confinement;
use super::error::{Error, Failure, Result};
use super::in_hand::InHand;
use super::protocol::{MountedImage, TemporaryFile, WorkerReply, WorkerRequest};
use super::stats::Metrics;
use super::{attr, confine, resume, secrets, surplus};
use crate::error::Io;
use crate::fs::{self, ImageFile, ImageOptions, ROOT, Rootfs, Spool};

/// How long the keeper may take to make a temporary file.
const PATIENCE: Duration = Duration::from_secs(10);

/// The main function of a worker: opens the images that the keeper passes, and serves until they
/// are unmounted. `describe` describes an error for the user.
///
/// # Errors
/// If it ended before the file system was unmounted.
pub fn main(describe: fn(&fs::Error) -> Failure) -> Result<()> {
    let _ = rustix::thread::set_name(c"lxcri-fs-worker");
    let control = Channel::from_stdin("keeper")?;
    secrets::forbid_dumps();
    let marks = attr::marks();
    let confinement = confine::confine();
    // A signal to all processes of a service or of a terminal must not end the mount: the keeper
    // decides.
    let _ = SigSet::all().thread_block();
    let Some((
        WorkerRequest::Open {
            images,
            options,
            threads,
        },
        files,
    )) = control.receive()?
    else {
        return Err(Error::Gone { peer: "keeper" });
    };
    let rootfs = match open(images, files, &options) {
        Ok(rootfs) => rootfs,
        Err(error) => return control.send(&WorkerReply::Failed(describe(&error)), &[]),
    };
    control.send(&WorkerReply::Opened, &[])?;
    let Some((
        WorkerRequest::Serve {
            resume,
            precautions,
        },
        mut fds,
    )) = control.receive()?
    else {
        return Err(Error::Gone { peer: "keeper" });
    };
    let (Some(page), Some(fuse)) = (fds.pop(), fds.pop()) else {
        return Err(Error::Gone { peer: "keeper" });
    };
    let in_hand = Arc::new(InHand::new(&page, &precautions)?);
    drop(page);
    let mut config = Config::default();
    // The kernel has checked who may access the mount.
    config.acl = SessionACL::All;
    config.n_threads = Some(threads);
    let rootfs = Arc::new(rootfs);
    let metrics = Arc::new(Metrics::new());
    let (surplus, pusher) = surplus::channel(rootfs.clone(), metrics.clone(), in_hand.clone());
    let resends = Arc::new(OnceLock::new());
    let adapter = Adapter::new(
        rootfs.clone(),
        surplus,
        metrics.clone(),
        in_hand,
        resends.clone(),
        marks,
    );
    let session = if resume {
        resume::session(adapter, &fuse, config)?
    } else {
        Session::from_fd(adapter, fuse, SessionACL::All, config)
            .map_err(Io::doing("answering the kernel"))?
    };
    // The answer in a simulated handshake does not come from the kernel.
    let resends = resends.get().copied().filter(|_| !resume);
    let notifier = session.notifier();
    if precautions.push {
        start_thread("push", move || {
            pusher.run(&|ino, offset, bytes| drop(notifier.store(ino, offset, bytes)));
        })?;
    }
    start_thread("control", move || {
        tell(&control, resends, confinement, &metrics, &rootfs)
    })?;
    Ok(session.run().map_err(Io::doing("serving"))?)
}

fn start_thread(name: &str, f: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(f).map_err(Io::doing("starting a thread"))?;
    Ok(())
}

/// Tells the keeper that the mount is alive, and answers its requests for statistics. This thread
/// only waits, so it ends as soon as the process is killed: the keeper watches it.
fn tell(
    control: &Channel,
    resends: Option<bool>,
    confinement: Confinement,
    metrics: &Metrics,
    rootfs: &Rootfs,
) {
    let sentinel = rustix::thread::gettid().as_raw_nonzero().get();
    let mut told = control.send(
        &WorkerReply::Serving {
            sentinel,
            resends,
            confinement,
        },
        &[],
    );
    while told.is_ok() {
        let Ok(Some((WorkerRequest::Stats, _))) = control.receive() else {
            break;
        };
        told = control.send(
            &WorkerReply::Stats(metrics.snapshot(rootfs.cache_counts())),
            &[],
        );
    }
}

fn open(
    images: Vec<MountedImage>,
    files: Vec<OwnedFd>,
    options: &ImageOptions,
) -> fs::Result<Rootfs> {
    let mut files = files.into_iter();
    let spool = KeeperSpool(Mutex::new(
        files
            .next()
            .map(|socket| Channel::from_passed(socket, "keeper")),
    ));
    let sources = images
        .into_iter()
        .zip(files)
        .map(|(image, file)| ImageFile {
            path: PathBuf::from(image.path),
            file: file.into(),
            secret: image.key.map(|key| {
                secrets::lock(&key.0);
                Secret::Key(key.0)
            }),
        });
    let rootfs = Rootfs::open_with(sources.collect(), options, Box::new(spool))?;
    // Whoever mounts it hears of a damaged root directory, without which nothing is found.
    rootfs.inode(ROOT)?;
    rootfs.lookup(ROOT, b"bin")?;
    Ok(rootfs)
}

/// Temporary files that the keeper makes.
struct KeeperSpool(Mutex<Option<Channel>>);

impl Spool for KeeperSpool {
    fn file(&self, size: u64) -> io::Result<File> {
        let keeper = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ask = |keeper: &Channel| {
            keeper.send(&TemporaryFile { size }, &[])?;
            keeper.expect::<i32>(PATIENCE)
        };
        match keeper.as_ref().map(ask) {
            Some(Ok((0, mut fds))) => fds
                .pop()
                .map(File::from)
                .ok_or_else(|| io::ErrorKind::NotFound.into()),
            Some(Ok((errno, _))) => Err(io::Error::from_raw_os_error(errno)),
            Some(Err(error)) => Err(io::Error::other(error)),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

/// Default number of threads. Requests wait for the image's disk, so there may be more threads than
/// processors.
pub fn default_threads() -> usize {
    std::thread::available_parallelism()
        .map_or(4, usize::from)
        .clamp(4, 16)
}
