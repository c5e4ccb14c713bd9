//! The file system, free of FUSE: how layers become one tree.

pub mod merge;
