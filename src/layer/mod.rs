//! Layers: tars in, changes out, and how changes become one tree.
//!
//! A layer is always a tar stream, whatever its source was. [`read`] parses one, and leaves its
//! contents to a sink and the rest in a skeleton; [`replay`] makes the same changes from a stored
//! skeleton; [`merge`] puts them on top of a tree. All of it is free of files and mounts.

pub mod change;
pub mod merge;
pub mod read;
pub mod replay;
pub mod tar;

pub use change::{MAX_PATH, OPAQUE, WHITEOUT, clean_path, mark};
pub use read::{Budget, Error, ReadLayer};
