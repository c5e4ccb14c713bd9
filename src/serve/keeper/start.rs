//! What a process becomes a keeper with.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::super::protocol::MountRequest;
use super::KeptMount;

/// What a keeper is started for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum KeeperStart {
    /// To mount. The images' descriptors come along, after that of the locked directory under /run
    /// when the mount is shared.
    Mount(MountRequest),
    /// To mount, and to stay what its caller started, in the caller's session. The images'
    /// descriptors come along.
    Foreground(MountRequest),
    /// To go on where another version of the program stopped. The descriptors of the connection and
    /// of the control socket, if there is one, come along before those of the images.
    Resume(Handover),
}

/// All that a keeper knows.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Handover {
    /// What was asked for.
    pub(super) request: MountRequest,
    /// Where it is mounted.
    pub(super) place: KeptMount,
    /// Whether there is a control socket.
    pub(super) control: bool,
    /// When it was mounted.
    pub(super) since: SystemTime,
    /// How often a worker was started again.
    pub(super) restarts: u64,
    /// How often the program was replaced.
    pub(super) upgrades: u64,
    /// Whether the kernel lets another worker take over.
    pub(super) replaceable: bool,
}
