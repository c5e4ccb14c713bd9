//! The keeper: holds the mount and the worker that serves it. It parses nothing that comes out of an image.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::channel::Channel;
use super::error::{Error, Result, chain};
use super::log::{self, Style};
use super::mount::{self, Unmount};
use super::mountinfo;
use super::protocol::{Failure, KeeperReply, MountRequest, WorkerReply, WorkerRequest};
use super::state::{State, StateFile};
use super::users;

/// How long opening images and mounting may take altogether.
const LIMIT: Duration = Duration::from_secs(60);
/// This program, also when its file has been replaced or removed.
const SELF: &str = "/proc/self/exe";

/// Starts a keeper of its own session and waits until the file system answers.
///
/// # Errors
/// [`Error::Failed`] with what the keeper or its worker says; nothing is left behind then.
pub fn start(request: &MountRequest, images: &[BorrowedFd<'_>], log_file: Option<&Path>) -> Result<()> {
    let (control, stdin) = Channel::pair("keeper")?;
    let (stderr, style) = log::open(log_file)?;
    let mut keeper = Command::new(SELF)
        .arg0("lxcri-fs")
        .args(["keeper", "--log-style", style.name()])
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .map_err(Error::system("starting the keeper"))?;
    control.send(request, images)?;
    // Somewhat longer than the keeper itself waits, so that it can clean up and tell.
    let reply = control.expect(LIMIT + Duration::from_secs(10));
    match reply {
        Ok((KeeperReply::Mounted, _)) => return Ok(()),
        Ok((KeeperReply::Failed(_), _)) => {}
        Err(_) => drop(keeper.kill()),
    }
    let _ = keeper.wait();
    match reply? {
        (KeeperReply::Failed(failure), _) => Err(Error::Failed(Box::new(failure))),
        (KeeperReply::Mounted, _) => Ok(()),
    }
}

/// The life of a keeper that [`start`] started.
///
/// # Errors
/// When the file system could not be mounted, or ended otherwise than by being unmounted.
pub fn main(style: Style) -> Result<()> {
    let _ = rustix::thread::set_name(c"lxcri-fs-keeper");
    let control = Channel::from_stdin("command")?;
    // Out of the caller's session, and away from a directory that it may want to unmount or remove.
    let _ = rustix::process::setsid();
    let _ = rustix::process::chdir("/");
    let (request, images) = control.expect::<MountRequest>(LIMIT)?;
    match Keeper::mount(request, images, style) {
        Ok(mut keeper) => {
            if let Err(error) = control.send(&KeeperReply::Mounted, &[]) {
                // Nobody knows of this mount.
                keeper.abandon();
                return Err(error);
            }
            drop(control);
            keeper.keep()
        }
        Err(error) => {
            let failure = match &error {
                Error::Failed(failure) => (**failure).clone(),
                error => Failure { message: chain(error), hint: None, exit: 1, key_needed: None },
            };
            control.send(&KeeperReply::Failed(failure), &[])?;
            Err(error)
        }
    }
}

/// Mounts, and keeps the mount in this very process. `ready` is called when the file system answers.
///
/// # Errors
/// As [`main`].
pub fn run(request: MountRequest, images: Vec<OwnedFd>, ready: impl FnOnce()) -> Result<()> {
    let mut keeper = Keeper::mount(request, images, Style::Plain)?;
    ready();
    keeper.keep()
}

/// The process that serves.
struct Worker {
    process: Child,
    control: Channel,
    pidfd: OwnedFd,
}

impl Worker {
    fn start(style: Style) -> Result<Self> {
        let (control, stdin) = Channel::pair("worker")?;
        let process = Command::new(SELF)
            .arg0("lxcri-fs")
            .args(["worker", "--log-style", style.name()])
            .stdin(stdin)
            .stdout(Stdio::null())
            // A terminal's interrupt is for the keeper alone.
            .process_group(0)
            .spawn()
            .map_err(Error::system("starting the worker"))?;
        let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
        let pidfd = pid.ok_or(rustix::io::Errno::SRCH).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        Ok(Self { process, control, pidfd: pidfd.map_err(Error::system("watching the worker"))? })
    }

    /// Sends a request, and waits for its answer.
    fn ask(&self, request: &WorkerRequest, fds: &[BorrowedFd<'_>]) -> Result<WorkerReply> {
        self.control.send(request, fds)?;
        match self.control.expect(LIMIT)?.0 {
            WorkerReply::Failed(failure) => Err(Error::Failed(Box::new(failure))),
            reply => Ok(reply),
        }
    }

    fn end(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Keeper {
    mountpoint: PathBuf,
    image: PathBuf,
    /// /dev/fuse: as long as it is open here, requests wait when a worker dies.
    _fuse: OwnedFd,
    worker: Worker,
    signals: SignalFd,
    dev: Option<(u32, u32)>,
    _state: Option<StateFile>,
}

impl Keeper {
    fn mount(request: MountRequest, images: Vec<OwnedFd>, style: Style) -> Result<Self> {
        let signals = block_signals()?;
        let mut worker = Worker::start(style)?;
        match Self::mount_with(&request, &images, &worker) {
            Ok((fuse, dev)) => {
                let mountpoint = PathBuf::from(&request.mountpoint);
                let image = PathBuf::from(source_of(&request));
                let state = write_state(&request, dev);
                tracing::info!(image = %image.display(), mountpoint = %mountpoint.display(), "mounted");
                Ok(Self { mountpoint, image, _fuse: fuse, worker, signals, dev, _state: state })
            }
            Err(error) => {
                worker.end();
                Err(error)
            }
        }
    }

    /// Nothing is mounted before the images are open, and nothing stays mounted that does not answer.
    fn mount_with(request: &MountRequest, images: &[OwnedFd], worker: &Worker) -> Result<(OwnedFd, Option<(u32, u32)>)> {
        let open = WorkerRequest::Open { images: request.images.clone(), options: request.options.clone(), threads: request.threads };
        let files: Vec<BorrowedFd<'_>> = images.iter().map(AsFd::as_fd).collect();
        worker.ask(&open, &files)?;
        let mountpoint = Path::new(&request.mountpoint);
        let fuse = mount::mount(Path::new(source_of(request)), mountpoint, request.flags)?;
        if let Err(error) = worker.ask(&WorkerRequest::Serve, &[fuse.as_fd()]) {
            let _ = mount::unmount(mountpoint, Unmount { lazy: true, force: true });
            return Err(error);
        }
        let dev = mountinfo::at(mountpoint).ok().flatten().map(|m| m.dev);
        if let Some(dev) = dev {
            mount::raise_read_ahead(dev);
        }
        Ok((fuse, dev))
    }

    /// Waits until the file system is unmounted.
    fn keep(&mut self) -> Result<()> {
        loop {
            let mut fds = [PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.worker.pidfd, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::system("waiting for the worker")(e)),
            }
            while let Ok(Some(signal)) = self.signals.read_signal() {
                tracing::info!(signal = signal.ssi_signo, "asked to end");
                self.unmount();
            }
            if let Some(status) = self.worker.process.try_wait().map_err(Error::system("waiting for the worker"))? {
                return self.worker_ended(status);
            }
        }
    }

    fn worker_ended(&mut self, status: ExitStatus) -> Result<()> {
        if status.success() {
            tracing::info!(image = %self.image.display(), mountpoint = %self.mountpoint.display(), "unmounted");
            return Ok(());
        }
        self.abandon();
        Err(Error::System { doing: "serving", source: std::io::Error::other(format!("the worker ended: {status}")) })
    }

    /// Unmounts when nobody uses the mount, and otherwise says who does.
    fn unmount(&self) {
        match mount::unmount(&self.mountpoint, Unmount::default()) {
            Ok(()) => {}
            Err(Error::Busy { path, .. }) => {
                let own = [std::process::id(), self.worker.process.id()];
                let users = self.dev.map(|dev| users::of_device(dev, &own)).unwrap_or_default();
                tracing::warn!("staying: {}", Error::Busy { path, users });
            }
            Err(error) => tracing::error!("{}", chain(&error)),
        }
    }

    /// Takes the mount away from a worker that cannot serve it.
    fn abandon(&mut self) {
        let _ = mount::unmount(&self.mountpoint, Unmount { lazy: true, force: true });
        self.worker.end();
    }
}

/// What is shown as the source of the mount: the uppermost image.
fn source_of(request: &MountRequest) -> &OsStr {
    request.images.last().map_or(OsStr::new("lxcri-fs"), |image| &image.path)
}

/// A mount without a state file works; it is only harder to find.
fn write_state(request: &MountRequest, dev: Option<(u32, u32)>) -> Option<StateFile> {
    let state = State {
        pid: std::process::id(),
        dev: dev?,
        mountpoint: request.mountpoint.clone(),
        images: request.images.iter().map(|i| i.path.clone()).collect(),
        since: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
    };
    StateFile::create(&state).map_err(|error| tracing::warn!("{}", chain(&error))).ok()
}

/// Signals that ask to end are read from a descriptor.
fn block_signals() -> Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block().map_err(Error::system("blocking signals"))?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(Error::system("watching for signals"))
}
