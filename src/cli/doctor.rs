//! `lxcri-fs doctor`

use std::path::Path;

use clap::Args;
use rustix::process::{Resource, getrlimit};

use super::error::{Error, Exit};
use super::output::{json, printable, say, size};
use super::ps::explain;
use super::store::StoreArgs;
use crate::error::chain;
use crate::serve::confine;
use crate::serve::overview::{self, Overview, State};
use crate::store::Store;
use crate::store::doctor::{Finding, Level};
use crate::sys::kernel;
use crate::zfs;

/// Tell what this host can do, and whether the store and the mounts are sound
#[derive(Debug, Args)]
#[command(after_help = "\
Exit code 1 when something is broken.

Example: lxcri-fs doctor --json | jq 'select(.level == \"bad\")'")]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// One JSON object per line: about, level (good, note or bad), found, so
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) fn run(args: &DoctorArgs) -> Result<(), Error> {
    let mut findings = fuse();
    findings.extend(confinement());
    findings.extend(overlay());
    findings.extend(zfs());
    findings.extend(limits());
    findings.extend(mounts()?);
    findings.extend(store(&args.store)?);
    for finding in &findings {
        if args.json {
            json(finding)?;
            continue;
        }
        let level = match finding.level {
            Level::Good => "good",
            Level::Note => "note",
            Level::Bad => "BAD",
        };
        say(format_args!(
            "{level:<5} {:<8} {}: {}",
            finding.about,
            printable(finding.found.as_bytes()),
            finding.so
        ))?;
    }
    match findings.iter().filter(|f| f.level == Level::Bad).count() {
        0 => Ok(()),
        1 => Err(Error::Other {
            message: "one thing is broken".into(),
            hint: None,
            exit: Exit::Failure,
        }),
        n => Err(Error::Other {
            message: format!("{n} things are broken"),
            hint: None,
            exit: Exit::Failure,
        }),
    }
}

fn fuse() -> Vec<Finding> {
    let about = "kernel";
    let mut findings = Vec::new();
    match std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
    {
        Ok(_) => findings.push(Finding::new(
            about,
            Level::Good,
            "/dev/fuse can be opened",
            "images can be mounted",
        )),
        Err(e) => findings.push(Finding::new(
            about,
            Level::Bad,
            format!("/dev/fuse: {e}"),
            "nothing can be mounted; try `modprobe fuse`",
        )),
    }
    let (major, minor) = kernel::version();
    // What came with which version: linux/fuse.h tells it by the protocol's versions, 7.40 and
    // 7.41.
    let features = [
        (
            (6, 9),
            "mounts survive the death of the process that serves them",
            "a mount, and what runs on it, ends with the process that serves it; `upgrade` is \
             refused",
        ),
        (
            (6, 9),
            "files of an upper can be passed through (FUSE passthrough)",
            "files cannot be passed through",
        ),
        (
            (6, 12),
            "mounts can be shifted to a container's ids (idmapped mounts)",
            "unprivileged containers need images with shifted ids",
        ),
    ];
    for (since, can, cannot) in features {
        let (level, so) = if (major, minor) >= since {
            (Level::Good, can)
        } else {
            (Level::Note, cannot)
        };
        findings.push(Finding::new(
            about,
            level,
            format!("Linux {major}.{minor}, {}.{} is asked", since.0, since.1),
            so,
        ));
    }
    findings
}

/// What keeps the process that parses images from doing anything else: tried, not looked up.
fn confinement() -> Vec<Finding> {
    let about = "worker";
    let Some(missing) = confine::probe().map(|confinement| confinement.missing()) else {
        return vec![Finding::new(
            about,
            Level::Note,
            "its confinement cannot be tried",
            "threads or memory are short",
        )];
    };
    if missing.is_empty() {
        let so =
            "the process that parses images can open no file, reach no network, start no program";
        return vec![Finding::new(
            about,
            Level::Good,
            "landlock, seccomp, no_new_privs, and no capabilities",
            so,
        )];
    }
    missing
        .into_iter()
        .map(|(what, so)| Finding::new(about, Level::Note, what, so))
        .collect()
}

fn overlay() -> Vec<Finding> {
    let about = "overlay";
    let known = std::fs::read_to_string("/proc/filesystems").is_ok_and(|text| {
        text.lines()
            .any(|line| line.trim_start_matches("nodev").trim() == "overlay")
    });
    if !known {
        return vec![Finding::new(
            about,
            Level::Note,
            "overlayfs is not loaded",
            "`mount --upper` loads it, or fails; try `modprobe overlay`",
        )];
    }
    let mut findings = vec![Finding::new(
        about,
        Level::Good,
        "overlayfs is there",
        "`mount --upper` works; with user.* attributes (userxattr) in user namespaces too",
    )];
    // What `mount --upper` asks for.
    let features = [
        ("metacopy", "changing an owner or mode copies no content up"),
        ("redirect_dir", "directories of the image can be renamed"),
        ("xino_auto", "inode numbers are the image's"),
    ];
    for (name, so) in features {
        if Path::new("/sys/module/overlay/parameters")
            .join(name)
            .exists()
        {
            findings.push(Finding::new(
                about,
                Level::Good,
                format!("overlayfs has {}", name.trim_end_matches("_auto")),
                so,
            ));
        }
    }
    if !kernel::finds_fuse_handles() {
        let so = "hard links of the image part when one of them is written to";
        findings.push(Finding::new(
            about,
            Level::Note,
            "this kernel does not find FUSE files by handle",
            so,
        ));
    }
    findings
}

fn zfs() -> Vec<Finding> {
    let about = "zfs";
    let version = match zfs::version() {
        Ok(version) => version,
        Err(_) => {
            return vec![Finding::new(
                about,
                Level::Good,
                "ZFS is not installed",
                "the store and uppers are directories",
            )];
        }
    };
    let Some(number) = version.kernel_number() else {
        let so = "try `modprobe zfs`; until then the store and uppers are directories";
        return vec![Finding::new(
            about,
            Level::Note,
            format!("OpenZFS {}, whose module is not loaded", version.userland),
            so,
        )];
    };
    let (level, so) = match number {
        number if number >= (2, 2) => (Level::Good, "images, containers and uppers can be on ZFS"),
        _ => (
            Level::Note,
            "images can be on ZFS; uppers cannot: overlayfs needs 2.2 or later",
        ),
    };
    let mut findings = vec![Finding::new(
        about,
        level,
        format!("OpenZFS {}.{}", number.0, number.1),
        so,
    )];
    if let Ok(pools) = zfs::pools() {
        let names: Vec<&str> = pools.iter().map(|p| p.as_str()).collect();
        let found = if names.is_empty() {
            "no pools are imported".to_owned()
        } else {
            format!("pools {}", names.join(", "))
        };
        findings.push(Finding::new(
            about,
            Level::Good,
            found,
            "a store is made in one by `store = \"zfs:POOL\"`",
        ));
    }
    findings
}

fn limits() -> Vec<Finding> {
    let files = getrlimit(Resource::Nofile).maximum;
    let enough = files.is_none_or(|n| n >= 4096);
    let found = files.map_or_else(
        || "any number of open files".to_owned(),
        |n| format!("{n} open files"),
    );
    let so = if enough {
        "deep directories can be built and extracted"
    } else {
        "directories that are deeper cannot be built or extracted: raise the limit (ulimit -Hn)"
    };
    vec![Finding::new(
        "limits",
        if enough { Level::Good } else { Level::Note },
        found,
        so,
    )]
}

fn mounts() -> Result<Vec<Finding>, Error> {
    let Overview {
        kept,
        unkept,
        answers,
    } = overview::ask()?;
    let kept = kept
        .iter()
        .map(|m| (State::of(m, &answers), &m.seen, Some(m.status.pid)));
    let unkept = unkept
        .iter()
        .map(|m| (State::of_unkept(m, &answers), &m.seen, None));
    let all: Vec<_> = kept.chain(unkept).collect();
    let served = all
        .iter()
        .filter(|(state, ..)| matches!(state, State::Serving | State::Restarting))
        .count();
    let found = format!("{served} of {} images that are mounted", all.len());
    let mut findings = vec![Finding::new(
        "mounts",
        Level::Good,
        found,
        "they are served",
    )];
    for (state, seen, keeper) in &all {
        let Some(so) = explain(state) else { continue };
        let level = if matches!(state, State::Of(_) | State::Unkept) {
            Level::Note
        } else {
            Level::Bad
        };
        let seen: Vec<String> = seen
            .iter()
            .map(|s| s.mountpoint.display().to_string())
            .collect();
        let keeper = keeper
            .map(|pid| format!(" (process {pid})"))
            .unwrap_or_default();
        findings.push(Finding::new(
            "mounts",
            level,
            format!("{}{keeper}", seen.join(", ")),
            so,
        ));
    }
    Ok(findings)
}

fn store(args: &StoreArgs) -> Result<Vec<Finding>, Error> {
    let store: Store = args.open()?;
    let mut findings = match store.examine() {
        Ok(findings) => findings,
        Err(error) => {
            return Ok(vec![Finding::new(
                "store",
                Level::Bad,
                format!("{}: {}", store.location(), chain(&error)),
                "it cannot be used",
            )]);
        }
    };
    if let Ok(free) = store.free() {
        let level = if free < 1 << 30 {
            Level::Note
        } else {
            Level::Good
        };
        findings.push(Finding::new(
            "store",
            level,
            format!("{} free", size(free)),
            "`lxcri-fs gc` makes room where there is something to remove",
        ));
    }
    Ok(findings)
}
