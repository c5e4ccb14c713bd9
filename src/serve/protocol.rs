//! Messages between command, keeper and worker.

use std::ffi::OsString;

use bfc::Key;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::confine::Confinement;
use super::engine::{Engine, Wanted};
use super::error::Failure;
use super::stats::Stats;
use crate::erofs::DEVICES;
use crate::fs;
use crate::sys::mount_attr::MountFlags;

/// Incremented whenever a keeper could not continue with what another version hands over.
pub(super) const VERSION: u32 = 3;

/// A command's request to a new keeper: what to mount where. The images' descriptors come with it,
/// in the order of `images`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MountRequest {
    /// The images, lowest first.
    pub images: Vec<MountedImage>,
    /// How to open them.
    pub options: fs::ImageOptions,
    /// Where to mount: absolute, no symlinks.
    pub mountpoint: OsString,
    /// The directory under /run of a shared mount: `mountpoint` is then in it, and users see bind
    /// mounts.
    pub shared: Option<OsString>,
    /// How to mount.
    pub flags: MountFlags,
    /// How many threads serve.
    pub threads: usize,
    /// What may serve it. A keeper that an earlier version started serves by FUSE.
    #[serde(default = "Wanted::fuse")]
    pub engine: Wanted,
    /// Whether the keeper must not be a child of the mounting process: runtimes wait for all their
    /// children.
    #[serde(default)]
    pub orphan: bool,
}

/// An image to serve.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MountedImage {
    /// Its path, for messages.
    pub path: OsString,
    /// Its key, if it is encrypted.
    pub key: Option<ImageKey>,
}

/// Requests of commands to a keeper, through its control socket.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum KeeperRequest {
    /// Make a detached mount of the shared file system. The command holds the lock of the keeper's
    /// directory.
    Attach,
    /// Check now whether anything still uses the mount, instead of some time after it was
    /// unmounted.
    Look,
    /// How it is doing.
    Status,
    /// Report the worker's statistics. The answer may take as long as a worker may take to answer.
    Stats,
    /// Continue as the program whose descriptor comes with the request.
    Upgrade,
}

/// The keeper's answer to a [`MountRequest`] or a [`KeeperRequest`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum KeeperReply {
    /// The file system answers at the mount point.
    Mounted,
    /// The mount comes with the reply.
    Attached {
        /// What serves it.
        #[serde(default)]
        engine: Engine,
    },
    /// Whether the mount is visible to users anywhere.
    Used(bool),
    /// The program is being replaced.
    Upgrading,
    /// How it is doing.
    Status(Status),
    /// The worker's statistics; `None` if there is no worker, or it does not answer.
    Stats(Option<Stats>),
    /// Mounting failed, and nothing is left behind.
    Failed(Failure),
}

/// Status of a keeper.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The keeper's process number.
    pub pid: u32,
    /// The worker's process number, while there is a worker.
    pub worker: Option<u32>,
    /// The keeper's version.
    pub version: String,
    /// Version of the handover between keepers.
    pub protocol: u32,
    /// Version of the layout of its decoded devices; 0 without.
    #[serde(default)]
    pub layout: u32,
    /// How often the program was replaced.
    pub upgrades: u64,
    /// Device of the file system, major and minor number.
    pub dev: (u32, u32),
    /// What serves it.
    #[serde(default)]
    pub engine: Engine,
    /// The images, lowest first.
    pub images: Vec<OsString>,
    /// When it was mounted, seconds since 1970.
    pub since: u64,
    /// How often a worker was started again.
    pub restarts: u64,
    /// Why there is no worker any more.
    pub failed: Option<String>,
    /// Since when the worker has not answered its keeper or a request, in seconds since 1970;
    /// `None` while it answers.
    #[serde(default)]
    pub not_answering_since: Option<u64>,
    /// Whether the kernel lets another worker take over, which Linux 6.9 and later do.
    #[serde(default)]
    pub replaceable: bool,
    /// How the worker is confined; `None` if there is no worker.
    #[serde(default)]
    pub confinement: Option<Confinement>,
}

/// The keeper's requests to its worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum WorkerRequest {
    /// Open these images. Before their descriptors comes a socket that takes [`TemporaryFile`]
    /// requests.
    Open {
        /// The images, lowest first.
        images: Vec<MountedImage>,
        /// How to open them.
        options: fs::ImageOptions,
        /// How many threads serve.
        threads: usize,
    },
    /// Write the EROFS metadata of the images into the file that comes with the request.
    Metadata,
    /// Serve on the /dev/fuse descriptor that comes with the request. After it comes the page in
    /// which the worker records the requests that it has in hand.
    Serve {
        /// Whether another worker has served on it before.
        resume: bool,
        /// Precautions about requests that ended other workers.
        precautions: Precautions,
        /// What to serve: the file system, or the decoded devices.
        engine: Engine,
    },
    /// Report statistics.
    Stats,
}

/// How a worker avoids the end of its predecessors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Precautions {
    /// Numbers of requests to answer with EIO: they have ended several workers.
    pub(super) refused: Vec<u64>,
    /// Numbers of requests that were in hand when a worker ended: the worker handles one of them at
    /// a time.
    pub(super) suspects: Vec<u64>,
    /// Whether to decode ahead of requests.
    pub(super) push: bool,
}

/// The worker's answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum WorkerReply {
    /// The images are open.
    Opened {
        /// What identifies them by their contents, as far as they say so themselves.
        digests: Vec<String>,
    },
    /// The metadata is written.
    Metadata {
        /// Its length, bytes.
        len: u64,
        /// Lengths of the decoded devices, bytes.
        devices: [u64; DEVICES],
    },
    /// EROFS cannot say what the images contain, for this reason.
    Unsayable(String),
    /// The handshake with the kernel is done: the mount is alive.
    Serving {
        /// Number of a thread that ends as soon as the worker does.
        sentinel: i32,
        /// Whether the kernel can send requests again; `None` if an earlier worker did the
        /// handshake.
        resends: Option<bool>,
        /// How the worker is confined.
        confinement: Confinement,
    },
    /// Statistics.
    Stats(Stats),
    /// The request failed.
    Failed(Failure),
}

/// The worker's request for an anonymous temporary file, which it may not make itself. The reply is
/// an error number, or 0 and the descriptor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TemporaryFile {
    /// How long it will be, bytes.
    pub(super) size: u64,
}

/// A key in a message.
#[derive(Debug, Clone)]
pub struct ImageKey(pub Key);

impl Serialize for ImageKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.as_bytes().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ImageKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Zeroizing::new(<[u8; bfc::key::KEY_LEN]>::deserialize(deserializer)?);
        Key::from_slice(&*bytes)
            .map(Self)
            .map_err(serde::de::Error::custom)
    }
}
