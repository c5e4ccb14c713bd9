//! What is told while long work goes on.

use crate::store::Reference;

/// A step of long work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Layers are read, and an image is written.
    Write,
    /// An image is read, and layers are written.
    MakeLayers,
    /// A file is read for its digest.
    Digest,
    /// Layers are sent to a registry.
    Send,
}

/// Is told how work goes on. All methods may be called by any thread.
pub trait Events: Send + Sync {
    /// Another process makes an image of this name, and is waited for.
    fn waiting(&self, _name: &Reference) {}

    /// A step begins, which is so many bytes of work.
    fn begins(&self, _step: Step, _bytes: u64) {}

    /// So many bytes more are done.
    fn done(&self, _bytes: u64) {}

    /// The step that has begun is over, well or not.
    fn ends(&self) {}
}

/// Is told, and does nothing.
impl Events for () {}
