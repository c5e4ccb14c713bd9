//! Takes all unneeded rights from processes that parse untrusted bytes: from the worker, and from
//! commands that read an image.
//!
//! The process keeps memory, threads, time, and the descriptors that it has or receives. If the
//! kernel lacks one means of confinement, the others still apply.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope,
};
use rustix::fs::{Mode, OFlags};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};
use serde::{Deserialize, Serialize};

/// How much the worker's oom_score_adj exceeds its keeper's.
const OOM_DISTANCE: i32 = 100;
const OOM_PATH: &str = "/proc/self/oom_score_adj";
/// More than the highest number of a capability in any kernel so far.
const CAPABILITIES: u32 = 64;

/// System calls that are allowed with any arguments.
const CALLS: [libc::c_long; 54] = [
    // Descriptors.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_close,
    libc::SYS_ppoll,
    // Messages to the keeper, and the handshake on a socket pair.
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_socketpair,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mlock,
    libc::SYS_membarrier,
    // Threads.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Time and random numbers.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getcpu,
];

/// How far landlock restricts access to files, the network and other processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Landlock {
    /// Not at all: the kernel lacks it, or it is not enabled (`lsm=` on the kernel's command line).
    None,
    /// As far as this kernel's version supports.
    Partial,
    /// Fully.
    Full,
}

/// How a worker is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// It has no capabilities, and cannot gain any by running a program.
    pub no_capabilities: bool,
    /// Set-user-id programs would give it no privileges.
    pub no_new_privs: bool,
    /// It cannot open, create or connect to anything.
    pub landlock: Landlock,
    /// It can make only the system calls that serving needs.
    pub seccomp: bool,
}

impl Confinement {
    /// What is missing, each with its consequence; empty if nothing is.
    pub fn missing(&self) -> Vec<(&'static str, &'static str)> {
        let landlock = match self.landlock {
            Landlock::None => Some((
                "landlock is not available",
                "only the seccomp filter keeps a worker from files, the network and other \
                 processes; add landlock to the kernel's `lsm=` parameter",
            )),
            Landlock::Partial => Some((
                "landlock is older than that of Linux 6.12",
                "only the seccomp filter keeps a worker from parts of the network and of other \
                 processes",
            )),
            Landlock::Full => None,
        };
        let others = [
            (
                self.no_capabilities,
                "capabilities cannot be dropped",
                "a compromised worker could use the capabilities of its user",
            ),
            (
                self.no_new_privs,
                "no_new_privs cannot be set",
                "only the seccomp filter keeps a worker from set-user-id programs",
            ),
            (
                self.seccomp,
                "seccomp filters are not available",
                "a worker can make every system call that its user may make without capabilities",
            ),
        ];
        let others = others
            .into_iter()
            .filter(|(has, ..)| !has)
            .map(|(_, what, so)| (what, so));
        landlock.into_iter().chain(others).collect()
    }
}

/// Additional system calls of a command: on files, where landlock allows it.
const FILE_CALLS: &[libc::c_long] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_flock,
    libc::SYS_mkdirat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_fchmod,
    libc::SYS_fchown,
    libc::SYS_fsetxattr,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_copy_file_range,
];
/// Additional system calls of a command that sets owners, modes, times and attributes. Landlock
/// does not cover these: they work on any file.
const ATTRIBUTE_CALLS: &[libc::c_long] = &[
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_lsetxattr,
    libc::SYS_utimensat,
];
/// Older system calls that the C library still makes on this architecture.
#[cfg(target_arch = "x86_64")]
const OLD_FILE_CALLS: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_link,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_readlink,
    libc::SYS_poll,
];
/// There are none.
#[cfg(not(target_arch = "x86_64"))]
const OLD_FILE_CALLS: &[libc::c_long] = &[];

/// Why a means of confinement could not be used.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("dropping capabilities")]
    Capabilities(#[source] rustix::io::Errno),
    #[error("setting no_new_privs")]
    NoNewPrivs(#[source] rustix::io::Errno),
    #[error("restricting file systems and network with landlock")]
    Landlock(#[from] RulesetError),
    #[error("making the seccomp filter")]
    Filter(#[from] seccompiler::BackendError),
    #[error("setting the seccomp filter")]
    Seccomp(#[from] seccompiler::Error),
}

/// Confines this thread and all threads that it starts. Open descriptors stay open.
pub fn confine() -> Confinement {
    prefer_for_oom();
    let confinement = restrict_thread(None);
    for (what, so) in confinement.missing() {
        tracing::warn!("the worker is not fully confined: {what}: {so}");
    }
    confinement
}

/// The rights that a command keeps while it reads an image.
#[derive(Debug)]
pub struct Kept {
    /// Directories below which it can open, create and remove files.
    pub directories: Vec<OwnedFd>,
    /// Whether it can set owners, modes, times and attributes, which landlock cannot restrict to
    /// the directories.
    pub attributes: bool,
    /// The capabilities that it keeps, if it has them.
    pub capabilities: CapabilitySet,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            directories: Vec::new(),
            attributes: false,
            capabilities: CapabilitySet::empty(),
        }
    }
}

impl Kept {
    /// Adds a directory. If it cannot be opened now, it could not be used later either.
    pub fn below(mut self, directory: &Path) -> Self {
        self.directories.extend(rustix::fs::open(
            directory,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        ));
        self
    }
}

/// Confines a command, in this thread and all threads that it starts, before it reads the first
/// byte of an image. Open descriptors stay open; other files can be opened only below the
/// directories that it keeps.
pub fn confine_command(kept: &Kept) -> Confinement {
    restrict_thread(Some(kept))
}

/// How a worker would be confined on this host: a thread of this process tries, and ends.
pub fn probe() -> Option<Confinement> {
    std::thread::Builder::new()
        .spawn(|| restrict_thread(None))
        .ok()?
        .join()
        .ok()
}

/// Restricts a thread and all threads that it starts: those of a worker, or with `kept` those of a
/// command.
fn restrict_thread(kept: Option<&Kept>) -> Confinement {
    let told = |result: Result<(), Error>| {
        result
            .inspect_err(|error| tracing::debug!("{}", crate::error::chain(error)))
            .is_ok()
    };
    Confinement {
        no_capabilities: told(drop_capabilities(
            kept.map_or(CapabilitySet::empty(), |kept| kept.capabilities),
        )),
        no_new_privs: told(no_new_privileges()),
        landlock: restrict_files(kept).unwrap_or_else(|error| {
            tracing::debug!("{}", crate::error::chain(&error));
            Landlock::None
        }),
        // The last step: it forbids system calls that the others need.
        seccomp: told(filter_system_calls(kept)),
    }
}

/// Makes the out-of-memory killer prefer the worker to its keeper, which can replace it.
fn prefer_for_oom() {
    let inherited = std::fs::read_to_string(OOM_PATH)
        .ok()
        .and_then(|text| text.trim().parse::<i32>().ok())
        .unwrap_or_default();
    if let Err(error) = std::fs::write(OOM_PATH, (inherited + OOM_DISTANCE).min(1000).to_string()) {
        tracing::debug!(%error, "oom_score_adj unchanged");
    }
}

fn drop_capabilities(kept: CapabilitySet) -> Result<(), Error> {
    for number in (0..CAPABILITIES)
        .filter(|&number| !kept.contains(CapabilitySet::from_bits_retain(1 << number)))
    {
        // Fails for capabilities that the kernel does not have, and for a user who has none.
        let _ = rustix::thread::remove_capability_from_bounding_set(
            CapabilitySet::from_bits_retain(1 << number),
        );
    }
    let _ = rustix::thread::clear_ambient_capability_set();
    let has = rustix::thread::capabilities(None).map_err(Error::Capabilities)?;
    let kept = kept & has.permitted & has.effective;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).map_err(Error::Capabilities)
}

fn no_new_privileges() -> Result<(), Error> {
    rustix::thread::set_no_new_privs(true).map_err(Error::NoNewPrivs)
}

/// Forbids opening, creating, removing and connecting to anything, except for files below the
/// directories that are kept.
fn restrict_files(kept: Option<&Kept>) -> Result<Landlock, Error> {
    let abi = ABI::V6;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .add_rules(
            kept.iter()
                .flat_map(|kept| &kept.directories)
                .map(|directory| {
                    Ok::<_, RulesetError>(PathBeneath::new(
                        directory,
                        AccessFs::from_all(abi) & !AccessFs::Execute,
                    ))
                }),
        )?
        .restrict_self()?;
    // Restrictions that the kernel lacks are left out without an error.
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Landlock::Full,
        RulesetStatus::PartiallyEnforced => Landlock::Partial,
        RulesetStatus::NotEnforced => Landlock::None,
    })
}

/// All other system calls fail with ENOSYS.
fn filter_system_calls(kept: Option<&Kept>) -> Result<(), Error> {
    let (files, attributes) = (kept.is_some(), kept.is_some_and(|kept| kept.attributes));
    let calls = CALLS
        .iter()
        .chain(FILE_CALLS.iter().chain(OLD_FILE_CALLS).filter(|_| files))
        .chain(ATTRIBUTE_CALLS.iter().filter(|_| attributes));
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        calls.map(|&call| (call, Vec::new())).collect();
    let argument =
        |number, op, value| SeccompCondition::new(number, SeccompCmpArgLen::Dword, op, value);
    let exec = libc::PROT_EXEC.cast_unsigned().into();
    let threads = libc::CLONE_THREAD.cast_unsigned().into();
    let name = libc::PR_SET_NAME.cast_unsigned().into();
    // Memory that is not executable, threads but no processes, names of threads.
    for (call, condition) in [
        (
            libc::SYS_mmap,
            argument(2, SeccompCmpOp::MaskedEq(exec), 0)?,
        ),
        (
            libc::SYS_mprotect,
            argument(2, SeccompCmpOp::MaskedEq(exec), 0)?,
        ),
        (
            libc::SYS_clone,
            argument(0, SeccompCmpOp::MaskedEq(threads), threads)?,
        ),
        (libc::SYS_prctl, argument(0, SeccompCmpOp::Eq, name)?),
    ] {
        rules.insert(call, vec![SeccompRule::new(vec![condition])?]);
    }
    if files {
        // Terminals: size, and turning off echo for passwords. Other requests could inject input
        // into a terminal.
        let rules_of = |request: &libc::Ioctl| {
            SeccompRule::new(vec![argument(1, SeccompCmpOp::Eq, *request)?])
        };
        let requests = [
            libc::TIOCGWINSZ,
            libc::TCGETS,
            libc::TCSETS,
            libc::TCSETSW,
            libc::TCSETSF,
            libc::TCGETS2,
            libc::TCSETS2,
            libc::TCSETSW2,
            libc::TCSETSF2,
        ];
        rules.insert(
            libc::SYS_ioctl,
            requests.iter().map(rules_of).collect::<Result<_, _>>()?,
        );
    }
    let refuse = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    let filter = SeccompFilter::new(
        rules,
        refuse,
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into()?,
    )?;
    Ok(apply_filter(&BpfProgram::try_from(filter)?)?)
}
