//! Images that a store can do without when space is short.

use super::gc::{Garbage, Step};
use super::{Result, Store, StoredImage};

/// How large a store may become. Zero stands for no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// What its images may take, bytes.
    pub max_size: u64,
    /// What is to be left free where it is, bytes.
    pub keep_free: u64,
}

impl Store {
    /// Whether the limits are exceeded, once so many bytes more are free.
    ///
    /// # Errors
    /// [`Error`](super::Error).
    pub fn exceeds(&self, limits: Limits, freed: u64) -> Result<bool> {
        if limits.keep_free > 0 && self.free()?.saturating_add(freed) < limits.keep_free {
            return Ok(true);
        }
        if limits.max_size == 0 {
            return Ok(false);
        }
        let images = self.images()?;
        let sizes = images.iter().map(|image| self.usage_of(image));
        let sizes = sizes.map(|usage| usage.map(|usage| usage.bytes));
        let size: u64 = sizes.sum::<Result<_>>()?;
        Ok(size.saturating_sub(freed) > limits.max_size)
    }

    /// What can be removed beyond garbage, in this order: images without a name, then those that a
    /// registry has, since they can be pulled again; of both, those first that have been in the
    /// store the longest. Images that were built here, and images in use, are not among them.
    ///
    /// # Errors
    /// [`Error`](super::Error).
    pub fn spare(&self) -> Result<Vec<Step>> {
        let mut images = self.images()?;
        let has_name = |image: &StoredImage| !image.facts.refs.is_empty();
        images.retain(|image| !has_name(image) || !image.facts.trust.is_empty());
        images.sort_by_key(|image| (has_name(image), image.facts.created));
        let mut steps = Vec::new();
        for image in images {
            if !self.users(&image)?.is_empty() {
                continue;
            }
            let garbage = Garbage::Spare(Box::new(image));
            let usage = self.usage(&garbage);
            steps.push(Step { garbage, usage });
        }
        Ok(steps)
    }
}
