//! Moves the keeper out of the caller's control group. A runtime may wait until that group is
//! empty, or kill it, when one of several containers on the mount ends.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::sys::mountinfo;

/// Exists if systemd runs, which manages control groups.
const SYSTEMD: &str = "/run/systemd/system";

/// Moves to the topmost control group. With systemd, [`into_scope`] does this instead.
pub(super) fn leave_control_group() {
    if !rustix::process::geteuid().is_root() || Path::new(SYSTEMD).exists() {
        return;
    }
    if let Err(error) = leave() {
        tracing::warn!(%error, "staying in the control group of the mounting process");
    }
}

fn leave() -> std::io::Result<()> {
    let own = std::fs::read_to_string("/proc/self/cgroup")?;
    // Without version 2 there is no such line, and no group to leave.
    let Some(group) = own
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .filter(|group| *group != "/")
    else {
        return Ok(());
    };
    let mounts = mountinfo::all().map_err(std::io::Error::other)?;
    let Some(top) = mounts.iter().find(|m| m.fs_type == "cgroup2") else {
        return Ok(());
    };
    std::fs::write(top.mountpoint.join("cgroup.procs"), "0")?;
    tracing::debug!(group, "left the control group");
    Ok(())
}

/// Makes systemd move these processes to a scope of their own. Does not wait, because the mount
/// works already.
pub(super) fn into_scope(pids: &[u32]) {
    if !rustix::process::geteuid().is_root() || !Path::new(SYSTEMD).exists() {
        return;
    }
    let mut call = Command::new("busctl");
    call.args([
        "--quiet",
        "call",
        "org.freedesktop.systemd1",
        "/org/freedesktop/systemd1",
        "org.freedesktop.systemd1.Manager",
    ]);
    call.args([
        "StartTransientUnit",
        "ssa(sv)a(sa(sv))",
        &format!("lxcri-fs-{}.scope", std::process::id()),
        "fail",
        "4",
    ]);
    call.args([
        "Description",
        "s",
        "A file system of lxcri-fs",
        "Slice",
        "s",
        "system.slice",
    ]);
    // At shutdown, the scope must end after all mounts, which end after the units that use them.
    call.args(["DefaultDependencies", "b", "false"]);
    call.args(["PIDs", "au", &pids.len().to_string()])
        .args(pids.iter().map(u32::to_string))
        .arg("0");
    match call.stdin(Stdio::null()).stdout(Stdio::null()).spawn() {
        Ok(mut call) => drop(std::thread::spawn(move || call.wait())),
        Err(error) => {
            tracing::warn!(%error, "staying in the control group of the mounting process: running \
                                    busctl failed")
        }
    }
}
