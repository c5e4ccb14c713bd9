//! Checks images: all their structures and contents, and the digest that a store has recorded.

use super::events::Events;
use crate::fs::{self, Rootfs};
use crate::text::hex;

/// The result of a check.
#[derive(Debug)]
pub struct Verified {
    /// What was found in the image itself.
    pub found: fs::Verified,
    /// The root digest that a store has recorded, if the image has another one.
    pub other_than: Option<String>,
}

impl Verified {
    /// Whether the image is sound.
    pub fn is_sound(&self) -> bool {
        self.found.damage.is_empty() && self.other_than.is_none()
    }
}

/// Checks every structure and every content of an image, on all cores. `known` is the root digest
/// that a store has for it, in hexadecimal. The image should have been opened with
/// [`check_hash`](fs::ImageOptions::check_hash).
pub fn verify(rootfs: &Rootfs, known: Option<&str>, events: &dyn Events) -> Verified {
    let found = fs::verify(rootfs, &|n| events.done(n));
    let container = rootfs.containers().next();
    let locator = container.and_then(|container| container.locator().ok().flatten());
    let digest = locator.map(|l| hex(&l.root_digest));
    let other_than = known.filter(|known| digest.as_deref() != Some(known));
    Verified {
        found,
        other_than: other_than.map(str::to_owned),
    }
}
