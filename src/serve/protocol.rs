//! What the command, the keeper and the worker say to each other.

use std::ffi::OsString;

use bfc::Key;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::confine::Confinement;
use super::error::Failure;
use super::stats::Stats;
use crate::fs;
use crate::sys::mount_attr::MountFlags;

/// Changed when a keeper could not go on with what another version hands over.
pub(super) const VERSION: u32 = 3;

/// What is to be mounted where: the command's request to the keeper. The images' descriptors come
/// with it, in the order of `images`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MountRequest {
    /// The images, lowest first.
    pub images: Vec<Image>,
    /// How to open them.
    pub options: fs::Options,
    /// Where to mount: absolute, no symlinks.
    pub mountpoint: OsString,
    /// The directory under /run of a mount that is shared: then `mountpoint` is in it, and what
    /// users see are bind mounts.
    pub shared: Option<OsString>,
    /// How to mount.
    pub flags: MountFlags,
    /// How many threads serve.
    pub threads: usize,
    /// Whether the keeper is to be no child of who mounts: runtimes wait for every child that they
    /// find to be theirs.
    #[serde(default)]
    pub orphan: bool,
}

/// An image to serve.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    /// Its path, for messages.
    pub path: OsString,
    /// Its key, when it is encrypted.
    pub key: Option<ImageKey>,
}

/// What a keeper is asked through its control socket.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum KeeperRequest {
    /// A mount of the shared file system, not attached anywhere yet. Who asks holds the lock of the
    /// keeper's directory.
    Attach,
    /// To look at once whether anybody still uses the mount, rather than some time after it was
    /// unmounted.
    Look,
    /// How it is doing.
    Status,
    /// What its worker has done. The answer takes as long as a worker may take to answer before it
    /// is said that it does not.
    Stats,
    /// To go on as the program whose descriptor comes along.
    Upgrade,
}

/// The keeper's answer to a [`MountRequest`] or a [`KeeperRequest`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum KeeperReply {
    /// The file system answers at the mount point.
    Mounted,
    /// The mount comes along.
    Attached,
    /// Whether users see the mount anywhere.
    Used(bool),
    /// The program is being replaced.
    Upgrading,
    /// How it is doing.
    Status(Status),
    /// What its worker has done; nothing when there is none, or it does not answer.
    Stats(Option<Stats>),
    /// It does not, and nothing is left behind.
    Failed(Failure),
}

/// How a keeper is doing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The keeper's process number.
    pub pid: u32,
    /// The worker's, while there is one.
    pub worker: Option<u32>,
    /// The keeper's version.
    pub version: String,
    /// Version of what keepers hand over.
    pub protocol: u32,
    /// How often the program was replaced.
    pub upgrades: u64,
    /// Device of the file system, major and minor number.
    pub dev: (u32, u32),
    /// The images, lowest first.
    pub images: Vec<OsString>,
    /// When it was mounted, seconds since 1970.
    pub since: u64,
    /// How often a worker was started again.
    pub restarts: u64,
    /// Why there is no worker any more.
    pub failed: Option<String>,
    /// Since when the worker has not answered its keeper or a request, seconds since 1970; `None`
    /// while it answers.
    #[serde(default)]
    pub not_answering_since: Option<u64>,
    /// Whether the kernel lets another worker take the place of one that ends: Linux does from 6.9
    /// on.
    #[serde(default)]
    pub replaceable: bool,
    /// How the worker is confined; `None` when there is none.
    #[serde(default)]
    pub confinement: Option<Confinement>,
}

/// The keeper's requests to its worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum WorkerRequest {
    /// Open these images. Their descriptors come along, and before them a socket that takes
    /// [`TemporaryFile`] requests.
    Open {
        /// The images, lowest first.
        images: Vec<Image>,
        /// How to open them.
        options: fs::Options,
        /// How many threads serve.
        threads: usize,
    },
    /// Serve on the /dev/fuse descriptor that comes along. After it comes the page where the worker
    /// notes which requests it has in hand.
    Serve {
        /// Whether another worker has served on it before.
        resume: bool,
        /// What to do about requests that it did not survive.
        precautions: Precautions,
    },
    /// Tell what was counted.
    Stats,
}

/// What a worker does not do as those did that ended before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Precautions {
    /// Requests, by number, that are answered EIO: they have ended several workers.
    pub(super) refused: Vec<u64>,
    /// Requests that were in hand when a worker ended: one of them is handled at a time.
    pub(super) suspects: Vec<u64>,
    /// Whether anything is decoded that nobody has asked for.
    pub(super) push: bool,
}

/// The worker's answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum WorkerReply {
    /// The images are open.
    Opened,
    /// The kernel has been answered: the mount is alive.
    Serving {
        /// Number of a thread that ends as soon as the worker does.
        sentinel: i32,
        /// Whether the kernel said that it can send requests again; `None` when it was not asked,
        /// because another worker was before.
        resends: Option<bool>,
        /// What keeps the worker from doing more than serving.
        confinement: Confinement,
    },
    /// What was counted.
    Stats(Stats),
    /// It cannot be done.
    Failed(Failure),
}

/// The worker's request for a file that is gone when it is closed: it may not make one itself. The
/// answer is an error number, or 0 and the descriptor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TemporaryFile {
    /// How long it will be, bytes.
    pub(super) size: u64,
}

/// A key on its way to another process.
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
