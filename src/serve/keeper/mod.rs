//! The keeper, which holds a mount and the worker that serves it. It parses nothing from an image.

mod commands;
mod detach;
mod events;
mod kept_mount;
mod machine;
#[cfg(test)]
mod model;
mod process;
mod restarts;
mod start;
mod suspects;
mod upgrade;

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

pub(super) use self::kept_mount::KeptMount;
use self::machine::Machine;
use self::process::Worker;
use self::start::KeeperStart;
use super::channel::{Channel, Listener};
use super::engine::{Engine, Wanted};
use super::error::{Error, Failure, Result};
use super::fuse_mount::{self, Unmount};
use super::log::{self, Style};
use super::mountpoint::MountPoint;
use super::protocol::{KeeperReply, MountRequest};
use super::rundir::{Locked, RunDir};
use super::split::{self, Metadata, cache};
use super::{rundir, secrets};
use crate::error::{Io, chain};
use crate::sys::{mountinfo, namespace};

/// How long opening images and mounting may take altogether.
const LIMIT: Duration = Duration::from_secs(60);
/// This program, even if its file has been replaced or removed.
const SELF: &str = "/proc/self/exe";

/// Starts a keeper in a session of its own, and waits until the file system answers. `lock` is the
/// lock of the directory of a shared mount: the keeper holds it too until it is ready, so that it
/// is not taken for dead if this process is killed.
///
/// # Errors
/// [`Error::Failed`] with the error of the keeper or its worker; nothing is left behind then.
pub fn start(
    request: &MountRequest,
    lock: Option<&Locked>,
    images: &[BorrowedFd<'_>],
    log_file: Option<&Path>,
) -> Result<()> {
    if images.len() > crate::fs::MAX_IMAGES {
        return Err(Error::TooManyImages {
            found: images.len(),
        });
    }
    let (control, stdin) = Channel::pair("keeper")?;
    let (stderr, style) = log::open(log_file)?;
    let mut keeper = secrets::clear_environment(&mut Command::new(SELF))
        .arg0("lxcri-fs")
        .args(["keeper", "--log-style", style.name()])
        .args(request.orphan.then_some(ORPHAN))
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .map_err(Io::doing("starting the keeper"))?;
    let fds: Vec<BorrowedFd<'_>> = lock
        .map(Locked::as_fd)
        .into_iter()
        .chain(images.iter().copied())
        .collect();
    control.send(&KeeperStart::Mount(request.clone()), &fds)?;
    if request.orphan {
        let _ = keeper.wait();
    }
    // Longer than the keeper itself waits, so that it can clean up and report.
    let reply = control.expect(LIMIT + Duration::from_secs(10));
    match &reply {
        Ok((KeeperReply::Mounted, _)) => return Ok(()),
        Ok(_) => {}
        // The started process is not the keeper then.
        Err(_) if request.orphan => {}
        Err(_) => drop(keeper.kill()),
    }
    let _ = keeper.wait();
    match reply? {
        (KeeperReply::Failed(failure), _) => Err(Error::Failed(Box::new(failure))),
        _ => Err(Error::Gone { peer: "keeper" }),
    }
}

/// Turns this process into the keeper with execve(2), which clears its environment and memory.
/// Returns only on failure.
pub fn become_one(request: &MountRequest, images: &[BorrowedFd<'_>]) -> Error {
    let hand_over = || -> Result<()> {
        // The message waits in the socket until the keeper reads it.
        let (ours, stdin) = Channel::to_pass("keeper")?;
        ours.send(&KeeperStart::Foreground(request.clone()), images)?;
        Ok(rustix::stdio::dup2_stdin(stdin).map_err(Io::doing("handing over"))?)
    };
    if let Err(error) = hand_over() {
        return error;
    }
    let mut command = Command::new(SELF);
    let command = secrets::clear_environment(&mut command)
        .arg0("lxcri-fs")
        .args(["keeper", "--log-style", Style::Plain.name()]);
    Io::doing("starting the keeper")(command.exec()).into()
}

/// Argument of a process that only starts the keeper and ends, so that the keeper is not a child of
/// the caller.
pub const ORPHAN: &str = "--orphan";

/// Starts the actual keeper with the same descriptors.
///
/// # Errors
/// [`Error::Io`] if it cannot be started.
pub fn start_orphan(style: Style) -> Result<()> {
    let mut keeper = Command::new(SELF);
    secrets::clear_environment(&mut keeper)
        .arg0("lxcri-fs")
        .args(["keeper", "--log-style", style.name()]);
    keeper.spawn().map_err(Io::doing("starting the keeper"))?;
    Ok(())
}

/// Why a keeper ended, though its file system was not unmounted.
#[derive(Debug)]
pub struct Ended {
    /// What happened.
    pub error: Error,
    /// Whether it was the process that its caller had started: [`become_one`].
    pub foreground: bool,
}

/// The main function of a keeper that [`start`] started, or that [`become_one`] made from a
/// command.
///
/// # Errors
/// If the file system could not be mounted, or ended without being unmounted.
pub fn main(style: Style) -> Result<(), Ended> {
    let _ = rustix::thread::set_name(c"lxcri-fs-keeper");
    secrets::forbid_dumps();
    let background = |error| Ended {
        error,
        foreground: false,
    };
    let control = Channel::from_stdin("command").map_err(background)?;
    match control.expect(LIMIT).map_err(background)? {
        (KeeperStart::Foreground(request), images) => {
            foreground(request, images, style).map_err(|error| Ended {
                error,
                foreground: true,
            })
        }
        (KeeperStart::Mount(request), fds) => {
            in_background(request, fds, style, control).map_err(background)
        }
        (KeeperStart::Resume(handover), fds) => Keeper::resume(handover, fds, style)
            .and_then(|mut k| k.keep())
            .map_err(background),
    }
}

fn foreground(request: MountRequest, images: Vec<OwnedFd>, style: Style) -> Result<()> {
    let mut keeper = Keeper::mount(request, images, style)?;
    keeper.place.stay_alone();
    keeper.keep()
}

fn in_background(
    request: MountRequest,
    mut fds: Vec<OwnedFd>,
    style: Style,
    control: Channel,
) -> Result<()> {
    // Leave the caller's session, and its directory, which it may want to unmount or remove.
    let _ = rustix::process::setsid();
    let _ = rustix::process::chdir("/");
    let locked = match &request.shared {
        Some(name) if !fds.is_empty() => {
            Some(RunDir::named(&name.to_string_lossy())?.locked_by(fds.remove(0)))
        }
        _ => None,
    };
    detach::leave_control_group();
    if request.shared.is_some()
        && let Err(error) = rundir::base().and_then(|base| Ok(namespace::enter_init(&base)?))
    {
        tracing::debug!(
            "staying in the mount namespace of the mounting process: {}",
            chain(&error)
        );
    }
    match Keeper::mount(request, fds, style) {
        Ok(mut keeper) => {
            if let Err(error) = control.send(&KeeperReply::Mounted, &[]) {
                // Nothing else knows about this mount.
                keeper.place.abandon(locked);
                return Err(error);
            }
            // The command still holds it while it lives.
            drop(locked);
            drop(control);
            detach::into_scope(&keeper.pids());
            if let Some((place, metadata)) = keeper.unkept.take() {
                place.write(&metadata);
            }
            keeper.keep()
        }
        Err(error) => {
            // A process that waits for the lock finds that the directory is gone.
            let removed = locked.map(Locked::remove);
            control.send(&KeeperReply::Failed(failure_of(&error)), &[])?;
            removed.unwrap_or(Ok(()))?;
            Err(error)
        }
    }
}

fn failure_of(error: &Error) -> Failure {
    match error {
        Error::Failed(failure) => (**failure).clone(),
        error => Failure {
            message: chain(error),
            hint: None,
            exit: 1,
            key_needed: None,
        },
    }
}

/// A keeper: its [`Machine`] decides, and acts on the rest.
struct Keeper {
    machine: Machine,
    request: MountRequest,
    images: Vec<OwnedFd>,
    style: Style,
    place: KeptMount,
    /// /dev/fuse. While it is open here, requests wait when a worker dies. Closed when there will
    /// be no other worker.
    fuse: Option<OwnedFd>,
    worker: Option<Worker>,
    /// Replaced workers that have not ended yet.
    departed: Vec<Worker>,
    signals: SignalFd,
    /// Becomes readable, with priority, when something is mounted or unmounted.
    mounts: File,
    control: Option<Listener>,
    /// Commands that wait for the worker's statistics, and until when.
    waiting: Vec<(Channel, Instant)>,
    since: SystemTime,
    /// How often the program was replaced.
    upgrades: u64,
    /// New metadata, and where to keep them once nobody waits.
    unkept: Option<(cache::Place, Metadata)>,
}

impl Keeper {
    /// Mounts with the engine that the request wants; if that is left open, with FUSE where the
    /// other cannot.
    fn mount(mut request: MountRequest, images: Vec<OwnedFd>, style: Style) -> Result<Self> {
        let engine = match request.engine {
            Wanted::Fuse => Engine::Fuse,
            Wanted::Auto | Wanted::Split => Engine::Split,
        };
        match Self::mount_with(engine, &request, &images, style) {
            Err(Error::Split { reason }) if request.engine == Wanted::Auto => {
                tracing::info!(reason, "mounting with FUSE alone");
                request.engine = Wanted::Fuse;
                Self::mount(request, images, style)
            }
            mounted => {
                let Mounted {
                    worker,
                    fuse,
                    resends,
                    place,
                    control,
                    unkept,
                } = mounted?;
                let machine = Machine::new(Instant::now(), true, resends, 0);
                let mut undo = place.clone();
                Self::assemble(
                    machine,
                    request,
                    images,
                    style,
                    place,
                    fuse,
                    Some(worker),
                    control,
                )
                .inspect_err(|_| undo.abandon(None))
                .map(|keeper| Self { unkept, ..keeper })
            }
        }
    }

    /// Mounts after the images are open, and unmounts again if the file system does not answer.
    fn mount_with(
        engine: Engine,
        request: &MountRequest,
        images: &[OwnedFd],
        style: Style,
    ) -> Result<Mounted> {
        std::thread::scope(|scope| {
            let mut worker = Worker::start(style)?;
            let digests = worker.open(request, images, LIMIT)?;
            let place = request.shared.as_ref().and_then(|name| {
                // With a digest, nothing but the image itself is believed.
                let is_any = engine == Engine::Split && request.options.digest.is_none();
                cache::Place::of(name.to_str().filter(|_| is_any)?, &digests)
            });
            let kept = place.clone();
            // A process of its own makes the metadata, so that the one that serves is small, while
            // that one connects to the kernel.
            let metadata = move || -> Result<_> {
                if let Some(metadata) = kept.as_ref().and_then(cache::Place::read) {
                    return Ok((metadata, false));
                }
                let mut worker = Worker::start(style)?;
                worker.open(request, images, LIMIT)?;
                Ok((worker.metadata(LIMIT)?, true))
            };
            let making = match engine {
                Engine::Fuse => None,
                Engine::Split => Some(
                    std::thread::Builder::new()
                        .spawn_scoped(scope, metadata)
                        .map_err(Io::doing("starting a thread"))?,
                ),
            };
            let at = MountPoint::open(Path::new(&request.mountpoint))?;
            // FUSE serves the file system itself, or what EROFS reads.
            let served = match engine {
                Engine::Fuse => at.clone(),
                Engine::Split => devices_of(request)?,
            };
            let source = Path::new(source_of(request));
            let fuse = fuse_mount::mount(source, &served, request.flags)?;
            let undo = || {
                for at in [&at, &served] {
                    if at.mounted().is_ok_and(|mounted| mounted.is_some()) {
                        let how = Unmount {
                            lazy: true,
                            force: true,
                        };
                        let _ = fuse_mount::unmount(at, how);
                    }
                }
            };
            let serve = || -> Result<_> {
                let resends = worker.serve_first(&fuse, engine, LIMIT)?;
                let is_ours = |at: &MountPoint| {
                    let mounted = at.mounted()?.filter(mountinfo::MountInfo::is_ours);
                    mounted.ok_or(Error::Gone { peer: "worker" })
                };
                // The kernel limits it during the handshake, so it is raised afterwards.
                let (major, minor) = is_ours(&served)?.dev;
                fuse_mount::raise_read_ahead(&format!("{major}:{minor}"));
                let mut new = None;
                if let Some(making) = making {
                    let made = making.join();
                    let made = made.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                    let (metadata, is_new) = made.map_err(|error| match error {
                        Error::Split { .. } => error,
                        // The image is open in the worker that serves: it is one for FUSE.
                        error => Error::Split {
                            reason: chain(&error),
                        },
                    })?;
                    split::mount(&metadata, &served, source, &at, LIMIT)?;
                    new = Some(metadata).filter(|_| is_new);
                }
                let (kept_mount, control) = KeptMount::settle(request, is_ours(&at)?)?;
                Ok((resends, kept_mount, control, new))
            };
            let (resends, kept_mount, control, new) = serve().inspect_err(|_| undo())?;
            tracing::info!(
                image = %source.display(),
                mountpoint = %at.path().display(),
                %engine,
                "mounted",
            );
            Ok(Mounted {
                worker,
                fuse,
                resends,
                place: kept_mount,
                control,
                unkept: place.zip(new),
            })
        })
    }

    #[allow(clippy::too_many_arguments)] // all that it is made of
    fn assemble(
        machine: Machine,
        request: MountRequest,
        images: Vec<OwnedFd>,
        style: Style,
        place: KeptMount,
        fuse: OwnedFd,
        worker: Option<Worker>,
        control: Option<Listener>,
    ) -> Result<Self> {
        let mounts = Path::new("/proc/self/mountinfo");
        let keeper = Self {
            machine,
            request,
            images,
            style,
            place,
            fuse: Some(fuse),
            worker,
            departed: Vec::new(),
            signals: block_signals()?,
            mounts: File::open(mounts).map_err(Io::at("opening", mounts))?,
            control,
            waiting: Vec::new(),
            since: SystemTime::now(),
            upgrades: 0,
            unkept: None,
        };
        for key in keeper
            .request
            .images
            .iter()
            .filter_map(|image| image.key.as_ref())
        {
            secrets::lock(&key.0);
        }
        Ok(keeper)
    }

    /// The processes of this mount.
    fn pids(&self) -> Vec<u32> {
        std::iter::once(std::process::id())
            .chain(self.worker.iter().chain(&self.departed).map(Worker::pid))
            .collect()
    }
}

/// A new mount.
struct Mounted {
    worker: Worker,
    fuse: OwnedFd,
    /// Whether the kernel can send requests again.
    resends: bool,
    place: KeptMount,
    control: Option<Listener>,
    /// New metadata, and where to keep them.
    unkept: Option<(cache::Place, Metadata)>,
}

/// Where the decoded devices of a shared mount are, in a hidden place.
fn devices_of(request: &MountRequest) -> Result<MountPoint> {
    let name = request.shared.as_ref().ok_or_else(|| Error::Split {
        reason: "a mount with a keeper in the foreground, or one that fusermount3 makes, is FUSE's"
            .to_owned(),
    })?;
    let path = RunDir::named(&name.to_string_lossy())?.devices();
    match std::fs::create_dir(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(Io::at("making the directory", &path)(e).into())
        }
        _ => MountPoint::open(&path),
    }
}

/// The source of the mount: the uppermost image.
fn source_of(request: &MountRequest) -> &OsStr {
    request
        .images
        .last()
        .map_or(OsStr::new("lxcri-fs"), |image| &image.path)
}

/// Blocks the signals that ask to end, which are read from a descriptor.
fn block_signals() -> Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block().map_err(Io::doing("blocking signals"))?;
    let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
    Ok(signals.map_err(Io::doing("watching for signals"))?)
}
