//! What is told while long work goes on.

use crate::store::Reference;

/// Is told how work goes on. All methods may be called by any thread.
pub trait Events: Send + Sync {
    /// Another process makes an image of this name, and is waited for.
    fn waiting(&self, _name: &Reference) {}

    /// Work on so many bytes begins.
    fn begins(&self, _bytes: u64) {}

    /// So many bytes more are done.
    fn done(&self, _bytes: u64) {}

    /// The work that has begun is over, well or not.
    fn ends(&self) {}
}

/// Is told, and does nothing.
impl Events for () {}
