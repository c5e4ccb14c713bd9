//! Moves an upper from its image to another one.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bfc::Secret;
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::commit::open_lower;
use super::error::{Error, Result};
use super::events::{Events, Stage as Work};
use super::file::open_file;
use super::mount::Mount;
use crate::error::Io;
use crate::serve::engine::Wanted as Engine;
use crate::sys::mount_attr::MountFlags;
use crate::sys::tree_copy::shares_blocks;
use crate::update::{self, Judgement};
use crate::upper::in_use::is_known_in_use;
use crate::upper::rebase::{self, Cost, Sides, Stage};
use crate::upper::record::UpperRecord;
use crate::upper::written::Written;
use crate::upper::{self, Upper};

/// Memory for an upper to which nothing is written, bytes.
const UNUSED: u64 = 1 << 20;

/// A request to move an upper to another image.
#[derive(Debug)]
pub struct Rebase {
    /// The upper.
    pub written: Written,
    /// The image that it was written over, if that has moved since.
    pub old: Option<PathBuf>,
    /// The password or key of that image.
    pub old_secret: Option<Secret>,
    /// The new image with its path, open for reading.
    pub new: (PathBuf, File),
    /// The password or key of the new image.
    pub new_secret: Option<Secret>,
    /// What may serve the new image.
    pub engine: Engine,
    /// How to merge.
    pub options: update::Options,
    /// Whether processes that serve images must not be children of this process.
    pub orphan: bool,
}

/// What an update would do.
#[derive(Debug)]
pub struct Judged {
    /// The judgement.
    pub judgement: Judgement,
    /// What it takes to carry out.
    pub cost: Cost,
}

impl Rebase {
    /// Judges without changing anything. The upper may be in use; then it is judged as it is now.
    ///
    /// # Errors
    /// [`Error`].
    pub fn judge(&self) -> Result<Judged> {
        let record = self.record()?;
        let memory = Upper::Ephemeral { size: Some(UNUSED) };
        let mut sides = self.sides(&record, memory)?;
        let judgement = self.judged(&record, &mut sides)?;
        let cost = rebase::cost(&judgement, &mut sides)?;
        Ok(Judged { judgement, cost })
    }

    /// Makes the new upper beside the old one, which does not change. [`Stage::commit`] puts it
    /// into the old one's place.
    ///
    /// # Errors
    /// [`Error`], [`upper::Error::NoRoom`], [`upper::Error::Busy`] if the upper is in use. Nothing
    /// has changed then.
    pub fn stage(&self, events: &dyn Events) -> Result<(Judged, Stage<'_>)> {
        let record = self.record()?;
        let place = &self.written.layout.place;
        if !self.written.mounts()?.is_empty() || is_known_in_use(place) {
            let (path, users) = (place.clone(), Vec::new());
            return Err(upper::Error::Busy { path, users }.into());
        }
        let stage = Stage::begin(place)?;
        let mut sides = self.sides(&record, Upper::Dir(stage.path()))?;
        let judgement = self.judged(&record, &mut sides)?;
        let cost = rebase::cost(&judgement, &mut sides)?;
        check_room(place, &cost)?;
        events.begins(Work::Write, cost.bytes());
        let done = |bytes| events.done(bytes);
        let made = stage.lost().map_err(Error::from).and_then(|lost| {
            rebase::keep_lost(&judgement.lost, &mut sides, lost.as_fd(), &done)?;
            Ok(rebase::apply(&judgement, &mut sides, &done)?)
        });
        events.ends();
        made?;
        Ok((Judged { judgement, cost }, stage))
    }

    /// Refuses what cannot be moved.
    fn record(&self) -> Result<UpperRecord> {
        let record = self.written.record()?;
        let place = || self.written.layout.place.clone();
        if record.images.len() != 1 {
            let images = record.images.len();
            return Err(Error::NotRebased {
                path: place(),
                why: format!("was written over {images} images at once"),
            });
        }
        if record.subdir.is_some() {
            return Err(Error::NotRebased {
                path: place(),
                why: "was written over a subdirectory of an image".to_owned(),
            });
        }
        record.check_marks(&place())?;
        Ok(record)
    }

    /// The three trees; the new image is under this upper.
    fn sides(&self, record: &UpperRecord, new: Upper) -> Result<Sides> {
        let old = self.old_image(record)?;
        // What was written can be read only by the numbers that its image's files had.
        let before = Engine::from(record.overlay.engine);
        let mount = |images, secret: &Option<Secret>, upper, engine, read_only| {
            let mount = Mount {
                secret: secret.clone(),
                engine,
                upper: Some(upper),
                read_only,
                idmap: record.idmap.clone(),
                flags: MountFlags::of_container(rustix::process::geteuid().is_root()),
                orphan: self.orphan,
                ..Mount::of_files(images)
            };
            mount.detached()
        };
        let open_old = || Ok::<_, Error>(vec![(old.clone(), open_file(&old)?)]);
        let unused = Upper::Ephemeral { size: Some(UNUSED) };
        let base = mount(open_old()?, &self.old_secret, unused, before, true)?;
        let place = &self.written.layout.place;
        let mine = match self.written.mounts()?.first() {
            Some(mounted) => bind(&mounted.mountpoint)?,
            None => mount(
                open_old()?,
                &self.old_secret,
                Upper::Dir(place.clone()),
                before,
                true,
            )?,
        };
        let (path, file) = &self.new;
        let file = file
            .try_clone()
            .map_err(Io::at("opening the image", path))?;
        let images = vec![(path.clone(), file)];
        let theirs = mount(images, &self.new_secret, new, self.engine, false)?;
        Ok(Sides::new(base, mine, theirs, place))
    }

    fn old_image(&self, record: &UpperRecord) -> Result<PathBuf> {
        let recorded = record.images.first().map(|image| image.path.clone());
        self.old.clone().or(recorded).ok_or(Error::Several)
    }

    fn judged(&self, record: &UpperRecord, sides: &mut Sides) -> Result<Judgement> {
        let old = self.old_image(record)?;
        let image = open_lower(record, &[old], self.old_secret.as_ref())?;
        // After it was mounted, which may have completed it.
        let upper = self.written.source(record, Arc::new(image))?;
        let changes = upper.changes().map_err(upper::Error::from)?;
        let mut changed: BTreeSet<Vec<u8>> = changes.into_iter().map(|(_, path)| path).collect();
        // The root is never listed.
        changed.insert(Vec::new());
        Ok(update::merge(sides, &changed, &self.options)?)
    }
}

/// A mount of what is mounted at a path.
fn bind(path: &Path) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(CWD, path, flags).map_err(Io::at("making a bind mount of", path))?)
}

/// Refuses a new upper for which there is no room.
fn check_room(place: &Path, cost: &Cost) -> Result<()> {
    let dir = File::open(place).map_err(Io::at("opening", place))?;
    if shares_blocks(dir.as_fd()).map_err(Io::at("looking at", place))? {
        return Ok(());
    }
    let stat = rustix::fs::fstatvfs(&dir).map_err(Io::at("reading the free space of", place))?;
    let (needed, free) = (cost.bytes(), stat.f_bavail.saturating_mul(stat.f_frsize));
    if needed <= free {
        return Ok(());
    }
    let path = place.to_owned();
    Err(upper::Error::NoRoom { path, needed, free }.into())
}
