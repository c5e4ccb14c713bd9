//! Moves an upper to another image: reads the three trees of an update ([`Sides`]), carries out
//! what [`crate::update`] judged in a new upper beside the old one ([`apply`]), and puts the new
//! one into the old one's place ([`Stage`]).

mod apply;
mod lookup;
mod lost;
mod sides;
mod switch;

pub use apply::{Cost, apply, cost};
pub use lost::keep_lost;
pub use sides::Sides;
pub(super) use switch::finish;
pub use switch::{
    CONTAINER, Stage, back, can_go_back, complete, finish_parts, forget, pending, sweep,
};

/// Name of the directory of an update that has begun to take the upper's place.
pub(super) const UPDATE: &str = "update";
/// Name of the directory with what an update replaced.
pub const PREVIOUS: &str = "previous";
/// Name of the directory with what lost the conflicts of the last update.
pub const LOST: &str = "lost+update";
