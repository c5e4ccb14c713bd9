//! The rootfs section, which holds everything about a root file system that v1 cannot express, and
//! is read in place.
//!
//! FORMAT.md, "The rootfs section", has the tables. [`Tree`] is a root file system in memory,
//! [`build`] writes it as a section, [`Section`] reads one.

mod check;
pub mod format;
mod section;
pub mod skeleton;
mod tree;
mod writer;

pub use section::{Section, Xattr};
pub use tree::{Attr, Kind, Node, NodeId, Tree};
pub use writer::{Extras, LayerEntry, Unsaid, build};
