//! Where contents go.

use std::io::Read;

/// Where file contents go; identical content is stored once.
pub trait ContentSink {
    /// Stores `size` bytes read from `input`; returns the content's number, `None` when there are no bytes.
    ///
    /// # Errors
    /// When reading or writing fails, or `input` is shorter.
    fn add(&mut self, path: &[u8], size: u64, input: &mut dyn Read) -> Result<Option<u32>, bfc::Error>;

    /// All contents so far belong to this layer or those below.
    ///
    /// # Errors
    /// When writing fails.
    fn end_layer(&mut self) -> Result<bfc::rootfs::format::Layer, bfc::Error>;
}
