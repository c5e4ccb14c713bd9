//! Protects the keys in a daemon's memory from core dumps, tracing and swap, and keeps secrets out
//! of its environment.

use std::process::Command;

use bfc::Key;
use rustix::process::{DumpableBehavior, Resource, Rlimit};

use super::log::FILTER_VARIABLE;
use crate::sys::memory;

/// The variables of its caller's environment that a keeper needs: for logging, for its user's
/// directories, and for the helpers that it runs.
const KEPT: [&str; 4] = [FILTER_VARIABLE, "PATH", "TMPDIR", "XDG_RUNTIME_DIR"];

/// Passes only the variables that a daemon needs to a command. Others may contain passwords, which
/// stay readable in /proc as long as the daemon lives.
pub(super) fn clear_environment(command: &mut Command) -> &mut Command {
    command.env_clear().envs(
        KEPT.iter()
            .filter_map(|name| Some((name, std::env::var_os(name)?))),
    )
}

/// Makes the kernel dump no core of this process, and let only root read its memory.
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
        tracing::warn!(%error, "a core dump of this process may contain keys");
    }
}

/// Keeps a key out of swap and out of dumps of this process, as far as RLIMIT_MEMLOCK allows.
pub(super) fn lock(key: &Key) {
    if let Err(error) = memory::lock(key.as_bytes()) {
        tracing::debug!(%error, "a key may get into swap or into a core dump");
    }
}
