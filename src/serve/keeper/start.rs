//! The first message to a keeper.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::super::protocol::MountRequest;
use super::KeptMount;

/// The task of a new keeper.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum KeeperStart {
    /// Mount. The images' descriptors come with the message, after that of the locked directory
    /// under /run if the mount is shared.
    Mount(MountRequest),
    /// Mount, and stay the process that the caller started, in its session. The images' descriptors
    /// come with the message.
    Foreground(MountRequest),
    /// Continue where another version of the program stopped. The descriptors of the connection and
    /// of the control socket, if there is one, come before those of the images.
    Resume(Handover),
}

/// The state of a keeper.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Handover {
    /// The original request.
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
