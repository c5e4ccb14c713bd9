//! Makes the outcomes of all paths one tree: what is in a directory needs the directory.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::Policy;
use super::judge::Outcome;
use super::merge::{Conflict, Judgeable, Lost, Reason};
use super::tree::{Entry, Side};

/// Settles what is in the way of what is below it. `report` is told each conflict, and what lost
/// it; `keep` says which paths stay as mine has them.
pub(super) fn settle(
    paths: &mut BTreeMap<Vec<u8>, Judgeable>,
    policy: Policy,
    keep: &dyn Fn(&[u8]) -> bool,
    mut report: impl FnMut(Conflict, Vec<Lost>),
) {
    // From the top, so that what is lost with a directory is lost once.
    let all: Vec<Vec<u8>> = paths.keys().cloned().collect();
    for path in all {
        let Some(known) = paths.get(&path) else {
            continue;
        };
        if known.outcome.is_dir() {
            continue;
        }
        let below = surviving(paths, &path);
        if below.is_empty() {
            continue;
        }
        let is_dir = |side: Side| known.three.side(side).is_some_and(Entry::is_dir);
        let directory = |side| Outcome::of(side, known.three.side(side));
        let outcome = match &known.outcome {
            // Nobody wants anything else there.
            Outcome::Absent if is_dir(Side::Theirs) => Some(directory(Side::Theirs)),
            Outcome::Absent => Some(directory(Side::Mine)),
            Outcome::Of(side, _) => {
                let side = *side;
                let winner = match below.iter().any(|path| keep(path)) {
                    true => Side::Mine,
                    false => policy.winner(),
                };
                let lost = if winner == side {
                    let files = below.iter().filter(|path| !is_directory(paths, path));
                    files.map(|path| Lost::new(side.other(), path)).collect()
                } else {
                    vec![Lost::new(side, &path)]
                };
                let conflict = Conflict {
                    path: path.clone(),
                    reason: Reason::Kind,
                    winner,
                };
                report(conflict, lost);
                (winner != side).then(|| directory(side.other()))
            }
            // Merged lists are files on both sides, so nothing is below them.
            Outcome::Text(..) | Outcome::Directory(_) => continue,
        };
        match outcome {
            Some(outcome) => {
                if let Some(known) = paths.get_mut(&path) {
                    known.outcome = outcome;
                }
            }
            None => remove_below(paths, &path),
        }
    }
}

/// The range of the paths below a directory.
fn range(path: &[u8]) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    match path {
        b"" => (Bound::Excluded(Vec::new()), Bound::Unbounded),
        // The byte after the slash ends it.
        _ => (
            Bound::Excluded([path, b"/"].concat()),
            Bound::Excluded([path, b"0"].concat()),
        ),
    }
}

fn is_directory(paths: &BTreeMap<Vec<u8>, Judgeable>, path: &[u8]) -> bool {
    paths.get(path).is_some_and(|known| known.outcome.is_dir())
}

/// What stays below a path.
fn surviving(paths: &BTreeMap<Vec<u8>, Judgeable>, path: &[u8]) -> Vec<Vec<u8>> {
    let below = paths.range(range(path));
    below
        .filter(|(_, known)| !matches!(known.outcome, Outcome::Absent))
        .map(|(path, _)| path.clone())
        .collect()
}

fn remove_below(paths: &mut BTreeMap<Vec<u8>, Judgeable>, path: &[u8]) {
    for (_, known) in paths.range_mut(range(path)) {
        known.outcome = Outcome::Absent;
    }
}
