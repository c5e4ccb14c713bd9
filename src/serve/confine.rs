//! Taking from the worker what it does not need: it reads bytes that strangers made.
//!
//! What stays is memory, threads, time, and the descriptors that it has or is given. Where a kernel lacks one of the means, the others do.

use std::collections::BTreeMap;

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, Scope};
use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, apply_filter};

/// How much more the worker is to the out-of-memory killer's taste than its keeper.
const OOM_DISTANCE: i32 = 100;
const OOM_PATH: &str = "/proc/self/oom_score_adj";
/// Highest number of a capability that any kernel has had so far, and room.
const CAPABILITIES: u32 = 64;

/// System calls that are allowed whatever their arguments are.
const CALLS: [libc::c_long; 53] = [
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
    // The keeper, and the handshake that is played on a socket pair.
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
    // Time and chance.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getcpu,
];

/// Why a means of confinement could not be used.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("dropping capabilities")]
    Capabilities(#[source] rustix::io::Errno),
    #[error("setting no_new_privs")]
    NoNewPrivs(#[source] rustix::io::Errno),
    #[error("restricting file systems and network with landlock")]
    Landlock(#[from] landlock::RulesetError),
    #[error("making the seccomp filter")]
    Filter(#[from] seccompiler::BackendError),
    #[error("setting the seccomp filter")]
    Seccomp(#[from] seccompiler::Error),
}

/// Confines this thread and all that it starts. Descriptors that are open stay open.
pub fn confine() {
    prefer_for_oom();
    // Keys are in memory. And a dump would wait for threads which wait for this process to be replaced.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    for result in [drop_capabilities(), no_new_privileges(), restrict_files(), filter_system_calls()] {
        if let Err(error) = result {
            tracing::warn!("the worker is less confined than it could be: {}", super::chain(&error));
        }
    }
}

/// The keeper can replace the worker, so it is the worker that should be killed when memory is short.
fn prefer_for_oom() {
    let inherited = std::fs::read_to_string(OOM_PATH).ok().and_then(|text| text.trim().parse::<i32>().ok()).unwrap_or_default();
    if let Err(error) = std::fs::write(OOM_PATH, (inherited + OOM_DISTANCE).min(1000).to_string()) {
        tracing::debug!(%error, "oom_score_adj stays as it is");
    }
}

fn drop_capabilities() -> Result<(), Error> {
    for number in 0..CAPABILITIES {
        // Fails for those that the kernel does not have, and for a user who has none of them.
        let _ = rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number));
    }
    let _ = rustix::thread::clear_ambient_capability_set();
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets).map_err(Error::Capabilities)
}

fn no_new_privileges() -> Result<(), Error> {
    rustix::thread::set_no_new_privs(true).map_err(Error::NoNewPrivs)
}

/// A rule set without a rule: nothing can be opened, made, removed, or connected to.
fn restrict_files() -> Result<(), Error> {
    let abi = ABI::V6;
    Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .restrict_self()?;
    Ok(())
}

/// Everything else is answered with "no such system call".
fn filter_system_calls() -> Result<(), Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = CALLS.into_iter().map(|call| (call, Vec::new())).collect();
    let argument = |number, op, value| SeccompCondition::new(number, SeccompCmpArgLen::Dword, op, value);
    let exec = libc::PROT_EXEC.cast_unsigned().into();
    let threads = libc::CLONE_THREAD.cast_unsigned().into();
    let name = libc::PR_SET_NAME.cast_unsigned().into();
    // Memory that is not executable, threads but no processes, names of threads.
    for (call, condition) in [
        (libc::SYS_mmap, argument(2, SeccompCmpOp::MaskedEq(exec), 0)?),
        (libc::SYS_mprotect, argument(2, SeccompCmpOp::MaskedEq(exec), 0)?),
        (libc::SYS_clone, argument(0, SeccompCmpOp::MaskedEq(threads), threads)?),
        (libc::SYS_prctl, argument(0, SeccompCmpOp::Eq, name)?),
    ] {
        rules.insert(call, vec![SeccompRule::new(vec![condition])?]);
    }
    let refuse = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, std::env::consts::ARCH.try_into()?)?;
    Ok(apply_filter(&BpfProgram::try_from(filter)?)?)
}
