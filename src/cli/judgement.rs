//! How `update` and `rebase` print what they would do, or have done.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::error::{Error, Exit};
use super::output::{count, json, many_lines, printable, size};
use crate::image::Judged;
use crate::update::{self, Conflict, Judgement, Lost, Policy, Reason, Side, Step, What};

/// Who wins conflicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum OnConflict {
    /// What the container has
    Mine,
    /// What the new image has
    Theirs,
    /// Nobody: nothing is changed
    Fail,
}

/// How to merge.
#[derive(Debug, Args)]
pub(super) struct MergeArgs {
    /// Only print what would be done
    #[arg(short = 'n', long)]
    pub(super) dry_run: bool,
    /// Keep PATH of the container, and all that is below it, as the container has it, whatever the
    /// new image has; can be given several times
    #[arg(long, value_name = "PATH")]
    keep: Vec<PathBuf>,
    /// Who wins where both sides changed the same in different ways. What loses is kept in
    /// lost+update, beside the upper, until the next update
    #[arg(long, value_name = "WHO", default_value = "mine")]
    on_conflict: OnConflict,
}

impl MergeArgs {
    /// The options of the merge.
    pub(super) fn options(&self) -> Result<update::Options, Error> {
        let policy = match self.on_conflict {
            OnConflict::Theirs => Policy::Theirs,
            OnConflict::Mine | OnConflict::Fail => Policy::Mine,
        };
        let keep = self.keep.iter().map(|path| inside(path));
        let keep = keep.collect::<Result<_, _>>()?;
        Ok(update::Options { policy, keep })
    }

    /// Refuses conflicts, if nobody may win them.
    pub(super) fn check(&self, judgement: &Judgement) -> Result<(), Error> {
        let fails = self.on_conflict == OnConflict::Fail && !judgement.conflicts.is_empty();
        if !fails {
            return Ok(());
        }
        let first = judgement.conflicts.first().map(describe);
        Err(Error::Other {
            message: format!(
                "both sides changed {} in different ways, first {}",
                count(judgement.conflicts.len() as u64, "path", "paths"),
                first.unwrap_or_default()
            ),
            hint: Some(
                "`--dry-run` lists them all; `--on-conflict mine` or `theirs` decides them".into(),
            ),
            exit: Exit::Failure,
        })
    }
}

/// A path of a container without its slash.
fn inside(path: &Path) -> Result<Vec<u8>, Error> {
    use std::os::unix::ffi::OsStrExt;
    use std::path::Component;
    let mut names = Vec::new();
    for part in path.components() {
        match part {
            Component::RootDir => {}
            Component::Normal(name) if path.is_absolute() => names.push(name.as_bytes()),
            _ => {
                return Err(Error::Other {
                    message: format!("{} is not an absolute path without `..`", path.display()),
                    hint: Some("name the path as the container sees it, such as /etc/app".into()),
                    exit: Exit::Usage,
                });
            }
        }
    }
    Ok(names.join(&b'/'))
}

/// The judgement of an upper.
#[derive(Serialize)]
pub(super) struct Rows {
    /// What becomes of paths at which the result is not simply the new image.
    changes: Vec<Change>,
    conflicts: Vec<Row>,
    /// Bytes of files that are carried over.
    carried_bytes: u64,
}

#[derive(Serialize)]
struct Change {
    path: String,
    /// `container`: its own version; `deleted`; `directory` and `attributes`: with the container's
    /// attributes; `merged`: from both; `link`: another name of a file.
    change: &'static str,
}

#[derive(Serialize)]
struct Row {
    path: String,
    /// Why it is a conflict.
    reason: &'static str,
    /// The attributes or entries, or the package manager.
    about: Vec<String>,
    /// `mine` or `theirs`.
    winner: &'static str,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<&'static str>,
    /// Where the loser's version is kept, below `lost+update` beside the upper.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<String>,
}

fn name(side: Side) -> &'static str {
    match side {
        Side::Mine => "mine",
        _ => "theirs",
    }
}

fn reason(reason: &Reason) -> (&'static str, Vec<String>) {
    match reason {
        Reason::Content => ("content", Vec::new()),
        Reason::DeletedByMine => ("deleted-by-mine", Vec::new()),
        Reason::DeletedByTheirs => ("deleted-by-theirs", Vec::new()),
        Reason::Kind => ("kind", Vec::new()),
        Reason::Attributes(names) => ("attributes", names.clone()),
        Reason::Entries(names) => ("entries", names.clone()),
        Reason::Packages { manager, .. } => ("packages", vec![(*manager).to_owned()]),
    }
}

/// A conflict in one line.
fn describe(conflict: &Conflict) -> String {
    let path = printable(&conflict.path);
    let why = match &conflict.reason {
        Reason::Content => "both sides changed it".to_owned(),
        Reason::DeletedByMine => "the container deleted it, and the image changed it".to_owned(),
        Reason::DeletedByTheirs => "the image deleted it, and the container changed it".to_owned(),
        Reason::Kind => "one side has a directory there, the other one does not".to_owned(),
        Reason::Attributes(names) => format!("both sides changed {}", all(names)),
        Reason::Entries(names) => format!("both sides have changed or given {}", all(names)),
        Reason::Packages { manager, .. } => {
            format!("both sides changed the packages, and {manager}'s database is one side's")
        }
    };
    format!("/{path}: {why}")
}

fn all(names: &[String]) -> String {
    let names = names.iter().map(|name| printable(name.as_bytes()));
    names.collect::<Vec<_>>().join(", ")
}

impl Rows {
    pub(super) fn of(judged: &Judged) -> Self {
        let Judgement {
            steps,
            conflicts,
            lost,
        } = &judged.judgement;
        let changes = steps.iter().map(|Step { path, what }| Change {
            path: format!("/{}", printable(path)),
            change: match what {
                What::Remove => "deleted",
                What::Directory(_) => "directory",
                What::Mine(_) => "container",
                What::Attributes(_) => "attributes",
                What::Text(..) => "merged",
                What::Link(_) => "link",
            },
        });
        let conflicts = conflicts.iter().map(|conflict| {
            let is_of = |lost: &&Lost| lost.path == conflict.path;
            let kept = lost.iter().find(is_of);
            let (reason, about) = reason(&conflict.reason);
            Row {
                path: format!("/{}", printable(&conflict.path)),
                reason,
                about,
                winner: name(conflict.winner),
                advice: match conflict.reason {
                    Reason::Packages { advice, .. } => Some(advice),
                    _ => None,
                },
                kept: kept.map(|lost| format!("{}/{}", name(lost.side), printable(&lost.path))),
            }
        });
        Self {
            changes: changes.collect(),
            conflicts: conflicts.collect(),
            carried_bytes: judged.cost.carried,
        }
    }
}

/// Prints a judgement: all of it, or only its conflicts.
pub(super) fn print(judged: &Judged, all: bool) -> Result<(), Error> {
    let rows = Rows::of(judged);
    let mut out = many_lines();
    let written = (|| {
        for Change { path, change } in rows.changes.iter().filter(|_| all) {
            writeln!(out, "{change:<10} {path}")?;
        }
        let conflicts = judged.judgement.conflicts.iter().zip(&rows.conflicts);
        for (conflict, row) in conflicts {
            let winner = match conflict.winner {
                Side::Mine => "the container's is taken",
                _ => "the image's is taken",
            };
            let kept = row.kept.as_ref();
            let kept = kept.map_or_else(String::new, |kept| {
                format!(", the other kept in lost+update/{kept}")
            });
            writeln!(out, "conflict   {}: {winner}{kept}", describe(conflict))?;
            if let Some(advice) = row.advice {
                writeln!(out, "           {advice}")?;
            }
        }
        if all {
            let carried = size(rows.carried_bytes);
            writeln!(out, "{carried} would be carried over")?;
        }
        out.flush()
    })();
    written.map_err(Error::Output)
}

/// Prints a judgement as JSON.
pub(super) fn print_json(judged: &Judged) -> Result<(), Error> {
    json(&Rows::of(judged))
}
