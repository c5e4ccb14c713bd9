//! The keeper: holds a mount, and a worker that serves it. It parses nothing that comes out of an image.

mod detach;
mod place;
mod process;
mod restarts;
mod upgrade;

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub(super) use self::place::Place;
use self::process::Worker;
use self::restarts::{End, Restarts};
use super::channel::{Channel, Listener};
use super::error::{Error, Result, chain};
use super::log::{self, Style};
use super::mount::{self, Unmount};
use super::mountpoint::MountPoint;
use super::protocol::{self, Failure, KeeperReply, KeeperRequest, KeeperStart, MountRequest, Status};
use super::{mountinfo, namespace, resume, rundir, secrets};

/// How long opening images and mounting may take altogether.
const LIMIT: Duration = Duration::from_secs(60);
/// How long somebody who connects may take to say what he wants.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long until a look at the mounts is taken that nobody waits for: mounts often come and go in numbers.
const PAUSE: Duration = Duration::from_secs(1);
/// How long until a connection is accepted that could not be.
const SHORTAGE: Duration = Duration::from_millis(100);
/// How often it is looked after users in other mount namespaces.
const LONG_PAUSE: Duration = Duration::from_secs(5);
/// This program, also when its file has been replaced or removed.
const SELF: &str = "/proc/self/exe";

/// Starts a keeper of its own session and waits until the file system answers.
///
/// # Errors
/// [`Error::Failed`] with what the keeper or its worker says; nothing is left behind then.
pub fn start(request: &MountRequest, images: &[BorrowedFd<'_>], log_file: Option<&Path>) -> Result<()> {
    let (control, stdin) = Channel::pair("keeper")?;
    let (stderr, style) = log::open(log_file)?;
    let mut keeper = secrets::clear_environment(&mut Command::new(SELF))
        .arg0("lxcri-fs")
        .args(["keeper", "--log-style", style.name()])
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .map_err(Error::system("starting the keeper"))?;
    control.send(&KeeperStart::Mount(request.clone()), images)?;
    // Somewhat longer than the keeper itself waits, so that it can clean up and tell.
    let reply = control.expect(LIMIT + Duration::from_secs(10));
    match &reply {
        Ok((KeeperReply::Mounted, _)) => return Ok(()),
        Ok(_) => {}
        Err(_) => drop(keeper.kill()),
    }
    let _ = keeper.wait();
    match reply? {
        (KeeperReply::Failed(failure), _) => Err(Error::Failed(Box::new(failure))),
        _ => Err(Error::Gone { peer: "keeper" }),
    }
}

/// The life of a keeper that [`start`] started.
///
/// # Errors
/// When the file system could not be mounted, or ended otherwise than by being unmounted.
pub fn main(style: Style) -> Result<()> {
    let _ = rustix::thread::set_name(c"lxcri-fs-keeper");
    secrets::forbid_dumps();
    let control = Channel::from_stdin("command")?;
    // Out of the caller's session, and away from a directory that it may want to unmount or remove.
    let _ = rustix::process::setsid();
    let _ = rustix::process::chdir("/");
    let (request, images) = match control.expect(LIMIT)? {
        (KeeperStart::Mount(request), images) => (request, images),
        (KeeperStart::Resume(handover), fds) => return Keeper::resume(handover, fds, style)?.keep(),
    };
    detach::leave_control_group();
    if request.shared.is_some()
        && let Err(error) = rundir::base().and_then(|base| namespace::enter_init(&base))
    {
        tracing::debug!("staying in the mount namespace of who mounted: {}", chain(&error));
    }
    match Keeper::mount(request, images, style) {
        Ok(mut keeper) => {
            if let Err(error) = control.send(&KeeperReply::Mounted, &[]) {
                // Nobody knows of this mount.
                keeper.place.abandon();
                return Err(error);
            }
            drop(control);
            detach::into_scope(&keeper.pids());
            keeper.keep()
        }
        Err(error) => {
            control.send(&KeeperReply::Failed(failure_of(&error)), &[])?;
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

fn failure_of(error: &Error) -> Failure {
    match error {
        Error::Failed(failure) => (**failure).clone(),
        error => Failure { message: chain(error), hint: None, exit: 1, key_needed: None },
    }
}

/// Whether there is somebody to answer requests.
enum Service {
    /// There is.
    Worker(Worker),
    /// There will be, from then on.
    Restart(Instant),
    /// There will not be: why. Requests are answered "not connected" by the kernel.
    Failed(String),
}

struct Keeper {
    request: MountRequest,
    images: Vec<OwnedFd>,
    style: Style,
    place: Place,
    /// /dev/fuse: as long as it is open here, requests wait when a worker dies. Closed when there will be no other.
    fuse: Option<OwnedFd>,
    service: Service,
    /// Workers that were replaced before they were quite gone.
    departed: Vec<Worker>,
    restarts: Restarts,
    signals: SignalFd,
    /// Becomes readable, with priority, when something is mounted or unmounted.
    mounts: File,
    control: Option<Listener>,
    since: SystemTime,
    /// How often the program was replaced.
    upgrades: u64,
    /// Whether the kernel lets another worker take over.
    replaceable: bool,
    /// When to look whether the mount still has users, if not before.
    look: Option<Instant>,
}

impl Keeper {
    /// Nothing is mounted before the images are open, and nothing stays mounted that does not answer.
    fn mount(request: MountRequest, images: Vec<OwnedFd>, style: Style) -> Result<Self> {
        let mut worker = Worker::start(style)?;
        worker.open(&request, &images, LIMIT)?;
        let at = MountPoint::open(Path::new(&request.mountpoint))?;
        let mountpoint = at.path();
        let fuse = mount::mount(Path::new(source_of(&request)), &at, request.flags)?;
        let undo = || {
            let _ = mount::unmount(&at, Unmount { lazy: true, force: true });
        };
        let resends = worker.serve(&fuse, false, LIMIT).inspect_err(|_| undo())?;
        // The kernel limits it while it shakes hands, so it is raised afterwards.
        let settled = at.mounted().and_then(|mounted| {
            let mounted = mounted.filter(mountinfo::MountInfo::is_ours).ok_or(Error::Gone { peer: "worker" })?;
            mount::raise_read_ahead(mounted.dev);
            Place::settle(&request, mounted)
        });
        let (place, control) = settled.inspect_err(|_| undo())?;
        tracing::info!(image = %source_of(&request).display(), mountpoint = %mountpoint.display(), "mounted");
        Self::assemble(request, images, style, place, fuse, Service::Worker(worker), control, resends.unwrap_or_default())
            .inspect_err(|_| undo())
    }

    fn assemble(
        request: MountRequest,
        images: Vec<OwnedFd>,
        style: Style,
        place: Place,
        fuse: OwnedFd,
        service: Service,
        control: Option<Listener>,
        replaceable: bool,
    ) -> Result<Self> {
        let mounts = Path::new("/proc/self/mountinfo");
        Ok(Self {
            request,
            images,
            style,
            place,
            fuse: Some(fuse),
            service,
            departed: Vec::new(),
            restarts: Restarts::new(Instant::now()),
            signals: block_signals()?,
            mounts: File::open(mounts).map_err(Error::io("opening", mounts))?,
            control,
            since: SystemTime::now(),
            upgrades: 0,
            replaceable,
            look: None,
        })
    }

    /// Waits for what happens, until the file system is unmounted.
    fn keep(&mut self) -> Result<()> {
        // Who had it mounted may be gone before he attached it anywhere.
        self.look = Some(Instant::now() + PAUSE);
        loop {
            for event in self.wait()? {
                match event {
                    Event::Signal => self.terminate(),
                    Event::Mounts => drop(self.look.get_or_insert(Instant::now() + PAUSE)),
                    Event::Connection => self.serve_connection(),
                    Event::FileWanted => self.lend_file(),
                    Event::DepartedEnded => self.reap_departed(),
                    Event::WorkerEnded if self.worker_ended()? => return self.end(),
                    Event::WorkerEnded => {}
                }
            }
            let now = Instant::now();
            if matches!(self.service, Service::Restart(at) if at <= now) {
                self.restart();
            }
            if self.look.is_some_and(|at| at <= now) {
                self.look = None;
                match self.look_for_users() {
                    Ok(true) => {}
                    Ok(false) => return self.end(),
                    // Descriptors or memory are short: no reason to take a mount from its users.
                    Err(error) => {
                        tracing::warn!("{}", chain(&error));
                        self.look = Some(now + LONG_PAUSE);
                    }
                }
            }
        }
    }

    fn end(&mut self) -> Result<()> {
        self.place.leave();
        tracing::info!(image = %source_of(&self.request).display(), "unmounted");
        Ok(())
    }

    fn lend_file(&mut self) {
        if let Service::Worker(worker) = &mut self.service {
            worker.lend_file(&self.request.options.temp_dir);
        }
    }

    fn wait(&self) -> Result<Vec<Event>> {
        let now = Instant::now();
        let restart = if let Service::Restart(at) = self.service { Some(at) } else { None };
        let next = [restart, self.look].into_iter().flatten().min();
        let timeout = next.map(|at| {
            let left = at.saturating_duration_since(now);
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() }
        });
        let read = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut fds = vec![read(self.signals.as_fd()), PollFd::new(&self.mounts, PollFlags::PRI)];
        let mut events = vec![Event::Signal, Event::Mounts];
        let mut watch = |fd, event| {
            fds.push(read(fd));
            events.push(event);
        };
        if let Service::Worker(worker) = &self.service {
            watch(worker.sentinel(), Event::WorkerEnded);
            if let Some(spool) = worker.spool() {
                watch(spool, Event::FileWanted);
            }
        }
        for worker in &self.departed {
            watch(worker.pidfd(), Event::DepartedEnded);
        }
        if let Some(control) = &self.control {
            watch(control.as_fd(), Event::Connection);
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Error::system("waiting for something to happen")(e)),
        }
        Ok(events.into_iter().zip(fds).filter(|(_, fd)| !fd.revents().is_empty()).map(|(event, _)| event).collect())
    }

    /// Asked to end: does so when nobody uses the mount, and otherwise says who does.
    fn terminate(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            tracing::info!(signal = signal.ssi_signo, "asked to end");
        }
        match self.place.unmount_idle(&self.pids()) {
            Ok(()) => self.look = Some(Instant::now()),
            Err(error @ Error::Busy { .. }) => tracing::warn!("staying: {error}"),
            Err(error) => tracing::error!("{}", chain(&error)),
        }
    }

    /// The processes of this mount.
    fn pids(&self) -> Vec<u32> {
        let worker = if let Service::Worker(worker) = &self.service { Some(worker.pid()) } else { None };
        [Some(std::process::id()), worker].into_iter().flatten().collect()
    }

    fn serve_connection(&mut self) {
        while let Some(control) = &self.control {
            let answered = match control.accept() {
                Ok(Some(channel)) => self.answer(&channel),
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!("{}", chain(&error));
                    // Descriptors or memory are short, and whoever waits will go on waiting.
                    std::thread::sleep(SHORTAGE);
                    return;
                }
            };
            if let Err(error) = answered {
                tracing::warn!("a request of a command was not answered: {}", chain(&error));
            }
        }
    }

    fn answer(&mut self, channel: &Channel) -> Result<()> {
        let (request, fds) = channel.expect(PATIENCE)?;
        match (request, &self.service) {
            (KeeperRequest::Attach, Service::Failed(why)) => {
                let failure = Failure { message: why.clone(), hint: None, exit: 1, key_needed: None };
                channel.send(&KeeperReply::Failed(failure), &[])
            }
            (KeeperRequest::Attach, _) => match self.place.clone_mount() {
                Ok(mount) => {
                    self.place.is_wanted_by(channel.peer_pid());
                    // Until it is attached, the lock of the directory says that there is a user. Should it never be, this look finds out.
                    self.look.get_or_insert(Instant::now() + PAUSE);
                    channel.send(&KeeperReply::Attached, &[mount.as_fd()])
                }
                Err(error) => channel.send(&KeeperReply::Failed(failure_of(&error)), &[]),
            },
            (KeeperRequest::Look, _) => {
                self.look = Some(Instant::now());
                channel.send(&KeeperReply::Used(self.place.is_used()?), &[])
            }
            (KeeperRequest::Upgrade, _) => {
                let program = fds.first().ok_or(Error::Gone { peer: "command" })?;
                if !self.replaceable {
                    return channel.send(&KeeperReply::Failed(failure_of(&Error::NoResend)), &[]);
                }
                channel.send(&KeeperReply::Upgrading, &[])?;
                self.upgrade(program)
            }
            (KeeperRequest::Stats, _) => {
                let stats = if let Service::Worker(worker) = &mut self.service { worker.stats(PATIENCE) } else { None };
                channel.send(&KeeperReply::Stats(stats), &[])
            }
            (KeeperRequest::Status, _) => channel.send(&KeeperReply::Status(self.status()), &[]),
        }
    }

    fn status(&self) -> Status {
        Status {
            pid: std::process::id(),
            worker: if let Service::Worker(worker) = &self.service { Some(worker.pid()) } else { None },
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: protocol::VERSION,
            upgrades: self.upgrades,
            dev: self.place.dev(),
            images: self.request.images.iter().map(|i| i.path.clone()).collect(),
            since: self.since.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            restarts: self.restarts.total,
            failed: if let Service::Failed(why) = &self.service { Some(why.clone()) } else { None },
            not_answering_since: None,
            replaceable: self.replaceable,
            confinement: if let Service::Worker(worker) = &self.service { worker.confinement() } else { None },
        }
    }

    /// The worker answers no more. Whether that is because the file system is unmounted.
    fn worker_ended(&mut self) -> Result<bool> {
        let Service::Worker(worker) = &mut self.service else { return Ok(false) };
        let end = worker.end()?;
        let why = match end {
            End::Status(status) if status.success() => return Ok(true),
            End::Status(status) => format!("the worker ended: {status}"),
            End::Dying | End::NotStarted => "the worker is ending".to_owned(),
        };
        if let Service::Worker(mut worker) = self.schedule(end, &why)
            && end == End::Dying
        {
            worker.kill();
            self.departed.push(worker);
        }
        Ok(false)
    }

    /// What the last threads of a worker had read was not sent again when the others' was.
    fn reap_departed(&mut self) {
        let before = self.departed.len();
        self.departed.retain_mut(|worker| worker.end().is_ok_and(|end| end == End::Dying));
        if self.departed.len() < before
            && let (Some(fuse), Service::Worker(_)) = (&self.fuse, &self.service)
            && let Err(error) = resume::resend(fuse)
        {
            tracing::error!("{}", chain(&error));
        }
    }

    /// Starts another worker on the connection of the last.
    fn restart(&mut self) {
        let Some(fuse) = &self.fuse else { return };
        let started = Worker::start(self.style).and_then(|mut worker| {
            worker.open(&self.request, &self.images, LIMIT)?;
            // Before the worker reads any, so that it has none of them twice.
            resume::resend(fuse)?;
            worker.serve(fuse, true, LIMIT)?;
            Ok(worker)
        });
        self.restarts.started(Instant::now());
        match started {
            Ok(worker) => self.service = Service::Worker(worker),
            Err(error) => drop(self.schedule(End::NotStarted, &format!("no worker could be started: {}", chain(&error)))),
        }
    }

    /// Decides what comes after a worker that is gone; returns what was.
    fn schedule(&mut self, end: End, why: &str) -> Service {
        let now = Instant::now();
        let next = match self.restarts.died(now, &end) {
            Some(delay) => {
                tracing::warn!(delay_ms = delay.as_millis(), restarts = self.restarts.total, "{why}; starting another");
                Service::Restart(now + delay)
            }
            None => {
                tracing::error!("{why}; giving up. What uses the mount finds it not connected");
                self.fuse = None;
                // Who mounts the image from now on gets a keeper that may have more luck.
                if let Err(error) = self.place.disconnect() {
                    tracing::warn!("{}", chain(&error));
                }
                Service::Failed(why.to_owned())
            }
        };
        std::mem::replace(&mut self.service, next)
    }

    /// Whether the mount is still wanted; a shared one that nobody uses any more is taken away.
    fn look_for_users(&mut self) -> Result<bool> {
        if self.place.is_used()? {
            // No event tells of other namespaces.
            if self.place.is_elsewhere() {
                self.look.get_or_insert(Instant::now() + LONG_PAUSE);
            }
            return Ok(true);
        }
        if !self.place.is_released() && !self.place.release()? {
            // Somebody is about to use it.
            self.look = Some(Instant::now() + PAUSE);
            return Ok(true);
        }
        // It goes on in other namespaces, if it is used there, until the kernel tells the worker that it ends.
        Ok(!matches!(self.service, Service::Failed(_)))
    }
}

/// What may happen.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// A signal asks the keeper to end.
    Signal,
    /// Something was mounted or unmounted.
    Mounts,
    /// The worker answers no more.
    WorkerEnded,
    /// The worker wants a temporary file.
    FileWanted,
    /// A worker that was replaced is gone.
    DepartedEnded,
    /// A command wants something.
    Connection,
}

/// What is shown as the source of the mount: the uppermost image.
fn source_of(request: &MountRequest) -> &OsStr {
    request.images.last().map_or(OsStr::new("lxcri-fs"), |image| &image.path)
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
