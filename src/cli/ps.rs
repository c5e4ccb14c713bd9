//! `lxcri-fs ps`.

use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use serde::Serialize;

use super::colour;
use super::error::Error;
use super::output::{count, json, lines, moment, note, printable, time};
use crate::serve::answer::Answer;
use crate::serve::confine::Confinement;
use crate::serve::engine::Engine;
use crate::serve::overview::{self, MountState, Mounted, Overview, Seen, Unkept};
use crate::sys::users;
use crate::upper::upper_dir::is_ephemeral;

/// List mounts, the processes that keep and serve them, and how many processes use them; ask each
/// mount whether it answers
#[derive(Debug, Args)]
#[command(after_help = "\
States: serving; restarting (its worker is being replaced); failed or dead (no process serves
it); hung (it does not answer); unkept (no keeper would replace its worker);
other-user (another user mounted it).

Examples:
  lxcri-fs ps
  lxcri-fs ps --json | jq -r .mountpoints[]")]
pub(super) struct PsArgs {
    /// Print one JSON object for each mounted image
    #[arg(long)]
    json: bool,
}

/// A mounted image as `--json` prints it.
#[derive(Debug, Serialize)]
struct Row {
    /// Where the image is mounted, read-only or with an upper. Here and in all paths, `\xNN` stands
    /// for bytes that are not UTF-8.
    mountpoints: Vec<String>,
    /// The writable mounts.
    uppers: Vec<UpperRow>,
    images: Vec<String>,
    /// serving, restarting, failed, hung, dead, unkept, or other-user.
    state: &'static str,
    keeper: Option<u32>,
    worker: Option<u32>,
    version: Option<String>,
    /// split or fuse.
    engine: Option<Engine>,
    restarts: Option<u64>,
    uptime_seconds: Option<u64>,
    /// How many processes use it.
    users: usize,
    /// Why no process serves it any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
    /// Since when its worker has not answered; absent if unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_answering_since: Option<String>,
    /// What confines its worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    confinement: Option<Confinement>,
    /// What the state means, and what to do about it.
    #[serde(skip)]
    explained: Option<String>,
}

#[derive(Debug, Serialize)]
struct UpperRow {
    mountpoint: String,
    /// The upper's directory; absent if writes are discarded on unmount.
    upper: Option<String>,
}

pub(super) fn run(args: &PsArgs) -> Result<(), Error> {
    let users = users::count_by_device();
    let Overview {
        kept,
        unkept,
        answers,
    } = overview::ask()?;
    let mut rows: Vec<Row> = kept
        .into_iter()
        .map(|mounted| row(mounted, &answers, &users))
        .collect();
    rows.extend(
        unkept
            .iter()
            .map(|mounted| unkept_row(mounted, &answers, &users)),
    );
    if args.json {
        return rows.iter().try_for_each(json);
    }
    print(&rows).map_err(Error::Output)
}

/// Notes how many mounts of other users a command left out.
pub(super) fn note_others(command: &str) -> Result<(), Error> {
    let others = overview::of_others()?.len() as u64;
    if others > 0 {
        let mounts = count(others, "mount of another user", "mounts of other users");
        note(format_args!(
            "lxcri-fs: left out {mounts}: a user's own `lxcri-fs {command}` has them"
        ));
    }
    Ok(())
}

fn print(rows: &[Row]) -> std::io::Result<()> {
    let mut out = lines();
    writeln!(
        out,
        "{:>7} {:>7} {:>8} {:>9} {:>5}  {:<6} {:<10} {:<32} MOUNTED ON",
        "KEEPER", "WORKER", "RESTARTS", "UPTIME", "USERS", "ENGINE", "STATE", "IMAGE"
    )?;
    let number = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    for row in rows {
        let (keeper, worker, restarts) = (
            number(row.keeper.map(u64::from)),
            number(row.worker.map(u64::from)),
            number(row.restarts),
        );
        let (image, mut mounted) = (row.images.join(" "), row.mountpoints.iter());
        let first = mounted.next().map_or("", |path| path);
        let uptime = row.uptime_seconds.map_or_else(|| "-".to_owned(), duration);
        let engine = row.engine.map_or("-", Engine::name);
        let (state, users) = (row.state, row.users);
        write!(
            out,
            "{keeper:>7} {worker:>7} {restarts:>8} {uptime:>9} {users:>5}  {engine:<6} "
        )?;
        out.paint(style(state), &format!("{state:<10}"))?;
        writeln!(out, " {image:<32} {first}")?;
        mounted.try_for_each(|path| writeln!(out, "{:>93}{path}", ""))?;
        for UpperRow { mountpoint, upper } in &row.uppers {
            let upper = upper
                .as_deref()
                .unwrap_or("memory, and discarded on unmount");
            writeln!(out, "{:>8}{mountpoint} is written to {upper}", "")?;
        }
        if let Some(explained) = &row.explained {
            writeln!(out, "{:>8}{explained}", "")?;
        }
    }
    Ok(())
}

fn row(
    mounted: Mounted,
    answers: &HashMap<u32, Answer>,
    users: &HashMap<(u32, u32), usize>,
) -> Row {
    let state = MountState::of(&mounted, answers);
    let status = mounted.status;
    let images = status
        .images
        .iter()
        .map(|i| text(&PathBuf::from(i)))
        .collect();
    Row {
        keeper: Some(status.pid),
        worker: status.worker,
        version: Some(status.version),
        engine: Some(status.engine),
        restarts: Some(status.restarts),
        confinement: status.confinement,
        uptime_seconds: Some(now().saturating_sub(status.since)),
        failed: status.failed,
        ..stateful(images, &mounted.seen, status.dev, &state, users)
    }
}

fn unkept_row(
    mounted: &Unkept,
    answers: &HashMap<u32, Answer>,
    users: &HashMap<(u32, u32), usize>,
) -> Row {
    let state = MountState::of_unkept(mounted, answers);
    stateful(
        vec![text(&mounted.image)],
        &mounted.seen,
        mounted.dev,
        &state,
        users,
    )
}

/// Everything that is known about every mount.
fn stateful(
    images: Vec<String>,
    seen: &[Seen],
    dev: (u32, u32),
    state: &MountState,
    users: &HashMap<(u32, u32), usize>,
) -> Row {
    let devices: BTreeSet<(u32, u32)> = seen.iter().map(|s| s.dev).chain([dev]).collect();
    Row {
        mountpoints: seen.iter().map(|s| text(&s.mountpoint)).collect(),
        uppers: seen.iter().filter_map(upper).collect(),
        images,
        state: name(state),
        keeper: None,
        worker: None,
        version: None,
        engine: None,
        restarts: None,
        uptime_seconds: None,
        users: devices.iter().filter_map(|dev| users.get(dev)).sum(),
        failed: None,
        not_answering_since: match state {
            MountState::Silent(Some(since)) => {
                i64::try_from(*since).ok().and_then(|at| moment(at, 0))
            }
            _ => None,
        },
        confinement: None,
        explained: explain(state),
    }
}

fn name(state: &MountState) -> &'static str {
    match state {
        MountState::Serving => "serving",
        MountState::Restarting => "restarting",
        MountState::Failed(_) => "failed",
        MountState::Silent(_) => "hung",
        MountState::Dead => "dead",
        MountState::Unkept => "unkept",
        MountState::Of(_) => "other-user",
    }
}

fn style(state: &str) -> anstyle::Style {
    match state {
        "serving" => colour::GOOD,
        "restarting" | "unkept" => colour::NOTE,
        "other-user" => colour::PLAIN,
        _ => colour::BAD,
    }
}

/// What an abnormal state means for users of the mount, and what to do about it.
pub(super) fn explain(state: &MountState) -> Option<String> {
    Some(match state {
        MountState::Serving | MountState::Restarting => return None,
        MountState::Failed(why) => {
            format!("{why}; users get errors: unmount it, then mount it again")
        }
        MountState::Silent(since) => {
            let since = since
                .map(|at| format!(" since {}", time(i64::try_from(at).unwrap_or(i64::MAX))))
                .unwrap_or_default();
            format!(
                "not answering{since}: users wait until its disk or worker responds; `lxcri-fs \
                 umount --force` ends the wait with errors"
            )
        }
        MountState::Dead => "no process serves it any more, and users get errors: unmount it with \
                        `lxcri-fs umount`, then mount it again; `lxcri-fs mount --all` does both \
                        for containers"
            .to_owned(),
        MountState::Unkept => {
            "no keeper of this user watches it, so it ends with the process that \
                          serves it: unmount it when it is idle, and mount it again"
                .to_owned()
        }
        MountState::Of(uid) => format!(
            "mounted by user {uid}: only that user's `lxcri-fs ps` can show \
                                   more"
        ),
    })
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

fn text(path: &Path) -> String {
    printable(path.as_os_str().as_bytes())
}

fn upper(seen: &Seen) -> Option<UpperRow> {
    let upper = seen.upper.as_ref()?;
    Some(UpperRow {
        mountpoint: text(&seen.mountpoint),
        upper: (!is_ephemeral(upper)).then(|| text(upper)),
    })
}

/// `3d 4h`, `5h 6m`, `7m 8s`.
fn duration(seconds: u64) -> String {
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let first = units
        .iter()
        .position(|(unit, _)| seconds >= *unit)
        .unwrap_or(3)
        .min(2);
    let [(large, a), (small, b)] = [units[first], units[first + 1]];
    format!("{}{a} {}{b}", seconds / large, seconds % large / small)
}

#[cfg(test)]
mod tests {
    #[test]
    fn durations() {
        let seconds = [0, 59, 60, 3599, 3600, 90_061, 864_000];
        let texts: Vec<String> = seconds.into_iter().map(super::duration).collect();
        assert_eq!(
            texts,
            [
                "0m 0s", "0m 59s", "1m 0s", "59m 59s", "1h 0m", "1d 1h", "10d 0h"
            ]
        );
    }
}
