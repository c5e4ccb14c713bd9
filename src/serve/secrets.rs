//! What others must not learn from a daemon that has keys in memory: neither from a core dump, nor by tracing it, nor from its environment.

use std::io;
use std::process::Command;

use bfc::Key;
use rustix::process::{DumpableBehavior, Resource, Rlimit};

use super::log::FILTER_VARIABLE;

/// What a keeper needs of its caller's environment: how to log, where its user's directories are, and where the helpers that it runs are.
const KEPT: [&str; 4] = [FILTER_VARIABLE, "PATH", "TMPDIR", "XDG_RUNTIME_DIR"];

/// Leaves a command what a daemon needs of this process's environment, and nothing else: there may be passwords in the rest, and everybody who may
/// look at the daemon can read what it was started with for as long as it lives.
pub(super) fn clear_environment(command: &mut Command) -> &mut Command {
    command.env_clear().envs(KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
}

/// Has the kernel make no core dump of this process, and let nobody but root look into its memory.
pub(super) fn forbid_dumps() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let refused = [rustix::process::setrlimit(Resource::Core, none), rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)];
    for error in refused.into_iter().filter_map(Result::err) {
        tracing::warn!(%error, "a core dump of this process may have keys in it");
    }
}

/// Keeps a key out of the swap, and out of dumps that others make of this process, as far as its user may: RLIMIT_MEMLOCK may be small.
#[allow(unsafe_code)]
pub(super) fn lock(key: &Key) {
    let bytes = key.as_bytes();
    // SAFETY: it only tells a number.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    let start = bytes.as_ptr().map_addr(|address| address & !(page - 1)).cast_mut().cast();
    let length = (bytes.as_ptr().addr() % page + bytes.len()).next_multiple_of(page);
    // SAFETY: the pages are those of the key, which is borrowed. Neither call changes what is read from or written to them.
    let refused = unsafe { [libc::mlock(start, length), libc::madvise(start, length, libc::MADV_DONTDUMP)] };
    if refused != [0, 0] {
        tracing::debug!(error = %io::Error::last_os_error(), "a key may get into the swap, or into a dump");
    }
}
