//! Judges one path by what the three trees have there.

use super::Policy;
use super::accounts::{self, Accounts};
use super::attributes;
use super::merge::{Lost, Reason};
use super::tree::{Attributes, Entry, Kind, Side, Trees};

/// What a path becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing.
    Absent,
    /// A directory.
    Directory(Attributes),
    /// What is no directory, from this side.
    Of(Side, Attributes),
    /// A file with merged content.
    Text(Vec<u8>, Attributes),
}

impl Outcome {
    /// What a side has.
    pub(super) fn of(side: Side, entry: Option<&Entry>) -> Self {
        match entry {
            None => Self::Absent,
            Some(entry) if entry.is_dir() => Self::Directory(entry.attributes.clone()),
            Some(entry) => Self::Of(side, entry.attributes.clone()),
        }
    }

    pub(super) fn is_dir(&self) -> bool {
        matches!(self, Self::Directory(_))
    }
}

/// What the trees have at a path.
pub(super) struct Three {
    pub(super) base: Option<Entry>,
    pub(super) mine: Option<Entry>,
    pub(super) theirs: Option<Entry>,
}

impl Three {
    pub(super) fn at<T: Trees>(trees: &mut T, path: &[u8]) -> Result<Self, T::Error> {
        Ok(Self {
            base: trees.entry(Side::Base, path)?,
            mine: trees.entry(Side::Mine, path)?,
            theirs: trees.entry(Side::Theirs, path)?,
        })
    }

    pub(super) fn side(&self, side: Side) -> Option<&Entry> {
        match side {
            Side::Base => self.base.as_ref(),
            Side::Mine => self.mine.as_ref(),
            Side::Theirs => self.theirs.as_ref(),
        }
    }
}

/// The judgement of a path.
pub(super) struct Judged {
    pub(super) outcome: Outcome,
    /// Why it was a conflict, and what the loser has there.
    pub(super) conflict: Option<(Reason, Option<Lost>)>,
}

impl Judged {
    fn clean(outcome: Outcome) -> Self {
        Self {
            outcome,
            conflict: None,
        }
    }
}

/// Whether two sides have the same there, attributes aside.
pub(super) fn same_content<T: Trees>(
    trees: &mut T,
    path: &[u8],
    (a, left): (Side, &Entry),
    (b, right): (Side, &Entry),
) -> Result<bool, T::Error> {
    match (&left.kind, &right.kind) {
        (Kind::File(x), Kind::File(y)) if x == y => trees.same_content(path, a, b),
        (x, y) => Ok(x == y),
    }
}

/// Whether a side has another content than the base, or other attributes; times aside.
fn changed<T: Trees>(
    trees: &mut T,
    path: &[u8],
    base: &Entry,
    side: (Side, &Entry),
) -> Result<bool, T::Error> {
    let (old, new) = (&base.attributes, &side.1.attributes);
    let timeless = Attributes {
        mtime: old.mtime,
        ..new.clone()
    };
    Ok(timeless != *old || !same_content(trees, path, (Side::Base, base), side)?)
}

/// Judges a path.
pub(super) fn judge<T: Trees>(
    trees: &mut T,
    path: &[u8],
    three: &Three,
    policy: Policy,
) -> Result<Judged, T::Error> {
    let outcome = |side| Judged::clean(Outcome::of(side, three.side(side)));
    let conflict = |reason| {
        let loser = policy.winner().other();
        // What is in a directory is judged by itself.
        let lost = three.side(loser).filter(|entry| !entry.is_dir());
        Judged {
            outcome: Outcome::of(policy.winner(), three.side(policy.winner())),
            conflict: Some((reason, lost.map(|_| Lost::new(loser, path)))),
        }
    };
    let (Some(mine), Some(theirs)) = (&three.mine, &three.theirs) else {
        // One side has nothing there, or neither.
        let (there, has) = match (&three.mine, &three.theirs) {
            (Some(_), _) => (Side::Mine, three.mine.as_ref()),
            _ => (Side::Theirs, three.theirs.as_ref()),
        };
        return Ok(match (&three.base, has) {
            (Some(base), Some(has)) if base.is_dir() == has.is_dir() => {
                if !has.is_dir() && changed(trees, path, base, (there, has))? {
                    conflict(if there == Side::Mine {
                        Reason::DeletedByTheirs
                    } else {
                        Reason::DeletedByMine
                    })
                } else {
                    Judged::clean(Outcome::Absent)
                }
            }
            // What replaced the old one is new.
            _ => outcome(there),
        });
    };
    match (mine.is_dir(), theirs.is_dir()) {
        (true, true) | (false, false) => both(trees, path, three, (mine, theirs), policy),
        // Only one of them is a directory.
        (mine_is, _) => {
            let Some(base) = &three.base else {
                return Ok(conflict(Reason::Kind));
            };
            let (like, side) = match base.is_dir() == mine_is {
                true => (mine, Side::Mine),
                false => (theirs, Side::Theirs),
            };
            // One side is of the base's kind: the other replaced it.
            Ok(
                if !base.is_dir() && changed(trees, path, base, (side, like))? {
                    conflict(Reason::Kind)
                } else {
                    outcome(side.other())
                },
            )
        }
    }
}

/// Judges what both sides have: two directories, or two other things.
fn both<T: Trees>(
    trees: &mut T,
    path: &[u8],
    three: &Three,
    (mine, theirs): (&Entry, &Entry),
    policy: Policy,
) -> Result<Judged, T::Error> {
    let base = three.base.as_ref();
    let base = base.filter(|base| base.is_dir() == mine.is_dir());
    let same =
        |trees: &mut T, a: (Side, &Entry), b: (Side, &Entry)| same_content(trees, path, a, b);
    // The side that the content comes from, if the sides differ.
    let (mut content, mut in_conflict, mut text) = (None, false, None);
    let (mut entries, mut ids) = (Vec::new(), Vec::new());
    if !same(trees, (Side::Mine, mine), (Side::Theirs, theirs))? {
        let is_of_base = |trees: &mut T, side: (Side, &Entry)| match base {
            Some(base) => same(trees, (Side::Base, base), side),
            None => Ok(false),
        };
        content = if is_of_base(trees, (Side::Mine, mine))? {
            Some(Side::Theirs)
        } else if is_of_base(trees, (Side::Theirs, theirs))? || Accounts::is_copy(path) {
            Some(Side::Mine)
        } else if let Some(merged) = merge_accounts(trees, path, three, policy)? {
            (entries, ids) = (merged.entries, merged.ids);
            text = Some(merged.text);
            None
        } else {
            in_conflict = true;
            Some(policy.winner())
        };
    }
    let old = base.filter(|base| base.is_like(mine));
    let old = old.map(|base| &base.attributes);
    let (own, new) = (&mine.attributes, &theirs.attributes);
    let merged = match content {
        // A symlink's mode, say, is nothing that a file should have.
        Some(side) if !mine.is_like(theirs) => attributes::Merged {
            attributes: if side == Side::Mine { own } else { new }.clone(),
            conflicts: Vec::new(),
        },
        _ => {
            let mut merged = attributes::merge(old, own, new, content, policy);
            match content {
                Some(Side::Mine) => attributes::follow(&mut merged.attributes, Some(own)),
                Some(_) => attributes::follow(&mut merged.attributes, Some(new)),
                None if text.is_some() => attributes::follow(&mut merged.attributes, None),
                None => {}
            }
            merged
        }
    };
    let reason = if in_conflict {
        Some(Reason::Content)
    } else if !entries.is_empty() || !ids.is_empty() {
        Some(Reason::Entries(entries.into_iter().chain(ids).collect()))
    } else if !merged.conflicts.is_empty() {
        Some(Reason::Attributes(merged.conflicts))
    } else {
        None
    };
    let loser = policy.winner().other();
    let lost = match reason {
        Some(Reason::Content | Reason::Entries(_)) => Some(Lost::new(loser, path)),
        _ => None,
    };
    let attributes = merged.attributes;
    let outcome = match (text, mine.is_dir()) {
        (_, true) => Outcome::Directory(attributes),
        (Some(text), _) => Outcome::Text(text, attributes),
        (None, _) => Outcome::Of(content.unwrap_or(Side::Theirs), attributes),
    };
    Ok(Judged {
        outcome,
        conflict: reason.map(|reason| (reason, lost)),
    })
}

/// The merged file of users or groups, if the path is one's and all sides can be read.
fn merge_accounts<T: Trees>(
    trees: &mut T,
    path: &[u8],
    three: &Three,
    policy: Policy,
) -> Result<Option<accounts::Merged>, T::Error> {
    let Some(kind) = Accounts::at(path) else {
        return Ok(None);
    };
    let mut texts = Vec::new();
    for side in [Side::Base, Side::Mine, Side::Theirs] {
        let is_file = |entry: &&Entry| matches!(entry.kind, Kind::File(_));
        texts.push(match three.side(side).filter(is_file) {
            Some(_) => trees.read(side, path, accounts::MAX)?,
            // Both sides may have added it.
            None => (side == Side::Base).then(Vec::new),
        });
    }
    let [Some(base), Some(mine), Some(theirs)] = &texts[..] else {
        return Ok(None);
    };
    Ok(Some(accounts::merge(kind, base, mine, theirs, policy)))
}
