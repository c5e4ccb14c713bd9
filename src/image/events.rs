//! Events of long work.

use crate::store::Reference;

/// A step of long work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// Layers are read, and an image is written.
    Write,
    /// An image is read, and layers are written.
    MakeLayers,
    /// A file is read for its digest.
    Digest,
}

/// Receives the progress of work. Any thread may call the methods.
pub trait Events: Send + Sync {
    /// Waiting for another process that is making an image of this name.
    fn waiting(&self, _name: &Reference) {}

    /// A step begins, with so many bytes of work.
    fn begins(&self, _step: Stage, _bytes: u64) {}

    /// So many bytes more are done.
    fn done(&self, _bytes: u64) {}

    /// The step has ended, successfully or not.
    fn ends(&self) {}
}

/// Ignores all events.
impl Events for () {}
