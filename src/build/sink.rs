//! Where contents go.

use std::io::Read;

/// How far the image had come when a layer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LayerMarks {
    /// Number of content records of this layer and those below.
    pub contents_end: u32,
    /// Number of frame records of this layer and those below.
    pub frames_end: u32,
    /// Offset in the file behind the last object of this layer and those below.
    pub data_end: u64,
}

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
    fn end_layer(&mut self) -> Result<LayerMarks, bfc::Error>;
}
