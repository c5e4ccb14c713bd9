//! The three-way merge of an update: the old image is the base, what a container sees is mine, the
//! new image is theirs. The merge is a pure function of three trees, which it asks for only what
//! may differ; [`crate::upper::rebase`] reads the trees and carries the judgement out.
//!
//! Each path is judged by itself. A directory exists if something in it does, or if a side wants
//! it. What was changed on one side is taken from there; what was changed on both sides in the same
//! way is taken once; the rest are conflicts, which the policy decides.

mod accounts;
mod attributes;
#[cfg(test)]
mod cases;
mod judge;
mod merge;
#[cfg(test)]
mod model;
mod packages;
mod structure;
pub mod tree;

pub use merge::{Conflict, Judgement, Lost, Options, Reason, Step, What, merge};
pub use tree::{Access, Attributes, Entry, FileId, Kind, Side, Trees};

use serde::Serialize;

/// Who wins a conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// What the container has.
    #[default]
    Mine,
    /// What the new image has.
    Theirs,
}

impl Policy {
    /// The side that wins.
    pub fn winner(self) -> Side {
        match self {
            Self::Mine => Side::Mine,
            Self::Theirs => Side::Theirs,
        }
    }
}
