//! The worker: opens the images and serves them, and has no other rights.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bfc::Secret;
use fuser::{Config, Filesystem, Session, SessionACL};
use nix::sys::signal::SigSet;

use super::adapter::Adapter;
use super::channel::Channel;
use super::confine::Confinement;
use super::devices::Devices;
use super::engine::Engine;
use super::error::{Error, Failure, Result};
use super::in_hand::InHand;
use super::protocol::{MountedImage, TemporaryFile, WorkerReply, WorkerRequest};
use super::requests::Requests;
use super::stats::Metrics;
use super::surplus::Store;
use super::{attr, confine, resume, secrets, surplus};
use crate::erofs::{self, Inodes, Layout};
use crate::error::{Io, chain};
use crate::fs::{self, ImageFile, ImageOptions, ROOT, Rootfs, Spool};
use crate::text::hex;

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
    control.send(
        &WorkerReply::Opened {
            digests: digests(&rootfs),
        },
        &[],
    )?;
    let (resume, precautions, engine, mut fds) = loop {
        match control.receive()? {
            Some((WorkerRequest::Metadata, files)) => {
                control.send(&write_metadata(&rootfs, files)?, &[])?;
            }
            Some((
                WorkerRequest::Serve {
                    resume,
                    precautions,
                    engine,
                },
                fds,
            )) => break (resume, precautions, engine, fds),
            _ => return Err(Error::Gone { peer: "keeper" }),
        }
    };
    let layout = match engine {
        Engine::Fuse => None,
        Engine::Split => match Layout::of(rootfs.section(), erofs::LARGE) {
            Ok(layout) => Some(layout),
            Err(error) => return control.send(&WorkerReply::Unsayable(chain(&error)), &[]),
        },
    };
    let (Some(page), Some(fuse)) = (fds.pop(), fds.pop()) else {
        return Err(Error::Gone { peer: "keeper" });
    };
    let in_hand = Arc::new(InHand::new(&page, &precautions)?);
    drop(page);
    let (rootfs, metrics) = (Arc::new(rootfs), Arc::new(Metrics::new()));
    let requests = Requests::new(rootfs.clone(), metrics.clone(), in_hand.clone());
    let resends = Arc::new(OnceLock::new());
    let told = (rootfs.clone(), metrics.clone());
    let serving = Serving {
        fuse,
        resume,
        threads,
        resends: resends.clone(),
        tell: Box::new(move |resends| tell(&control, resends, confinement, &told.1, &told.0)),
    };
    match layout {
        None => {
            let (surplus, pusher) = surplus::channel(rootfs, metrics, in_hand);
            let adapter = Adapter::new(requests, surplus, resends, marks);
            let push = move |store: &Store<'_>| pusher.run(store);
            serving.run(adapter, precautions.push.then_some(push))
        }
        Some(layout) => {
            let (devices, decoding) = Devices::new(requests, rootfs, layout, in_hand, resends);
            let push = move |store: &Store<'_>| decoding.run(store);
            serving.run(devices, precautions.push.then_some(push))
        }
    }
}

/// The root digests of the images, or the identifiers of those that have none.
fn digests(rootfs: &Rootfs) -> Vec<String> {
    let digest = |container: &bfc::Container| match container.locator() {
        Ok(Some(locator)) => hex(&locator.root_digest),
        _ => hex(&container.header().uuid),
    };
    rootfs.containers().map(digest).collect()
}

/// Writes the EROFS metadata of an image into the file that the keeper has passed.
fn write_metadata(rootfs: &Rootfs, files: Vec<OwnedFd>) -> Result<WorkerReply> {
    let file = files.into_iter().next();
    let file = File::from(file.ok_or(Error::Gone { peer: "keeper" })?);
    let made = Layout::of(rootfs.section(), erofs::LARGE)
        .and_then(|layout| Ok((erofs::write(rootfs, &layout, Inodes::Long)?, layout)));
    Ok(match made {
        Ok((metadata, layout)) => {
            file.write_all_at(&metadata, 0)
                .map_err(Io::doing("handing over the metadata"))?;
            WorkerReply::Metadata {
                len: metadata.len() as u64,
                devices: [layout.bytes(0), layout.bytes(1)],
            }
        }
        Err(error) => WorkerReply::Unsayable(chain(&error)),
    })
}

/// A connection to serve.
struct Serving {
    fuse: OwnedFd,
    /// Whether another worker has served it before.
    resume: bool,
    threads: usize,
    /// Whether the kernel can send requests again, once a handshake has told.
    resends: Arc<OnceLock<bool>>,
    /// Tells the keeper that the mount is alive, and answers it.
    tell: Box<dyn FnOnce(Option<bool>) + Send>,
}

impl Serving {
    /// Serves until it is unmounted.
    fn run<F: Filesystem>(
        self,
        filesystem: F,
        push: Option<impl FnOnce(&Store<'_>) + Send + 'static>,
    ) -> Result<()> {
        let mut config = Config::default();
        // The kernel has checked who may access the mount.
        config.acl = SessionACL::All;
        config.n_threads = Some(self.threads);
        let session = if self.resume {
            resume::session(filesystem, &self.fuse, config)?
        } else {
            Session::from_fd(filesystem, self.fuse, SessionACL::All, config)
                .map_err(Io::doing("answering the kernel"))?
        };
        // The answer in a simulated handshake does not come from the kernel.
        let resends = self.resends.get().copied().filter(|_| !self.resume);
        let notifier = session.notifier();
        if let Some(push) = push {
            start_thread("push", move || {
                push(&|ino, offset, bytes| drop(notifier.store(ino, offset, bytes)));
            })?;
        }
        let tell = self.tell;
        start_thread("control", move || tell(resends))?;
        Ok(session.run().map_err(Io::doing("serving"))?)
    }
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
