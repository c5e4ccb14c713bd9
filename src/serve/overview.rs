//! The mounts on this host, and their keepers.

use std::collections::HashMap;
use std::ffi::OsStr;
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
    /// The keeper's directory.
    pub dir: RunDir,
    /// The keeper's status.
    pub status: Status,
    /// Where its file system is visible in this mount namespace, by itself or in an overlay.
    pub seen: Vec<Seen>,
}

/// A file system of lxcri-fs without a keeper of this user.
#[derive(Debug, Clone)]
pub struct Unkept {
    /// Its device, major and minor number.
    pub dev: (u32, u32),
    /// The source of the mount in mountinfo.
    pub image: PathBuf,
    /// The user who mounted it, if it is another user.
    pub owner: Option<u32>,
    /// Where it is visible in this mount namespace, by itself or in an overlay.
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

/// The device of the file system of lxcri-fs that a mount shows, by itself or in an overlay; `None`
/// if it shows none.
fn shown(mount: &MountInfo) -> Option<(u32, u32)> {
    mount
        .overlay()
        .map(|o| o.lower)
        .or_else(|| mount.is_ours().then_some(mount.dev))
}

/// The state of a mount of lxcri-fs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountState {
    /// It answers.
    Serving,
    /// It has no worker at the moment, and will get one.
    Restarting,
    /// Its keeper has given up, for this reason.
    Failed(String),
    /// Its worker does not answer, since this time (seconds since 1970) if it is known.
    Silent(Option<u64>),
    /// No process serves it any more.
    Dead,
    /// It is served, but no keeper would replace the process that serves it.
    Unkept,
    /// It belongs to this user, who can find out more.
    Of(u32),
}

impl MountState {
    /// The state of a mount with a keeper, from the answers.
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

    /// The state of a mount without a keeper, from the answers.
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

/// All mounts of lxcri-fs in this namespace (for users other than root, only their own), and all
/// keepers of this user.
#[derive(Debug, Clone)]
pub struct Overview {
    /// Mounts with a keeper.
    pub kept: Vec<Mounted>,
    /// Mounts without a keeper.
    pub unkept: Vec<Unkept>,
    /// What each mount answered, by its number.
    pub answers: HashMap<u32, Answer>,
}

/// Finds all mounts, and asks each whether it answers.
///
/// # Errors
/// As [`all`], and if mounts cannot be asked.
pub fn ask() -> Result<Overview> {
    // In this order, so that everything that is mounted now has a keeper when keepers are listed.
    let mounts = mountinfo::all()?;
    let mut kept = kept(&mounts)?;
    let (base, own) = (rundir::base()?, rustix::process::geteuid().as_raw());
    let mut unkept: Vec<Unkept> = Vec::new();
    // In a container, the host's keeper keeps the root file system, as it keeps the mounts that a
    // user namespace inherited.
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
                // Overlays belong to root.
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
    // A mount that was unmounted meanwhile may have looked dead.
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

/// All keepers of this user. Removes what dead ones left behind.
///
/// # Errors
/// [`super::Error::Io`] if the directory of keepers or the mounts cannot be read.
pub fn all() -> Result<Vec<Mounted>> {
    kept(&mountinfo::all()?)
}

/// Removes the hidden mounts of processes that were killed while they made an overlay: they keep a
/// keeper alive.
pub fn sweep() {
    let is_hidden = |dir: &RunDir| {
        let name = dir.path().file_name().map(OsStr::as_encoded_bytes);
        let hidden = [mountinfo::LOWER, mountinfo::EPHEMERAL];
        name.is_some_and(|name| {
            hidden
                .iter()
                .any(|begin| name.starts_with(begin.as_bytes()))
        })
    };
    // Without the directory, nothing is hidden.
    let dirs = RunDir::all().unwrap_or_default().into_iter();
    dirs.filter(is_hidden).for_each(|dir| clear(&dir));
}

/// Where other users have mounted images, as far as this user may know of it: for root, all.
///
/// # Errors
/// [`super::Error::Io`] if the mounts cannot be read.
pub fn of_others() -> Result<Vec<PathBuf>> {
    let own = rustix::process::geteuid().as_raw();
    if own != 0 || in_user_namespace() {
        return Ok(Vec::new());
    }
    let mounts = mountinfo::all()?.into_iter();
    let others = mounts.filter(|m| m.is_ours() && m.user_id().is_some_and(|uid| uid != own));
    Ok(others.map(|mount| mount.mountpoint).collect())
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

/// Removes a directory without a keeper, unless one is starting.
fn clear(dir: &RunDir) {
    let cleared = dir.try_lock().and_then(|locked| match locked {
        // A keeper may have started before the directory was locked.
        Some(locked) if dir.connect()?.is_none() => locked.remove(),
        _ => Ok(()),
    });
    if let Err(error) = cleared {
        tracing::warn!("{}", chain(&error));
    }
}
