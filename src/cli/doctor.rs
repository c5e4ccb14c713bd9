//! `lxcri-fs doctor`

mod host;

use std::io::Write as _;
use std::path::Path;

use clap::Args;
use rustix::process::{Resource, getrlimit};

use super::colour;
use super::error::{Error, Exit};
use super::output::{count, json, lines, printable, size};
use super::ps::explain;
use super::store::StoreArgs;
use crate::error::chain;
use crate::runtime::record::ContainerRecord;
use crate::serve::confine;
use crate::serve::engine;
use crate::serve::overview::{self, MountState, Overview};
use crate::store::Store;
use crate::store::doctor::{Finding, Level};
use crate::sys::kernel;
use crate::zfs;

/// Check what this host supports, and whether the store and the mounts are sound
#[derive(Debug, Args)]
#[command(after_help = "\
The exit code is 1 if something is broken.

Example: lxcri-fs doctor --json | jq 'select(.level == \"bad\")'")]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// Print one JSON object for each finding, with the fields about, level (good, note or bad),
    /// found (the fact), and so (what it means)
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DoctorArgs) -> Result<(), Error> {
    let mut findings = fuse();
    findings.push(engine());
    findings.extend(confinement());
    findings.extend(overlay());
    findings.extend(zfs());
    findings.extend(limits());
    let uid = rustix::process::getuid().as_raw();
    findings.extend(host::host(Path::new("/"), uid));
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
        let style = match finding.level {
            Level::Good => colour::GOOD,
            Level::Note => colour::NOTE,
            Level::Bad => colour::BAD,
        };
        let mut out = lines();
        out.paint(style, &format!("{level:<5}"))
            .map_err(Error::Output)?;
        writeln!(
            out,
            " {:<8} {}: {}",
            finding.about,
            printable(finding.found.as_bytes()),
            finding.so
        )
        .map_err(Error::Output)?;
    }
    match findings.iter().filter(|f| f.level == Level::Bad).count() {
        0 => Ok(()),
        1 => Err(Error::Other {
            message: "1 thing is broken".into(),
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
            match e.kind() {
                std::io::ErrorKind::PermissionDenied => {
                    "this user can mount nothing: root can, or gives them the right to open it"
                }
                _ => "nothing can be mounted: try `modprobe fuse`",
            },
        )),
    }
    let (major, minor) = kernel::version();
    // linux/fuse.h lists these features under the protocol's versions 7.40 and 7.41.
    let features = [
        (
            (6, 9),
            "mounts survive a crash of the process that serves them",
            "mounts do not survive a crash of the process that serves them, and `upgrade` cannot \
             work",
        ),
        (
            (6, 12),
            "idmapped mounts work: unprivileged containers can use any image",
            "idmapped mounts do not work: unprivileged containers need images with shifted ids",
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
            format!(
                "Linux {major}.{minor} ({}.{} or later needed)",
                since.0, since.1
            ),
            so,
        ));
    }
    findings
}

/// What serves images on this host.
fn engine() -> Finding {
    let about = "engine";
    match engine::refusal() {
        None => Finding::new(
            about,
            Level::Good,
            "split: EROFS can be mounted from files",
            "the kernel itself has names, attributes and pages of images; FUSE serves bytes only",
        ),
        Some(why) => Finding::new(
            about,
            Level::Note,
            format!("fuse: {why}"),
            "FUSE serves names and attributes too, which is slower: the split engine needs root \
             and Linux 6.12 or later with EROFS",
        ),
    }
}

/// What confines the process that parses images: found by trying it, not by looking it up.
fn confinement() -> Vec<Finding> {
    let about = "worker";
    let Some(missing) = confine::probe().map(|confinement| confinement.missing()) else {
        return vec![Finding::new(
            about,
            Level::Note,
            "its confinement could not be tried",
            "the host is short of threads or memory",
        )];
    };
    if missing.is_empty() {
        let so =
            "the process that parses images cannot open files, reach the network or start programs";
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
            "`mount --upper` tries to load it; if that fails, try `modprobe overlay`",
        )];
    }
    let mut findings = vec![Finding::new(
        about,
        Level::Good,
        "overlayfs is available",
        "`mount --upper` works, also in user namespaces (with the option userxattr)",
    )];
    // The options that `mount --upper` sets.
    let features = [
        (
            "metacopy",
            "changing a file's owner or mode does not copy its content to the upper",
        ),
        ("redirect_dir", "directories of the image can be renamed"),
        ("xino_auto", "files have the image's inode numbers"),
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
    if !kernel::finds_fuse_handles() && engine::refusal().is_some() {
        let so = "writing to a file of the image breaks its hard links";
        findings.push(Finding::new(
            about,
            Level::Note,
            "this kernel cannot find FUSE files by handle",
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
                "the store and uppers must be directories",
            )];
        }
    };
    let Some(number) = version.kernel_number() else {
        let so = "try `modprobe zfs`; until then, the store and uppers must be directories";
        return vec![Finding::new(
            about,
            Level::Note,
            format!(
                "OpenZFS {} is installed, but its module is not loaded",
                version.userland
            ),
            so,
        )];
    };
    let (level, so) = match number {
        number if number >= (2, 2) => (Level::Good, "the store and uppers can be on ZFS"),
        _ => (
            Level::Note,
            "images can be on ZFS, but uppers cannot: overlayfs needs OpenZFS 2.2 or later",
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
            "`store = \"zfs:POOL\"` in the configuration puts the store into a pool",
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
        "deeper directories cannot be built or extracted: raise the limit (ulimit -Hn)"
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
        .map(|m| (MountState::of(m, &answers), &m.seen, Some(m.status.pid)));
    let unkept = unkept
        .iter()
        .map(|m| (MountState::of_unkept(m, &answers), &m.seen, None));
    let all: Vec<_> = kept.chain(unkept).collect();
    let served = all
        .iter()
        .filter(|(state, ..)| matches!(state, MountState::Serving | MountState::Restarting))
        .count();
    let found = format!(
        "{served} of {}",
        count(all.len() as u64, "mounted image", "mounted images")
    );
    let mut findings = vec![Finding::new(
        "mounts",
        if served == all.len() {
            Level::Good
        } else {
            Level::Note
        },
        found,
        "are being served",
    )];
    for (state, seen, keeper) in &all {
        let Some(so) = explain(state) else { continue };
        let level = if matches!(state, MountState::Of(_) | MountState::Unkept) {
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
                "the store cannot be used",
            )]);
        }
    };
    for container in store.containers().unwrap_or_default() {
        let record = store
            .reach(&container)
            .map(|dir| ContainerRecord::read(&dir));
        if let Ok(Err(error)) = record {
            findings.push(Finding::new(
                "store",
                Level::Bad,
                format!("container {}: {}", container.name, chain(&error)),
                "no command can use it: save its upper and remove its directory by hand",
            ));
        }
    }
    findings.extend(host::sharing(store.location()));
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
            "`lxcri-fs gc --dry-run` lists what could be removed",
        ));
    }
    Ok(findings)
}
