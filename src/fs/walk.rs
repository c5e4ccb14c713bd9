//! The only walk of a tree: everything that visits all names of an image uses a [`Walk`].
//!
//! It ends, whatever the image contains, and does not need to remember where it has been. A dentry
//! is followed by [`Section::follow`] alone: it belongs to one directory, and a directory is
//! entered by the one dentry that its record names and comes behind its parent; so there are no
//! loops, no second way into a directory, and no more steps than the image has dentry records. A
//! path has at most [`MAX_PATH`] bytes, so it is only so deep. If an image violates this, it is
//! damaged, and the walk reports it. It holds one path, and one level for each directory on it.

use std::borrow::Cow;
use std::path::Path;

use bfc::rootfs::Section;
use bfc::rootfs::format::{Dentry, Inode, ROOT, valid_name};
use bfc::{Error, Result};

use crate::layer::MAX_PATH;

/// The tree of a section, with another directory shown in the place of the root if that is wanted:
/// the two change numbers.
#[derive(Clone, Copy)]
pub(super) struct Shown<'a> {
    pub(super) section: &'a Section,
    /// Number in the section of the inode that is the root.
    pub(super) root: u32,
}

fn damaged(at: u64, reason: &'static str) -> Error {
    Error::Section { offset: at, reason }
}

impl<'a> Shown<'a> {
    /// The number in the section of an inode that is shown with this number, and the other way
    /// round.
    pub(super) fn swap(self, ino: u32) -> u32 {
        match ino {
            ROOT => self.root,
            ino if ino == self.root => ROOT,
            ino => ino,
        }
    }

    /// The inode with this number, `None` when there is none.
    pub(super) fn inode(self, ino: u32) -> Result<Option<Inode>> {
        self.section.inode(self.swap(ino))
    }

    /// The inode that a dentry leads to, checked so that no directory is reached twice.
    pub(super) fn follow(self, dentry: &Dentry) -> Result<(u32, Inode)> {
        let inode = self.section.follow(dentry)?;
        Ok((self.swap(inode.ino), inode))
    }

    /// Number `index` of the dentries of a directory, and its name, `None` behind the last.
    pub(super) fn dentry(
        self,
        record: &Inode,
        index: u64,
    ) -> Result<Option<(Dentry, Cow<'a, [u8]>)>> {
        let Some(dentry) = self.section.dentry(record, index)? else {
            return Ok(None);
        };
        let name = self.section.name(&dentry)?;
        if !valid_name(&name) {
            return Err(damaged(dentry.name.into(), "an invalid name"));
        }
        Ok(Some((dentry, name)))
    }
}

/// In which order a walk comes to the names. Those of one directory are always sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The entries of a directory follow its name at once.
    Depth,
    /// All names of a directory come first, then the entries of its subdirectories.
    Listing,
}

/// A name that a walk visits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visit {
    /// Inode number of the directory that has the name.
    pub dir: u32,
    /// Inode number.
    pub ino: u32,
    /// The inode.
    pub inode: Inode,
}

/// A step of a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A name. After a directory come its entries, according to the order, and [`Step::Leave`].
    Enter(Visit),
    /// Everything in this directory was visited, or the rest of it cannot be read. Does not occur
    /// for the directory where the walk began.
    Leave(Visit),
}

/// A directory on the way.
struct Level {
    visit: Visit,
    /// The number of the next dentry.
    next: u64,
    /// Whether all its names were visited already, so that only its directories are left
    /// ([`Order::Listing`]).
    is_listed: bool,
    /// Length of its path.
    path: usize,
}

/// A walk over everything below a directory.
pub struct Walk<'a> {
    shown: Shown<'a>,
    image: &'a Path,
    order: Order,
    levels: Vec<Level>,
    path: Vec<u8>,
}

impl std::fmt::Debug for Walk<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Walk")
            .field("image", &self.image)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl<'a> Walk<'a> {
    /// Walks everything below `dir`, whose record is `inode`. `image` is for messages.
    pub(super) fn new(
        shown: Shown<'a>,
        image: &'a Path,
        dir: u32,
        inode: Inode,
        order: Order,
    ) -> Self {
        let top = Level {
            visit: Visit {
                dir,
                ino: dir,
                inode,
            },
            next: 0,
            is_listed: false,
            path: 0,
        };
        Self {
            shown,
            image,
            order,
            levels: vec![top],
            path: Vec::new(),
        }
    }

    /// Path of the last step, relative to the start of the walk, without a slash at the beginning
    /// or the end.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// Name of the last step.
    pub fn name(&self) -> &[u8] {
        self.path.rsplit(|&b| b == b'/').next().unwrap_or_default()
    }

    /// Skips the entries of the directory that the last step entered. Not for [`Order::Listing`].
    pub fn skip(&mut self) {
        if self.levels.len() > 1
            && self
                .levels
                .last()
                .is_some_and(|level| level.next == 0 && level.path == self.path.len())
        {
            self.levels.pop();
        }
    }

    /// The next step; `None` at the end. After an error, the rest of the directory is skipped, and
    /// the walk can continue.
    ///
    /// # Errors
    /// [`super::Error::Image`] for what is damaged.
    pub fn step(&mut self) -> super::Result<Option<Step>> {
        let image = self.image;
        self.step_in_section()
            .map_err(|source| super::Error::Image {
                image: image.to_owned(),
                source,
            })
    }

    /// As [`Walk::step`], with the error of the section alone.
    pub(super) fn step_in_section(&mut self) -> Result<Option<Step>> {
        while let Some(level) = self.levels.last_mut() {
            self.path.truncate(level.path);
            let (dir, record, index) = (level.visit.ino, level.visit.inode, level.next);
            level.next = index.saturating_add(1);
            let found = match self.shown.dentry(&record, index) {
                Ok(found) => found,
                Err(error) => return self.give_up(error),
            };
            let Some((dentry, name)) = found else {
                if self.order == Order::Listing && !level.is_listed {
                    (level.is_listed, level.next) = (true, 0);
                    continue;
                }
                let visit = level.visit;
                self.levels.pop();
                if self.levels.is_empty() {
                    return Ok(None);
                }
                return Ok(Some(Step::Leave(visit)));
            };
            let again = level.is_listed;
            if self.path.len() + 1 + name.len() > MAX_PATH {
                return self.give_up(damaged(dentry.name.into(), "a path that is too long"));
            }
            let (ino, inode) = match self.shown.follow(&dentry) {
                Ok(found) => found,
                Err(error) => return self.give_up(error),
            };
            if again && !inode.is_dir() {
                continue;
            }
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(&name);
            let visit = Visit { dir, ino, inode };
            if inode.is_dir() && (again || self.order == Order::Depth) {
                self.levels.push(Level {
                    visit,
                    next: 0,
                    is_listed: false,
                    path: self.path.len(),
                });
            }
            if !again {
                return Ok(Some(Step::Enter(visit)));
            }
        }
        Ok(None)
    }

    /// Leaves out the rest of the directory where `error` was found.
    fn give_up<T>(&mut self, error: Error) -> Result<T> {
        if let Some(level) = self.levels.last_mut() {
            (level.next, level.is_listed) = (u64::MAX, true);
        }
        Err(error)
    }
}
