//! Finds the paths to judge, and turns the outcomes into steps.

use std::collections::{BTreeMap, BTreeSet};

use super::Policy;
use super::judge::{Judged, Outcome, Three, judge, same_content};
use super::packages::{DATABASES, Database};
use super::structure;
use super::tree::{Attributes, FileId, Side, Trees, above, is_within, join};

/// How to merge.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Who wins conflicts.
    pub policy: Policy,
    /// Paths that stay as mine has them, with everything below, whatever theirs has.
    pub keep: Vec<Vec<u8>>,
}

/// The result of a merge.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Judgement {
    /// What makes the new tree of theirs, sorted by path: parents come before their entries.
    pub steps: Vec<Step>,
    /// The conflicts, sorted by path.
    pub conflicts: Vec<Conflict>,
    /// What lost a conflict and is no directory, sorted.
    pub lost: Vec<Lost>,
}

/// A change of the new tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Where.
    pub path: Vec<u8>,
    /// What.
    pub what: What,
}

/// A change of a path, which takes the place of whatever theirs has there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Nothing is there any more.
    Remove,
    /// A directory. If theirs has one, what is in it stays.
    Directory(Attributes),
    /// What mine has there, which is no directory, with these attributes.
    Mine(Attributes),
    /// What theirs has there, with other attributes.
    Attributes(Attributes),
    /// A file with merged content.
    Text(Vec<u8>, Attributes),
    /// Another name of the file at this path, which comes first or is in theirs.
    Link(Vec<u8>),
}

/// What lost a conflict.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lost {
    /// Whose it is.
    pub side: Side,
    /// Where it was.
    pub path: Vec<u8>,
}

impl Lost {
    pub(super) fn new(side: Side, path: &[u8]) -> Self {
        let path = path.to_vec();
        Self { side, path }
    }
}

/// Something that both sides changed, and not in the same way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Where.
    pub path: Vec<u8>,
    /// Why.
    pub reason: Reason,
    /// Who won it.
    pub winner: Side,
}

/// Why something is a conflict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Both changed or added it.
    Content,
    /// Mine deleted what theirs changed.
    DeletedByMine,
    /// Theirs deleted what mine changed.
    DeletedByTheirs,
    /// One side has a directory there, and the other one something else.
    Kind,
    /// Both changed these attributes.
    Attributes(Vec<String>),
    /// Both changed these entries of a list of users or groups, or used an id for two of them.
    Entries(Vec<String>),
    /// Both changed the database of a package manager, which is one side's as a whole.
    Packages {
        /// The package manager.
        manager: &'static str,
        /// What to do about it.
        advice: &'static str,
    },
}

/// Merges. `changed` are all paths at which mine differs from the base; if a directory is gone, the
/// paths in it need not be among them.
///
/// # Errors
/// Those of the trees.
pub fn merge<T: Trees>(
    trees: &mut T,
    changed: &BTreeSet<Vec<u8>>,
    options: &Options,
) -> Result<Judgement, T::Error> {
    let mut merge = Merge {
        trees,
        options,
        paths: BTreeMap::new(),
        regions: Vec::new(),
        conflicts: BTreeMap::new(),
        lost: BTreeSet::new(),
    };
    let keep = options.keep.iter();
    merge
        .regions
        .extend(keep.map(|path| (path.clone(), Side::Mine)));
    for database in &DATABASES {
        merge.database(database, changed)?;
    }
    merge.collect(changed)?;
    let keep = |path: &[u8]| options.keep.iter().any(|top| is_within(path, top));
    structure::settle(&mut merge.paths, options.policy, &keep, |conflict, lost| {
        merge
            .conflicts
            .entry(conflict.path.clone())
            .or_insert(conflict);
        merge.lost.extend(lost);
    });
    merge.finish()
}

/// What is known of a path.
pub(super) struct Judgeable {
    pub(super) three: Three,
    pub(super) outcome: Outcome,
}

struct Merge<'a, T> {
    trees: &'a mut T,
    options: &'a Options,
    paths: BTreeMap<Vec<u8>, Judgeable>,
    /// What one side decides alone.
    regions: Vec<(Vec<u8>, Side)>,
    conflicts: BTreeMap<Vec<u8>, Conflict>,
    lost: BTreeSet<Lost>,
}

impl<T: Trees> Merge<'_, T> {
    /// Judges all paths at which the result may differ from theirs.
    fn collect(&mut self, changed: &BTreeSet<Vec<u8>>) -> Result<(), T::Error> {
        let kept = self.regions.iter().map(|(path, _)| path);
        let mut waiting: BTreeSet<Vec<u8>> = changed.iter().chain(kept).cloned().collect();
        let parents = waiting.iter().flat_map(|path| above(path));
        let parents: Vec<_> = parents.map(<[u8]>::to_vec).collect();
        waiting.extend(parents);
        while let Some(path) = waiting.pop_first() {
            let three = Three::at(self.trees, &path)?;
            let region = self.region(&path);
            let is_dir = |side| three.side(side).is_some_and(super::Entry::is_dir);
            // What is gone from mine was not listed below it; what one side decides alone need not
            // have been changed.
            let listed: &[Side] = match region {
                Some(Side::Mine) => &[Side::Mine, Side::Theirs],
                _ if !is_dir(Side::Mine) => &[Side::Base, Side::Theirs],
                _ => &[],
            };
            for &side in listed.iter().filter(|&&side| is_dir(side)) {
                let names = self.trees.names(side, &path)?;
                waiting.extend(names.iter().map(|name| join(&path, name)));
            }
            let outcome = match region {
                Some(side) => Outcome::of(side, three.side(side)),
                None => self.judge(&path, &three)?,
            };
            self.paths.insert(path, Judgeable { three, outcome });
        }
        Ok(())
    }

    fn judge(&mut self, path: &[u8], three: &Three) -> Result<Outcome, T::Error> {
        let policy = self.options.policy;
        let Judged { outcome, conflict } = judge(self.trees, path, three, policy)?;
        if let Some((reason, lost)) = conflict {
            let conflict = Conflict {
                path: path.to_vec(),
                reason,
                winner: policy.winner(),
            };
            self.conflicts.insert(path.to_vec(), conflict);
            self.lost.extend(lost);
        }
        Ok(outcome)
    }

    /// The side that alone decides about a path.
    fn region(&self, path: &[u8]) -> Option<Side> {
        let mut regions = self.regions.iter();
        regions
            .find(|(top, _)| is_within(path, top))
            .map(|(_, side)| *side)
    }

    /// Finds out whether both sides changed a database of packages, and differ.
    fn database(
        &mut self,
        database: &Database,
        changed: &BTreeSet<Vec<u8>>,
    ) -> Result<(), T::Error> {
        let mut own = false;
        for path in changed.iter().filter(|path| database.counts(path)) {
            if !own && self.region(path).is_none() {
                own = self.differ(path, Side::Base, Side::Mine)?;
            }
        }
        if !own {
            return Ok(());
        }
        let (mut theirs, mut lost) = (false, Vec::new());
        let loser = self.options.policy.winner().other();
        let parts = database.parts.iter();
        let mut waiting: BTreeSet<Vec<u8>> = parts.map(|part| part.as_bytes().to_vec()).collect();
        let mut first = None;
        while let Some(path) = waiting.pop_first() {
            let mut is_there = false;
            for side in [Side::Base, Side::Mine, Side::Theirs] {
                let Some(entry) = self.trees.entry(side, &path)? else {
                    continue;
                };
                if entry.is_dir() {
                    let names = self.trees.names(side, &path)?;
                    waiting.extend(names.iter().map(|name| join(&path, name)));
                } else {
                    is_there |= side == loser;
                }
            }
            if self.differ(&path, Side::Mine, Side::Theirs)? {
                if is_there {
                    lost.push(Lost::new(loser, &path));
                }
                if database.counts(&path) && self.differ(&path, Side::Base, Side::Theirs)? {
                    theirs = true;
                    // Named by the file that users know, if that differs.
                    if first.is_none() || database.parts[0].as_bytes() == path {
                        first = Some(path);
                    }
                }
            }
        }
        let Some(path) = first.filter(|_| theirs) else {
            return Ok(());
        };
        let winner = self.options.policy.winner();
        let parts = database.parts.iter();
        self.regions
            .extend(parts.map(|part| (part.as_bytes().to_vec(), winner)));
        self.lost.extend(lost);
        let reason = Reason::Packages {
            manager: database.name,
            advice: database.advice,
        };
        self.conflicts.insert(
            path.clone(),
            Conflict {
                path,
                reason,
                winner,
            },
        );
        Ok(())
    }

    /// Whether two sides have different things at a path, attributes aside.
    fn differ(&mut self, path: &[u8], a: Side, b: Side) -> Result<bool, T::Error> {
        match (self.trees.entry(a, path)?, self.trees.entry(b, path)?) {
            (None, None) => Ok(false),
            (Some(left), Some(right)) => {
                Ok(!same_content(self.trees, path, (a, &left), (b, &right))?)
            }
            _ => Ok(true),
        }
    }

    /// The steps that make the outcomes of theirs.
    fn finish(mut self) -> Result<Judgement, T::Error> {
        let (mut steps, mut names) = (Vec::new(), Names::default());
        let paths = std::mem::take(&mut self.paths);
        for (path, known) in &paths {
            let what = self.step(path, known, &paths, &mut names)?;
            steps.extend(what.map(|what| Step {
                path: path.clone(),
                what,
            }));
        }
        Ok(Judgement {
            steps,
            conflicts: self.conflicts.into_values().collect(),
            lost: self.lost.into_iter().collect(),
        })
    }

    fn step(
        &mut self,
        path: &[u8],
        known: &Judgeable,
        all: &BTreeMap<Vec<u8>, Judgeable>,
        names: &mut Names,
    ) -> Result<Option<What>, T::Error> {
        let theirs = known.three.theirs.as_ref();
        Ok(match &known.outcome {
            Outcome::Absent => {
                // With what was above it, it is gone already.
                let gone = |path: &[u8]| all.get(path).is_some_and(|up| !up.outcome.is_dir());
                (theirs.is_some() && !above(path).any(gone)).then_some(What::Remove)
            }
            Outcome::Directory(attributes) => {
                let is_same = theirs.is_some_and(|t| t.is_dir() && t.attributes == *attributes);
                (!is_same).then(|| What::Directory(attributes.clone()))
            }
            Outcome::Text(text, attributes) => Some(What::Text(text.clone(), attributes.clone())),
            Outcome::Of(side, attributes) => {
                let Some(entry) = known.three.side(*side) else {
                    return Ok(None);
                };
                let same = match (side, theirs) {
                    (Side::Theirs, _) => true,
                    (_, Some(theirs)) => {
                        same_content(self.trees, path, (*side, entry), (Side::Theirs, theirs))?
                    }
                    _ => false,
                };
                let what = match theirs.filter(|_| same) {
                    Some(theirs) if theirs.attributes == *attributes => None,
                    Some(_) => Some(What::Attributes(attributes.clone())),
                    None => Some(What::Mine(attributes.clone())),
                };
                // Names of one file in mine stay names of one file, if it is the same at both.
                let mine = known.three.mine.as_ref();
                let is_mine = match mine.filter(|mine| mine.attributes == *attributes) {
                    Some(mine) if same => {
                        same_content(self.trees, path, (Side::Mine, mine), (*side, entry))?
                    }
                    Some(_) => *side == Side::Mine,
                    None => false,
                };
                let mine = mine.filter(|_| is_mine).and_then(|mine| mine.file);
                let own = theirs.filter(|_| same).and_then(|theirs| theirs.file);
                match names.first(path, mine, own, attributes, what.is_some()) {
                    Some(first) => Some(What::Link(first)),
                    None => what,
                }
            }
        })
    }
}

/// The first names of files with several.
#[derive(Default)]
struct Names {
    /// Of mine: where it is, and the file in theirs that has this name, if that stays.
    mine: BTreeMap<FileId, (Vec<u8>, Option<FileId>)>,
    /// Of theirs, with other attributes.
    theirs: BTreeMap<FileId, Vec<(Attributes, Vec<u8>)>>,
}

impl Names {
    /// The path that this one should be another name of, if any. `mine` and `theirs` are the files
    /// that are the same there; `changes` says whether theirs does not stay as it is.
    fn first(
        &mut self,
        path: &[u8],
        mine: Option<FileId>,
        theirs: Option<FileId>,
        attributes: &Attributes,
        changes: bool,
    ) -> Option<Vec<u8>> {
        let stays = theirs.filter(|_| !changes);
        if let Some(mine) = mine {
            if let Some((first, as_theirs)) = self.mine.get(&mine) {
                // Theirs may have linked them already.
                let linked = stays.is_some() && *as_theirs == stays;
                return (!linked).then(|| first.clone());
            }
            self.mine.insert(mine, (path.to_vec(), stays));
            return None;
        }
        let theirs = theirs.filter(|_| changes)?;
        let known = self.theirs.entry(theirs).or_default();
        if let Some((_, first)) = known.iter().find(|(known, _)| known == attributes) {
            return Some(first.clone());
        }
        known.push((attributes.clone(), path.to_vec()));
        None
    }
}
