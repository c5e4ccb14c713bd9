//! What others must not learn from a daemon that has keys in memory: neither from a core dump, nor
//! by tracing it, nor from its environment.

use std::process::Command;

use bfc::Key;
use rustix::process::{DumpableBehavior, Resource, Rlimit};

use super::log::FILTER_VARIABLE;
use crate::sys::memory;

/// What a keeper needs of its caller's environment: how to log, where its user's directories are,
/// and where the helpers that it runs are.
const KEPT: [&str; 4] = [FILTER_VARIABLE, "PATH", "TMPDIR", "XDG_RUNTIME_DIR"];

/// Leaves a command what a daemon needs of this process's environment, and nothing else: there may
/// be passwords in the rest, and everybody who may look at the daemon can read what it was started
/// with for as long as it lives.
pub(super) fn clear_environment(command: &mut Command) -> &mut Command {
    command.env_clear().envs(
        KEPT.iter()
            .filter_map(|name| Some((name, std::env::var_os(name)?))),
    )
}

/// Has the kernel make no core dump of this process, and let nobody but root look into its memory.
pub(super) fn forbid_dumps() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let refused = [
        rustix::process::setrlimit(Resource::Core, none),
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable),
    ];
    for error in refused.into_iter().filter_map(Result::err) {
        tracing::warn!(%error, "a core dump of this process may have keys in it");
    }
}

/// Keeps a key out of the swap, and out of dumps that others make of this process, as far as its
/// user may: RLIMIT_MEMLOCK may be small.
pub(super) fn lock(key: &Key) {
    if let Err(error) = memory::lock(key.as_bytes()) {
        tracing::debug!(%error, "a key may get into the swap, or into a dump");
    }
}
