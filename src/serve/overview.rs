//! What is mounted on this host, and by which keepers.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::answer::{self, Answer};
use super::error::Result;
use super::protocol::Status;
use super::rundir::{self, RunDir};
use crate::error::chain;
use crate::sys::idmap::in_user_namespace;
use crate::sys::mountinfo::{self, MountInfo};

/// A keeper with its mounts.
#[derive(Debug, Clone)]
pub struct Mounted {
    /// Where commands find the keeper.
    pub dir: RunDir,
    /// How it is doing.
    pub status: Status,
    /// Where its file system is seen in this mount namespace, by itself or in an overlay.
    pub seen: Vec<Seen>,
}

/// A file system of ours that none of this user's keepers has.
#[derive(Debug, Clone)]
pub struct Unkept {
    /// Its device, major and minor number.
    pub dev: (u32, u32),
    /// What mountinfo says is mounted.
    pub image: PathBuf,
    /// The user who mounted it, if it was another.
    pub owner: Option<u32>,
    /// Where it is seen in this mount namespace, by itself or in an overlay.
    pub seen: Vec<Seen>,
}

/// A mount.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its number.
    pub id: u32,
    /// Where it is.
    pub mountpoint: PathBuf,
    /// Its device, major and minor number.
    pub dev: (u32, u32),
    /// The upper directory, if it is an overlay.
    pub upper: Option<PathBuf>,
}

impl Seen {
    fn of(mount: &MountInfo) -> Self {
        let upper = mount.overlay().and_then(|o| o.upper);
        Self {
            id: mount.id,
            mountpoint: mount.mountpoint.clone(),
            dev: mount.dev,
            upper,
        }
    }
}

/// The device of the file system of ours that a mount shows, by itself or in an overlay; `None`
/// when it shows none.
fn shown(mount: &MountInfo) -> Option<(u32, u32)> {
    mount
        .overlay()
        .map(|o| o.lower)
        .or_else(|| mount.is_ours().then_some(mount.dev))
}

/// How a file system of ours is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It answers.
    Serving,
    /// It has no worker just now, and will have one.
    Restarting,
    /// Its keeper has given up: why.
    Failed(String),
    /// Its worker does not answer, since when (seconds since 1970) if that is known.
    Silent(Option<u64>),
    /// Nobody serves it any more.
    Dead,
    /// It is served, and nobody would replace who serves it.
    Unkept,
    /// It is this user's, who can tell more.
    Of(u32),
}

impl State {
    /// What `mounted` is like, which was asked.
    pub fn of(mounted: &Mounted, answers: &HashMap<u32, Answer>) -> Self {
        let status = &mounted.status;
        let said = |answer| {
            mounted
                .seen
                .iter()
                .any(|s| answers.get(&s.id) == Some(&answer))
        };
        match status {
            Status {
                failed: Some(why), ..
            } => Self::Failed(why.clone()),
            _ if said(Answer::Dead) => Self::Dead,
            Status {
                not_answering_since: Some(since),
                ..
            } => Self::Silent(Some(*since)),
            _ if said(Answer::Silent) => Self::Silent(None),
            Status { worker: None, .. } => Self::Restarting,
            _ => Self::Serving,
        }
    }

    /// What a mount without a keeper is like, which was asked.
    pub fn of_unkept(mounted: &Unkept, answers: &HashMap<u32, Answer>) -> Self {
        let said = |answer| {
            mounted
                .seen
                .iter()
                .any(|s| answers.get(&s.id) == Some(&answer))
        };
        match mounted.owner {
            _ if said(Answer::Dead) => Self::Dead,
            _ if said(Answer::Silent) => Self::Silent(None),
            Some(uid) => Self::Of(uid),
            None => Self::Unkept,
        }
    }
}

/// All mounts of ours that this namespace shows, for users other than root those of their own, and
/// all keepers of this user.
#[derive(Debug, Clone)]
pub struct Overview {
    /// Those with a keeper.
    pub kept: Vec<Mounted>,
    /// Those without.
    pub unkept: Vec<Unkept>,
    /// What each mount answered, by its number.
    pub answers: HashMap<u32, Answer>,
}

/// Looks at all mounts, and asks each whether it answers.
///
/// # Errors
/// As [`all`], and when mounts cannot be asked.
pub fn ask() -> Result<Overview> {
    // In this order: whatever is mounted by now has a keeper by then.
    let mounts = mountinfo::all()?;
    let mut kept = kept(&mounts)?;
    let (base, own) = (rundir::base()?, rustix::process::geteuid().as_raw());
    let mut unkept: Vec<Unkept> = Vec::new();
    // Where this is a container, its own root is its host's to keep, as is what a user namespace
    // has of the one above.
    let nested = in_user_namespace();
    for mount in mounts
        .iter()
        .filter(|m| !m.mountpoint.starts_with(&base) && m.mountpoint != Path::new("/"))
    {
        let Some(dev) = shown(mount).filter(|dev| !kept.iter().any(|k| k.status.dev == *dev))
        else {
            continue;
        };
        match unkept.iter_mut().find(|u| u.dev == dev) {
            Some(known) => known.seen.push(Seen::of(mount)),
            None => {
                // Overlays are root's.
                let owner = Some(mount.user_id().unwrap_or(0)).filter(|uid| *uid != own);
                if owner.is_some() && (own != 0 || nested) {
                    continue;
                }
                unkept.push(Unkept {
                    dev,
                    image: mount.source.clone(),
                    owner,
                    seen: vec![Seen::of(mount)],
                });
            }
        }
    }
    let seen = kept
        .iter()
        .flat_map(|k| &k.seen)
        .chain(unkept.iter().flat_map(|u| &u.seen));
    let ids: Vec<u32> = seen.map(|s| s.id).collect();
    let answers = answer::ask(&ids)?;
    // What was unmounted meanwhile may have said that nobody serves it.
    let left = mountinfo::all()?;
    let is_left = |seen: &Seen| left.iter().any(|m| m.id == seen.id);
    kept.iter_mut().for_each(|k| k.seen.retain(is_left));
    unkept.iter_mut().for_each(|u| u.seen.retain(is_left));
    let is_seen = |seen: &Seen| {
        !nested || matches!(answers.get(&seen.id), Some(Answer::Dead | Answer::Silent))
    };
    unkept.retain(|u| u.seen.iter().any(is_seen));
    Ok(Overview {
        kept,
        unkept,
        answers,
    })
}

/// All keepers of this user. What dead ones left behind is cleared away.
///
/// # Errors
/// [`super::Error::Io`] when the directory of keepers or the mounts cannot be read.
pub fn all() -> Result<Vec<Mounted>> {
    kept(&mountinfo::all()?)
}

fn kept(mounts: &[MountInfo]) -> Result<Vec<Mounted>> {
    let mut all = Vec::new();
    for dir in RunDir::all()? {
        match dir.status() {
            Ok(Some(status)) => {
                let hidden = dir.mountpoint();
                let seen = mounts
                    .iter()
                    .filter(|m| m.mountpoint != hidden && shown(m) == Some(status.dev))
                    .map(Seen::of)
                    .collect();
                all.push(Mounted { seen, dir, status });
            }
            Ok(None) => clear(&dir),
            Err(error) => tracing::warn!("{}: {}", dir.path().display(), chain(&error)),
        }
    }
    Ok(all)
}

/// Removes a directory where nobody listens, unless somebody is about to.
fn clear(dir: &RunDir) {
    let cleared = dir.try_lock().and_then(|locked| match locked {
        // It may have come to life before it was locked.
        Some(locked) if dir.connect()?.is_none() => locked.remove(),
        _ => Ok(()),
    });
    if let Err(error) = cleared {
        tracing::warn!("{}", chain(&error));
    }
}
