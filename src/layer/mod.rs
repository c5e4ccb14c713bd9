//! Layers: tars become changes, and changes become one tree.
//!
//! A layer is always a tar stream, whatever its source was. [`read`] parses one, and passes its
//! contents to a sink and the rest to a skeleton; [`replay`] makes the same changes from a stored
//! skeleton; [`merge`] applies them to a tree. Nothing here touches files or mounts.

pub mod change;
pub mod merge;
pub mod read;
pub mod replay;
pub mod tar;

pub use change::{MAX_PATH, OPAQUE, WHITEOUT, clean_path, mark};
pub use read::{Budget, Error, ReadLayer};
